//! Speaking for nodes that are no members: they are registered by somebody, no membership protocol watches over them.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::authority::NodeSigner;
use crate::{
    catalog::{Catalog, LocalLog, Options, log::Head},
    identity::NodeKey,
    model::NodeId,
};

/// The log of a node that is no member, kept by whoever speaks for it: with a key of the node's own and a certificate for
/// [`SpiffeId::external`](crate::identity::SpiffeId::external). What is written to it is told by
/// [`Mesh::introduce`](super::Mesh::introduce). Each start begins the log anew, which costs others a
/// snapshot.
pub struct ExternalNode {
    catalog: Catalog,
    told: Head,
}

impl ExternalNode {
    /// An empty log for the node whose key this is.
    pub fn new(key: NodeKey) -> Self {
        let id = key.node_id();
        let options = Options {
            signer: Some(Arc::new(NodeSigner(key))),
            ..Options::default()
        };
        Self {
            catalog: Catalog::open(id, options),
            told: Head::default(),
        }
    }

    /// The node.
    pub fn id(&self) -> NodeId {
        self.catalog.own()
    }

    /// What it says. The certificate comes first; the node's record needs
    /// [`external`](crate::model::NodeRecord::external).
    pub fn log(&self) -> LocalLog {
        self.catalog.local()
    }

    /// The signed messages that say what was written since the last call.
    pub(super) fn news(&mut self) -> Vec<Bytes> {
        let messages = self.catalog.messages_since(self.id(), self.told);
        self.told = self.catalog.own_head();
        messages
    }
}

impl fmt::Debug for ExternalNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalNode")
            .field("id", &self.id())
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}
