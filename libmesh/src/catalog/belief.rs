//! Whom the catalog still believes: certificates are read again when trust changes.
//!
//! A node whose certificate was revoked, or whose root is no longer trusted, is *disowned*: nothing of it is shown,
//! passed on or taken in, until its certificate counts again or it brings another one. Its records are kept for that.
//! A certificate that only expired disowns nobody: a mesh without its authority goes on with what it knows.

use bytes::Bytes;

use super::Catalog;
use crate::model::NodeId;

impl Catalog {
    /// Verifies every other node's certificate again: to be called when roots or revocations changed. Returns who is
    /// disowned by now. Takes one certificate check per node, outside of all locks.
    pub fn reverify(&self) -> Vec<NodeId> {
        let Some(verifier) = &self.inner.verifier else {
            return Vec::new();
        };
        let certificates: Vec<(NodeId, Bytes)> = {
            let mut state = self.inner.state.lock();
            // Whoever verified a certificate before this, and takes it in after it, verifies once more.
            state.trust += 1;
            let others = state.nodes.iter().filter(|(id, node)| {
                **id != self.inner.own && node.verified.is_some() && !node.certificate.is_empty()
            });
            others
                .map(|(id, node)| (*id, node.certificate.clone()))
                .collect()
        };
        let mut disowned = Vec::new();
        for (id, certificate) in certificates {
            let refusal = super::record::decode_chain(&certificate)
                .and_then(|chain| verifier.verify(&chain))
                .err();
            if self.set_disowned(id, &certificate, refusal) {
                disowned.push(id);
            }
        }
        disowned
    }

    /// Whether `id` is disowned now. Nothing changes where another certificate came in between.
    fn set_disowned(&self, id: NodeId, certificate: &Bytes, refusal: Option<String>) -> bool {
        let now = (self.inner.clock)();
        let mut state = self.inner.state.lock();
        let Some(node) = state.nodes.get_mut(&id) else {
            return false;
        };
        if node.certificate != *certificate {
            return node.disowned.is_some();
        }
        let expired = node
            .verified
            .as_ref()
            .is_some_and(|verified| now / 1_000_000 > verified.not_after);
        if (expired && refusal.is_some()) || node.disowned.is_some() == refusal.is_some() {
            return node.disowned.is_some();
        }
        match &refusal {
            Some(reason) => tracing::warn!(node = %id, reason, "node hidden"),
            None => tracing::info!(node = %id, "node believed again"),
        }
        node.disowned = refusal;
        let disowned = node.disowned.is_some();
        state.show_whole(&self.inner.index, id, now);
        disowned
    }
}
