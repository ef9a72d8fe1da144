//! The manual: what one does with this crate, and what it promises. Pages only, no code.
//!
//! | page | answers |
//! |---|---|
//! | [`joining`] | How does my program become a node, and what must be kept? What can go wrong at the start? |
//! | [`registering`] | How do I offer a service, with checks, and take it away without anybody noticing? |
//! | [`watching`] | How do I find services, and learn of changes? |
//! | [`connecting`] | How do I call a service with identity, and take calls? |
//! | [`identity`] | Who is who? Where do keys and certificates live, and what does a certificate allow? |
//! | [`failures`] | What exactly holds after a crash, a stall, a partition, a restart, a lost server, a clock jump? |
//! | [`tuning`] | Which numbers can be changed, what do they cost, and when should they be? |
//!
//! Each of the first four has a program in `examples/` that runs against `mesh dev`.

#[doc = include_str!("manual/joining.md")]
pub mod joining {}

#[doc = include_str!("manual/registering.md")]
pub mod registering {}

#[doc = include_str!("manual/watching.md")]
pub mod watching {}

#[doc = include_str!("manual/connecting.md")]
pub mod connecting {}

#[doc = include_str!("manual/identity.md")]
pub mod identity {}

#[doc = include_str!("manual/failures.md")]
pub mod failures {}

#[doc = include_str!("manual/tuning.md")]
pub mod tuning {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::member::Preset;

    /// `750 ms`, `4.25 s`: as the manual writes it.
    fn text(span: Duration) -> String {
        match span.as_millis() {
            ms @ 0..1000 => format!("{ms} ms"),
            _ => format!("{} s", span.as_secs_f64()),
        }
    }

    #[test]
    fn the_table_of_presets_is_what_the_presets_are() {
        let page = include_str!("manual/tuning.md");
        let (lan, wan) = (Preset::lan(), Preset::wan());
        let spans = |of: fn(&Preset) -> Duration| (text(of(&lan)), text(of(&wan)));
        for (field, (lan, wan)) in [
            ("probe_period", spans(|preset| preset.probe_period)),
            ("probe_rtt", spans(|preset| preset.probe_rtt)),
            ("suspect_to_down", spans(|preset| preset.suspect_to_down)),
            ("confirm_timeout", spans(|preset| preset.confirm_timeout)),
            (
                "suspect_shown_after",
                spans(|preset| preset.suspect_shown_after),
            ),
            ("refusal_patience", spans(|preset| preset.refusal_patience)),
            ("gossip_period", spans(|preset| preset.gossip_period)),
            ("announce_period", spans(|preset| preset.announce_period)),
            (
                "announce_down_period",
                spans(|preset| preset.announce_down_period),
            ),
            ("push_pull_period", spans(|preset| preset.push_pull_period)),
            (
                "gossip_fanout",
                (lan.gossip_fanout.to_string(), wan.gossip_fanout.to_string()),
            ),
        ] {
            let row = format!("| `{field}` | {lan} | {wan} |");
            assert!(page.contains(&row), "the manual lacks: {row}");
        }
    }
}
