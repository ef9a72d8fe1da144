//! What the right to manage Consul's tokens does not reach.

use super::Administration;
use crate::acl::{AclError, Identity, Links};
use crate::policy::{Capability, Policy, PolicyName, builtin};

impl Administration<'_> {
    pub(super) fn may(&self, capability: Capability, path: &str) -> bool {
        let caller = self.begun.caller.as_ref();
        caller.is_some_and(|caller| caller.acl().decide(path, capability, None).allowed)
    }

    /// Whether the caller may change a policy: one that is or becomes more than rules about Consul's resources takes the
    /// right that the Vault interface asks for.
    pub(super) fn touches(
        &self,
        name: &PolicyName,
        known: Option<&Policy>,
        new: Option<&Policy>,
        capability: Capability,
    ) -> Result<(), AclError> {
        let mut both = known.into_iter().chain(new);
        let path = document(name);
        if both.all(Policy::is_consuls) || self.may(capability, &path) {
            return Ok(());
        }
        Err(AclError::Denied(format!(
            "Permission denied: a policy with path rules takes {:?} on {path:?}",
            capability.as_str()
        )))
    }

    /// Whether the caller may give what is in `links` and not in `old`.
    pub(super) fn may_give(&self, links: &Links, old: &Links) -> Result<(), AclError> {
        let new = |all: &[String], old: &[String]| {
            let all = all.iter().filter(|one| !old.contains(one));
            all.cloned().collect::<Vec<_>>()
        };
        let added = Links {
            policies: new(&links.policies, &old.policies),
            roles: new(&links.roles, &old.roles),
            identities: links.identities.clone(),
        };
        match self.beyond_consul(&added)? {
            Some(name) if !self.may_give_all() => Err(AclError::Denied(format!(
                "Permission denied: the policy {name:?} grants more than Consul's resources; to give it takes \"sudo\" on \"auth/token/create\""
            ))),
            _ => Ok(()),
        }
    }

    /// The first policy that grants more than Consul's resources.
    ///
    /// # Errors
    /// A policy or role that there is not, or an identity with a name that nobody has.
    pub(super) fn beyond_consul(&self, links: &Links) -> Result<Option<String>, AclError> {
        let invalid = |identity: &&Identity| !identity.is_valid();
        if let Some(Identity::Service(name) | Identity::Node(name)) =
            links.identities.iter().find(invalid)
        {
            return Err(AclError::Invalid(format!(
                "Service and node identities: {name:?} has an invalid name. Only lowercase alphanumeric characters, '-', '_' and '.' are allowed"
            )));
        }
        let mut names = links.policies.clone();
        for id in &links.roles {
            let role = self
                .role(id)?
                .ok_or_else(|| AclError::Invalid(format!("No such ACL role with ID: {id}")))?;
            names.extend(role.links.policies);
        }
        for name in &names {
            let parsed = PolicyName::parse(name)?;
            let policy = self.api.policies.get(&parsed);
            match policy {
                Some(policy) if policy.name.as_str() != builtin::WRAPPING_NAME => {
                    if policy.name.is_root() && !self.is_root() {
                        return Err(AclError::Denied(
                            "Permission denied: root tokens are made on the Vault interface".into(),
                        ));
                    }
                    if !policy.is_consuls() {
                        return Ok(Some(name.clone()));
                    }
                }
                // A role may name one that is gone.
                _ if links.policies.contains(name) => {
                    return Err(AclError::Invalid(format!(
                        "No such ACL policy with Name {name:?}"
                    )));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    pub(super) fn is_root(&self) -> bool {
        let caller = self.begun.caller.as_ref();
        caller.is_some_and(|caller| caller.acl().is_root())
    }
}

pub(super) fn document(name: &PolicyName) -> String {
    format!("sys/policies/acl/{}", name.as_str())
}
