//! What foca wants done: its `Runtime` that only takes notes.

use std::time::Duration;

use bytes::Bytes;
use foca::{Notification, Timer};

use crate::member::wire::Identity;
use crate::model::NodeId;

#[derive(Default)]
pub(super) struct Effects {
    pub(super) packets: Vec<(Identity, Bytes)>,
    pub(super) timers: Vec<(Timer<Identity>, Duration)>,
    /// Members that foca told about.
    pub(super) touched: Vec<NodeId>,
    /// All timers that carry a token and were set before this call are void. foca's tokens are a `u8` that wraps, so
    /// they must go rather than wait for a token that matches again.
    pub(super) timers_void: bool,
    /// We were declared down and took a new generation.
    pub(super) rejoined: bool,
}

pub(super) fn has_token(timer: &Timer<Identity>) -> bool {
    !matches!(timer, Timer::RemoveDown(_))
}

impl foca::Runtime<Identity> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(member)
            | Notification::MemberDown(member)
            | Notification::Rename(_, member) => {
                self.touched.push(member.node);
            }
            Notification::Active => {}
            Notification::Idle | Notification::Defunct => self.void_timers(),
            Notification::Rejoin(_) => self.rejoin(),
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.timers.push((timer, after));
    }
}

impl Effects {
    /// We took a new generation by ourselves.
    pub(super) fn rejoin(&mut self) {
        self.rejoined = true;
        self.void_timers();
    }

    fn void_timers(&mut self) {
        self.timers.retain(|(timer, _)| !has_token(timer));
        self.timers_void = true;
    }
}
