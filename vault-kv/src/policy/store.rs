//! All policies in memory, with the durable copy behind them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::{Acl, Identity, Policy, PolicyName, builtin};
use crate::db::{Batch, By, Db};
use crate::http::ApiError;

const PREFIX: &str = "sys/policy/";
/// Merged rights kept ready; beyond that the cache starts anew.
const CACHE: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Stored {
    source: String,
}

/// The policies of an unsealed server.
pub(crate) struct Policies {
    db: Db,
    state: RwLock<State>,
    changes: AtomicU64,
}

struct State {
    all: BTreeMap<PolicyName, Arc<Policy>>,
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
            }),
        )]);
        let wrapping = PolicyName::parse(builtin::WRAPPING_NAME)?;
        let policy = Policy::parse(wrapping.clone(), builtin::WRAPPING)?;
        all.insert(wrapping, Arc::new(policy));
        for path in db.names(PREFIX)? {
            let name = PolicyName::parse(path.trim_start_matches(PREFIX))?;
            let Some((stored, _)) = db.get::<Stored>(&path)? else {
                continue;
            };
            // One unreadable policy must not keep the store shut: without it its holders have fewer rights.
            match Policy::parse(name.clone(), &stored.source) {
                Ok(policy) => {
                    all.insert(name, Arc::new(policy));
                }
                Err(error) => tracing::error!(policy = name.as_str(), %error, "policy ignored"),
            }
        }
        Ok(Self {
            db,
            state: RwLock::new(State {
                all,
                acls: HashMap::new(),
            }),
            changes: AtomicU64::new(0),
        })
    }

    /// Names, sorted, `root` included; without the one that nobody can give.
    pub fn names(&self) -> Vec<String> {
        self.state
            .read()
            .all
            .keys()
            .filter(|name| name.as_str() != builtin::WRAPPING_NAME)
            .map(|n| n.as_str().to_string())
            .collect()
    }

    pub fn get(&self, name: &PolicyName) -> Option<Arc<Policy>> {
        self.state.read().all.get(name).cloned()
    }

    /// Store a policy; it holds for the very next request.
    pub async fn put(&self, by: &By, name: PolicyName, source: &str) -> Result<(), ApiError> {
        if name.is_root() || name.as_str() == builtin::WRAPPING_NAME {
            let text = format!("cannot update \"{}\" policy", name.as_str());
            return Err(ApiError::bad(text));
        }
        let policy = Policy::parse(name.clone(), source)?;
        let path = format!("{PREFIX}{}", name.as_str());
        let _order = self.db.lock(&path).await;
        let mut batch = Batch::new(by, "policy/write");
        batch
            .put(
                &path,
                &Stored {
                    source: source.into(),
                },
            )?
            .key(format!("policy {}", name.as_str()));
        self.db.commit(batch).await?;
        let mut state = self.state.write();
        state.all.insert(name, Arc::new(policy));
        self.changed(&mut state);
        Ok(())
    }

    pub async fn delete(&self, by: &By, name: &PolicyName) -> Result<(), ApiError> {
        match name.as_str() {
            "root" | builtin::WRAPPING_NAME => {
                let text = format!("cannot delete \"{}\" policy", name.as_str());
                return Err(ApiError::bad(text));
            }
            "default" => return Err(ApiError::bad("cannot delete default policy")),
            _ => {}
        }
        let path = format!("{PREFIX}{}", name.as_str());
        let _order = self.db.lock(&path).await;
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

    fn changed(&self, state: &mut State) {
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
            .filter_map(|n| state.all.get(n).cloned())
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
