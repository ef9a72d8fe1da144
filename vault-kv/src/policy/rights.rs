//! What a caller may do, as of a state of policies and identities.

use std::sync::Arc;

use super::{Acl, PolicyName};

/// A caller's policies and what they grant together.
pub(crate) struct Rights {
    pub policies: Vec<PolicyName>,
    pub acl: Arc<Acl>,
    /// How often policies and identities had changed when this was begun to be worked out.
    pub as_of: (u64, u64),
}
