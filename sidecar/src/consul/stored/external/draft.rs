//! A change of one external node as it is put together. What is looked at is read when it is first asked for, and has to
//! be the same when the change is committed; the asker's rights are asked for as the change needs them.

use std::collections::BTreeMap;

use libmesh::model::{CheckRecord, Datacenter, Instance, NodeId, NodeName};
use serde::{Serialize, de::DeserializeOwned};
use vault_kv::{Capability, KvOp, KvPair};
use zeroize::Zeroizing;

use super::kept::{self, Described, Part, Unread};
use crate::consul::{
    Refused, bad_request, server_error,
    stored::{Pairs, StoreError},
};

/// A node as it would be.
pub struct Draft<'a> {
    pairs: &'a Pairs,
    name: &'a NodeName,
    node: Slot<Described>,
    services: BTreeMap<String, Slot<Instance>>,
    checks: BTreeMap<String, Slot<CheckRecord>>,
    /// Everything it had is taken away before what the slots say.
    emptied: bool,
    needs: Vec<(Capability, String)>,
}

/// A part as it is kept and as it would be.
struct Slot<T> {
    was: Option<T>,
    is: Option<T>,
    /// Ledger index of what is kept; 0: nothing is.
    index: u64,
}

/// What to commit.
pub struct Changes {
    /// The operations; also that what was looked at is the same.
    pub ops: Vec<KvOp>,
    /// What differs afterwards; nothing: there is nothing to commit.
    pub parts: Vec<Part>,
    /// The rights that the asker needed, and has.
    pub needs: Vec<(Capability, String)>,
}

impl<'a> Draft<'a> {
    /// The node as it is kept.
    pub fn open(pairs: &'a Pairs, name: &'a NodeName) -> Result<Self, Refused> {
        Ok(Self {
            pairs,
            name,
            node: Slot::read(pairs, name, &Part::Node)?,
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            emptied: false,
            needs: Vec::new(),
        })
    }

    /// What is said of the node; `None`: there is none.
    pub fn node(&self) -> Option<&Described> {
        self.node.is.as_ref()
    }

    /// Describes the node, which keeps what it has.
    pub fn describe(&mut self, described: &Described) -> Result<(), Refused> {
        self.need_node()?;
        // What the catalog would refuse must not be kept.
        let record = described.record(NodeId([0; 16]), self.name, &Datacenter::default());
        record
            .validate()
            .map_err(|error| bad_request(format!("Invalid node: {error}")))?;
        self.node.is = Some(described.clone());
        Ok(())
    }

    /// Takes the node away with all it has.
    pub fn remove(&mut self) -> Result<(), Refused> {
        self.need(Capability::Delete, node_path(self.pairs, self.name))?;
        self.node.is = None;
        self.services.clear();
        self.checks.clear();
        self.emptied = true;
        Ok(())
    }

    /// An instance.
    pub fn service(&mut self, id: &str) -> Result<Option<&Instance>, Refused> {
        let slots = &mut self.services;
        look(
            self.pairs,
            self.name,
            self.emptied,
            slots,
            id,
            Part::Service,
        )
    }

    /// Puts an instance in place of the one with its id.
    pub fn put_service(&mut self, instance: &Instance) -> Result<(), Refused> {
        let id = instance.id.as_str();
        let before = self.service(id)?.map(|before| before.service.clone());
        if let Some(before) = before.filter(|before| *before != instance.service) {
            self.need_service(before.as_str())?;
        }
        self.need_service(instance.service.as_str())?;
        put(&mut self.services, id, Some(instance.clone()));
        Ok(())
    }

    /// Takes an instance and its checks away.
    pub fn remove_service(&mut self, id: &str) -> Result<(), Refused> {
        let service = self.service(id)?.map(|it| it.service.clone());
        self.need_node_or(service.as_ref().map(|service| service.as_str()))?;
        self.checks_of_service(id)?;
        for slot in self.checks.values_mut() {
            let of_it =
                |check: &mut CheckRecord| check.service.as_ref().is_some_and(|it| *it == id);
            slot.is.take_if(of_it);
        }
        put(&mut self.services, id, None);
        Ok(())
    }

    /// Looks at the checks of an instance; not at others, whose changes are nothing to it.
    fn checks_of_service(&mut self, id: &str) -> Result<(), Refused> {
        if self.emptied {
            return Ok(());
        }
        let kept = self.pairs.kv.list(&kept::checks_of(self.name));
        for pair in kept.map_err(StoreError::from)? {
            let Some(Part::Check(check)) = Part::of(self.name, &pair.key) else {
                continue;
            };
            let slot = Slot::<CheckRecord>::of(&pair)?;
            let of_it = slot
                .is
                .iter()
                .any(|it| it.service.as_ref().is_some_and(|it| *it == id));
            if of_it {
                self.checks.entry(check).or_insert(slot);
            }
        }
        Ok(())
    }

    /// A check.
    pub fn check(&mut self, id: &str) -> Result<Option<&CheckRecord>, Refused> {
        let slots = &mut self.checks;
        look(self.pairs, self.name, self.emptied, slots, id, Part::Check)
    }

    /// Puts a check in place of the one with its id. Its instance has to be there.
    pub fn put_check(&mut self, check: &CheckRecord) -> Result<(), Refused> {
        self.check(&check.id)?;
        match &check.service {
            None => self.need_node()?,
            Some(id) => match self.service(id.as_str())?.map(|it| it.service.clone()) {
                Some(service) => self.need_service(service.as_str())?,
                None => {
                    self.need_node()?;
                    return Err(server_error(format!(
                        "Unknown service ID '{id}' for check ID '{}'",
                        check.id
                    )));
                }
            },
        }
        put(&mut self.checks, &check.id, Some(check.clone()));
        Ok(())
    }

    /// Takes a check away.
    pub fn remove_check(&mut self, id: &str) -> Result<(), Refused> {
        let of = self.check(id)?.and_then(|check| check.service.clone());
        let service = match &of {
            Some(of) => self.service(of.as_str())?.map(|it| it.service.clone()),
            None => None,
        };
        self.need_node_or(service.as_ref().map(|service| service.as_str()))?;
        put(&mut self.checks, id, None);
        Ok(())
    }

    /// The right to change the node.
    pub fn need_node(&mut self) -> Result<(), Refused> {
        self.need(Capability::Update, node_path(self.pairs, self.name))
    }

    /// What to commit.
    pub fn changes(self) -> Changes {
        let name = self.name;
        let (mut ops, mut parts) = (Vec::new(), Vec::new());
        let there = self.node.index > 0;
        self.node.change(name, Part::Node, &mut ops, &mut parts);
        if self.emptied && there {
            let prefix = kept::below(name);
            ops.push(KvOp::DeleteTree { prefix });
            parts = vec![Part::Whole];
        }
        for (id, slot) in self.services {
            slot.change(name, Part::Service(id), &mut ops, &mut parts);
        }
        for (id, slot) in self.checks {
            slot.change(name, Part::Check(id), &mut ops, &mut parts);
        }
        Changes {
            ops,
            parts,
            needs: self.needs,
        }
    }

    fn need_service(&mut self, service: &str) -> Result<(), Refused> {
        self.need(Capability::Update, format!("consul/service/{service}"))
    }

    /// Who may change the node may take away what is on it; who may change a service, its instances.
    fn need_node_or(&mut self, service: Option<&str>) -> Result<(), Refused> {
        match (self.need_node(), service) {
            (Err(_), Some(service)) => self.need_service(service),
            (of_node, _) => of_node,
        }
    }

    fn need(&mut self, capability: Capability, path: String) -> Result<(), Refused> {
        self.pairs.asker.authorize(capability, &path)?;
        let needed = (capability, path);
        if !self.needs.contains(&needed) {
            self.needs.push(needed);
        }
        Ok(())
    }
}

fn node_path(pairs: &Pairs, name: &NodeName) -> String {
    format!("{}{}", pairs.path, Part::Node.key(name))
}

/// What is in a slot, which is filled at the first look.
fn look<'s, T: DeserializeOwned + Clone>(
    pairs: &Pairs,
    name: &NodeName,
    emptied: bool,
    slots: &'s mut BTreeMap<String, Slot<T>>,
    id: &str,
    part: fn(String) -> Part,
) -> Result<Option<&'s T>, Refused> {
    if !slots.contains_key(id) {
        let slot = match emptied {
            true => Slot::none(),
            false => Slot::read(pairs, name, &part(id.to_owned()))?,
        };
        slots.insert(id.to_owned(), slot);
    }
    Ok(slots.get(id).and_then(|slot| slot.is.as_ref()))
}

/// Changes what is in a slot that was looked at.
fn put<T>(slots: &mut BTreeMap<String, Slot<T>>, id: &str, is: Option<T>) {
    if let Some(slot) = slots.get_mut(id) {
        slot.is = is;
    }
}

impl<T> Slot<T> {
    fn none() -> Self {
        Self {
            was: None,
            is: None,
            index: 0,
        }
    }
}

impl<T: DeserializeOwned + Clone> Slot<T> {
    fn read(pairs: &Pairs, node: &NodeName, part: &Part) -> Result<Self, Unread> {
        let pair = pairs.kv.get(&part.key(node))?;
        pair.as_ref().map_or(Ok(Self::none()), Self::of)
    }

    fn of(pair: &KvPair) -> Result<Self, Unread> {
        let value: T = kept::decode(pair)?;
        Ok(Self {
            was: Some(value.clone()),
            is: Some(value),
            index: pair.modified,
        })
    }
}

impl<T: Serialize + PartialEq> Slot<T> {
    /// The operation that brings it about, or looks whether it still is what it was.
    fn change(self, node: &NodeName, part: Part, ops: &mut Vec<KvOp>, parts: &mut Vec<Part>) {
        let (key, index) = (part.key(node), self.index);
        let changed = self.was != self.is;
        let cas = Some(index);
        ops.push(match self.is {
            Some(is) if changed => KvOp::Set {
                key,
                value: Zeroizing::new(serde_json::to_vec(&is).expect("plain data encodes")),
                flags: 0,
                cas,
                ttl: None,
            },
            Some(_) => KvOp::CheckIndex { key, index },
            None if changed => KvOp::Delete { key, cas },
            None => KvOp::CheckAbsent { key },
        });
        if changed {
            parts.push(part);
        }
    }
}

impl From<Unread> for Refused {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Store(error) => StoreError::from(error).into(),
            unread @ Unread::Unreadable { .. } => server_error(unread.to_string()),
        }
    }
}
