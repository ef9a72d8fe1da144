//! The guard on foca's suspicion timers.

use foca::{Incarnation, State, Timer};

use super::Core;
use super::timers::Item;
use crate::member::counters::count;
use crate::member::wire::Identity;

impl Core {
    pub(super) fn is_suspect(&self, member: &Identity, incarnation: Incarnation) -> bool {
        self.foca.iter_membership_state().any(|known| {
            known.id() == member
                && known.state() == State::Suspect
                && known.incarnation() == incarnation
        })
    }

    /// foca's timer for a suspicion: only delivered while it still stands, and after one last question.
    pub(super) fn suspicion_due(
        &mut self,
        member_id: Identity,
        incarnation: Incarnation,
        token: foca::TimerToken,
    ) {
        #[cfg(test)]
        if self.unguarded {
            self.declare_down(member_id, incarnation, token);
            return;
        }
        if !self.is_suspect(&member_id, incarnation) {
            self.suspicions.remove(&member_id.node);
            count(&self.counters.late_suspicions);
            return;
        }
        let asked = self.confirm(member_id, incarnation, token);
        if !asked {
            let timer = Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                token,
            };
            self.timers.set(Item::Foca(timer), self.preset.probe_period);
        }
    }

    pub(super) fn declare_down(
        &mut self,
        member_id: Identity,
        incarnation: Incarnation,
        token: foca::TimerToken,
    ) {
        self.suspicions.remove(&member_id.node);
        let timer = Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            token,
        };
        let result = self.foca.handle_timer(timer, &mut self.effects);
        self.settle(result, &[member_id.node]);
    }
}
