//! All policies in memory, with the durable copy behind them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::{Acl, Identity, Policy, PolicyName, builtin, roles};
use crate::db::{Batch, By, Db};
use crate::http::ApiError;

/// Below it the policies, by name; the name of the lock that is held while they change.
pub(crate) const PREFIX: &str = "sys/policy/";
/// Merged rights kept ready; beyond that the cache starts anew.
const CACHE: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Stored {
    source: String,
    #[serde(default)]
    description: String,
    /// When it was made; 0: it was not changed since.
    #[serde(default)]
    created: u64,
}

/// The policies of an unsealed server.
pub(crate) struct Policies {
    pub(super) db: Db,
    pub(super) state: RwLock<State>,
    changes: AtomicU64,
}

pub(super) struct State {
    all: BTreeMap<PolicyName, Arc<Policy>>,
    pub roles: BTreeMap<String, roles::Stored>,
    /// Rights per set of policies and identity; emptied at every change.
    acls: HashMap<(Vec<PolicyName>, Identity), Arc<Acl>>,
}

impl Policies {
    /// The `default` policy of a new store.
    pub fn initialise(batch: &mut Batch) -> Result<(), ApiError> {
        batch.put(
            &format!("{PREFIX}default"),
            &Stored {
                source: builtin::DEFAULT.into(),
                description: String::new(),
                created: 0,
            },
        )?;
        Ok(())
    }

    pub fn load(db: Db) -> Result<Self, ApiError> {
        let root = PolicyName::parse("root")?;
        let mut all = BTreeMap::from([(
            root.clone(),
            Arc::new(Policy {
                name: root,
                source: String::new(),
                rules: Vec::new(),
                has_templates: false,
                description: String::new(),
            }),
        )]);
        for path in db.names(PREFIX)? {
            let name = PolicyName::parse(path.trim_start_matches(PREFIX))?;
            let Some((stored, _)) = db.get::<Stored>(&path)? else {
                continue;
            };
            // One unreadable policy must not keep the store shut: without it its holders have fewer rights.
            match Policy::parse(name.clone(), &stored.source) {
                Ok(policy) => {
                    let description = stored.description;
                    let policy = Policy {
                        description,
                        ..policy
                    };
                    all.insert(name, Arc::new(policy));
                }
                Err(error) => tracing::error!(policy = name.as_str(), %error, "policy ignored"),
            }
        }
        for (name, description, source) in builtin::FIXED {
            let name = PolicyName::parse(name)?;
            let description = description.to_owned();
            let policy = Policy {
                description,
                ..Policy::parse(name.clone(), source)?
            };
            all.insert(name, Arc::new(policy));
        }
        let mut roles = BTreeMap::new();
        for path in db.names(roles::PREFIX)? {
            match db.get::<roles::Stored>(&path) {
                Ok(Some((role, _))) => {
                    roles.insert(path[roles::PREFIX.len()..].to_owned(), role);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a role is ignored"),
            }
        }
        Ok(Self {
            db,
            state: RwLock::new(State {
                all,
                roles,
                acls: HashMap::new(),
            }),
            changes: AtomicU64::new(0),
        })
    }

    /// Names, sorted, `root` included; without those that are part of this program.
    pub fn names(&self) -> Vec<String> {
        self.state
            .read()
            .all
            .keys()
            .filter(|name| !builtin::is_fixed(name.as_str()))
            .map(|n| n.as_str().to_string())
            .collect()
    }

    pub fn get(&self, name: &PolicyName) -> Option<Arc<Policy>> {
        self.state.read().all.get(name).cloned()
    }

    /// When a policy was made, and when it last changed.
    pub fn indexes(&self, name: &PolicyName) -> Result<(u64, u64), ApiError> {
        let found = self
            .db
            .get::<Stored>(&format!("{PREFIX}{}", name.as_str()))?;
        Ok(
            found.map_or((0, 0), |(stored, modified)| match stored.created {
                0 => (modified, modified),
                created => (created, modified),
            }),
        )
    }

    /// Store a policy; it holds for the very next request. Without a `description` it keeps the one it has.
    pub async fn put(
        &self,
        by: &By,
        name: PolicyName,
        source: &str,
        description: Option<&str>,
    ) -> Result<(), ApiError> {
        if name.is_root() || builtin::is_fixed(name.as_str()) {
            let text = format!("cannot update \"{}\" policy", name.as_str());
            return Err(ApiError::bad(text));
        }
        let path = format!("{PREFIX}{}", name.as_str());
        let _order = self.db.lock(PREFIX).await;
        let known = self.get(&name);
        let known = known.as_ref().map_or("", |known| &known.description);
        let policy = Policy {
            description: description.unwrap_or(known).to_owned(),
            ..Policy::parse(name.clone(), source)?
        };
        let stored = Stored {
            source: source.into(),
            description: policy.description.clone(),
            created: self.indexes(&name)?.0,
        };
        let mut batch = Batch::new(by, "policy/write");
        batch
            .put(&path, &stored)?
            .key(format!("policy {}", name.as_str()));
        self.db.commit(batch).await?;
        let mut state = self.state.write();
        state.all.insert(name, Arc::new(policy));
        self.changed(&mut state);
        Ok(())
    }

    pub async fn delete(&self, by: &By, name: &PolicyName) -> Result<(), ApiError> {
        match name.as_str() {
            fixed if name.is_root() || builtin::is_fixed(fixed) => {
                let text = format!("cannot delete \"{fixed}\" policy");
                return Err(ApiError::bad(text));
            }
            "default" => return Err(ApiError::bad("cannot delete default policy")),
            _ => {}
        }
        let path = format!("{PREFIX}{}", name.as_str());
        let _order = self.db.lock(PREFIX).await;
        if self.db.index(&path)?.is_some() {
            let mut batch = Batch::new(by, "policy/delete");
            batch.delete(&path).key(format!("policy {}", name.as_str()));
            self.db.commit(batch).await?;
        }
        let mut state = self.state.write();
        state.all.remove(name);
        self.changed(&mut state);
        Ok(())
    }

    pub(super) fn changed(&self, state: &mut State) {
        state.acls.clear();
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes so far: as long as that stays, so do everybody's rights, but for their identities.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The rights of a caller with these policies. Names without a policy grant nothing. `facts` of an entity are
    /// asked for when one of the policies has a template.
    pub fn acl(
        &self,
        names: &[PolicyName],
        identity: &Identity,
        facts: &dyn Fn(&str) -> BTreeMap<String, String>,
    ) -> Arc<Acl> {
        let mut identity = match self.has_templates(names) {
            true => identity.clone(),
            // One entry serves all who have these policies.
            false => Identity::default(),
        };
        if let Some(id) = &identity.entity {
            identity.facts = facts(id);
        }
        let key = (names.to_vec(), identity);
        if let Some(acl) = self.state.read().acls.get(&key) {
            return acl.clone();
        }
        let mut state = self.state.write();
        let policies: Vec<_> = names
            .iter()
            .filter_map(|name| state.all.get(name).cloned().or_else(|| made_for(name)))
            .collect();
        let acl = Arc::new(Acl::new(&policies, &key.1));
        if state.acls.len() >= CACHE {
            state.acls.clear();
        }
        state.acls.insert(key, acl.clone());
        acl
    }

    fn has_templates(&self, names: &[PolicyName]) -> bool {
        let state = self.state.read();
        let mut policies = names.iter().filter_map(|name| state.all.get(name));
        policies.any(|policy| policy.has_templates)
    }
}

/// The policy that stands for a service or a node, which is kept nowhere.
fn made_for(name: &PolicyName) -> Option<Arc<Policy>> {
    let identity = crate::acl::Identity::of_policy(name.as_str())?;
    if !identity.is_valid() {
        return None;
    }
    let policy = Policy::parse(name.clone(), &identity.source()).ok()?;
    Some(Arc::new(policy))
}
