//! foca's configuration for a preset and a cluster size.

use std::num::{NonZeroU8, NonZeroUsize};

use foca::PeriodicParams;

use crate::member::config::Preset;
use crate::member::keyring::{MAX_DATAGRAM, OVERHEAD};

/// Who gets asked to probe a member that does not answer.
pub(super) const INDIRECT_PROBES: usize = 3;

pub(super) fn foca_config(preset: &Preset, members: usize) -> foca::Config {
    let size = |n: usize| NonZeroUsize::new(n).expect("a constant or clamped to at least 1");
    let every = |frequency, n| {
        Some(PeriodicParams {
            frequency,
            num_members: size(n),
        })
    };
    // memberlist has 4·log10(N+1). With ours one crash in a thousand is missed by a single member, which would find out
    // by its own probe half a minute later; they cost nothing while nothing happens.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 10 and 40"
    )]
    let transmissions = (5.0 * ((members + 1) as f64).log10())
        .ceil()
        .clamp(10.0, 40.0) as u8;
    foca::Config {
        probe_period: preset.probe_period,
        probe_rtt: preset.probe_rtt,
        num_indirect_probes: size(INDIRECT_PROBES),
        max_transmissions: NonZeroU8::new(transmissions).expect("at least 10"),
        // The preset counts from the unanswered ping to Down; foca from the end of the probe to the last question.
        suspect_to_down_after: preset
            .suspect_to_down
            .saturating_sub(preset.probe_period + preset.confirm_timeout)
            .max(preset.probe_period),
        // We forget ourselves: one timer for all.
        remove_down_after: None,
        max_packet_size: size(MAX_DATAGRAM - OVERHEAD),
        notify_down_members: true,
        periodic_announce: every(preset.announce_period, 1),
        periodic_announce_to_down_members: every(preset.announce_down_period, 2),
        periodic_gossip: every(preset.gossip_period, preset.gossip_fanout.max(1)),
    }
}
