//! The guard on foca's suspicion timers.

use std::time::Duration;

use foca::{Incarnation, Timer};

use super::Core;
use super::timers::Item;
use crate::member::counters::count;
use crate::member::wire::Identity;
use crate::model::{Liveness, NodeId};

impl Core {
    pub(super) fn is_suspect(&self, member: &Identity, incarnation: Incarnation) -> bool {
        self.table.get(member.node).is_some_and(|known| {
            known.identity == *member
                && known.liveness == Liveness::Suspect
                && known.incarnation == incarnation
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
        if self.restart_left(member_id.node).is_some()
            || !self.confirm(member_id, incarnation, token)
        {
            self.suspect_for_longer(member_id, incarnation, token);
        }
    }

    /// How much of its announced restart a member has left.
    pub(super) fn restart_left(&self, node: NodeId) -> Option<Duration> {
        let until = self.table.restarting_until(node)?;
        until
            .checked_sub(self.timers.time())
            .filter(|left| !left.is_zero())
    }

    /// The last question could not be asked, or its answer not be heard: later again.
    pub(super) fn suspect_for_longer(
        &mut self,
        member_id: Identity,
        incarnation: Incarnation,
        token: foca::TimerToken,
    ) {
        let timer = Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            token,
        };
        self.timers.set(Item::Foca(timer), self.preset.probe_period);
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
        if self.table.present_as(&member_id).is_none() {
            self.tell(&foca::Member::new(
                member_id,
                incarnation,
                foca::State::Down,
            ));
        }
    }
}
