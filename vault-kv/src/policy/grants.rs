//! What a token may do, to be asked elsewhere than where the policies are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::{Acl, Capabilities, Capability};

/// A token's rights to paths of the embedding program, as of one moment.
#[derive(Clone)]
pub struct Grants {
    accessor: Arc<str>,
    expires: Option<i64>,
    acl: Arc<Acl>,
}

/// One rule of [`Grants`], on its way to somebody else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    pattern: Pattern,
    capabilities: Capabilities,
}

impl Grants {
    pub(crate) fn new(accessor: &str, expires: Option<i64>, acl: Arc<Acl>) -> Self {
        let accessor = accessor.into();
        Self {
            accessor,
            expires,
            acl,
        }
    }

    /// As they were sent: see [`rules`](Self::rules) and [`is_root`](Self::is_root).
    pub fn of_rules(accessor: &str, expires: Option<i64>, rules: Vec<Grant>, root: bool) -> Self {
        let rules = rules.into_iter();
        let rules = rules.map(|grant| (grant.pattern, grant.capabilities));
        Self::new(accessor, expires, Arc::new(Acl::of_rules(rules, root)))
    }

    /// The rules about paths that begin with one of these.
    pub fn rules(&self, prefixes: &[&str]) -> Vec<Grant> {
        let rules = self.acl.rules_below(prefixes).into_iter();
        rules
            .map(|(pattern, capabilities)| Grant {
                pattern,
                capabilities,
            })
            .collect()
    }

    /// Whether everything is allowed.
    pub fn is_root(&self) -> bool {
        self.acl.is_root()
    }

    /// The token's accessor.
    pub fn accessor(&self) -> &str {
        &self.accessor
    }

    /// When the token expires, in unix seconds; `None`: never.
    pub fn expires(&self) -> Option<i64> {
        self.expires
    }

    /// Whether the rule that speaks for `path` allows this; `None`: none does.
    pub fn says(&self, path: &str, capability: Capability) -> Option<bool> {
        self.acl.says(path, capability)
    }

    /// Whether this is allowed on everything that begins with `prefix`; where no rule speaks, `otherwise` counts.
    pub fn allows_below(&self, prefix: &str, capability: Capability, otherwise: bool) -> bool {
        self.acl.allows_below(prefix, capability, otherwise)
    }
}
