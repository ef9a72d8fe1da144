//! Operations on nodes without an agent, their services and checks: all or none, in one entry of the ledger.
//!
//! Indexes of services and checks are those that the catalog shows everywhere. A node's differs from agent to agent, so
//! `cas` and `delete-cas` of nodes are refused.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use libmesh::{
    catalog::{Catalog, InstanceView, NodeView},
    model::{CheckRecord, Instance, NodeName},
};
use serde_json::{Map, Value, json};

use super::{
    super::{
        Pairs,
        external::{self, Draft, Publisher, kept::Described},
        pairs::TxnError,
    },
    Failed, Kind, Op, Read, applied, refused, unreadable,
};
use crate::{
    consul::{Refused, agent_services, decode::Fields, render, server_error},
    http::Reply,
};

/// What an operation is on.
enum Object {
    Node(Option<Box<Described>>),
    Service(String, Option<Box<Instance>>),
    Check(String, Option<Box<CheckRecord>>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Set,
    /// Only if its index is this; 0: only if it is not there.
    Cas(u64),
    Delete,
    DeleteCas(u64),
}

struct Wanted {
    node: NodeName,
    object: Object,
    verb: Verb,
}

/// Nodes as they would be.
type Changed<'a> = BTreeMap<&'a NodeName, Draft<'a>>;

pub async fn txn(pairs: &Pairs, publisher: &dyn Publisher, ops: Vec<Op>) -> Result<Reply, Refused> {
    let mut wanted = Vec::with_capacity(ops.len());
    let mut failed = Vec::new();
    for (op_index, (kind, fields)) in ops.into_iter().enumerate() {
        match operation(kind, &fields)? {
            Ok(op) => wanted.push(op),
            Err(what) => failed.push(Failed { op_index, what }),
        }
    }
    let read = || {
        let reads = wanted.iter().all(|op| op.verb == Verb::Get);
        reads.then(|| Read::known(true))
    };
    if !failed.is_empty() {
        return Ok(refused(failed, None));
    }
    let no_node = || server_error("No cluster leader: this server is not a node of its mesh yet");
    let catalog = publisher.catalog().ok_or_else(no_node)?;
    for _ in 0..external::ATTEMPTS {
        let changed = match carry_out(pairs, publisher, &catalog, &wanted)? {
            Ok(changed) => changed,
            Err(failed) => return Ok(refused(failed, read())),
        };
        let (mut ops, mut rights, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (node, draft) in changed {
            let changes = draft.changes();
            ops.extend(changes.ops);
            rights.extend(changes.needs);
            if !changes.parts.is_empty() {
                parts.push((node, changes.parts));
            }
        }
        if !parts.is_empty() {
            match pairs.apply_for(rights, ops).await {
                Ok(_) => {}
                // Somebody else's change came before: what is there now may allow another outcome.
                Err(TxnError::Refused(_)) => continue,
                Err(TxnError::Store(error)) => return Err(error.into()),
            }
            for (node, parts) in parts {
                publisher.publish(node, parts).await?;
            }
        }
        let results = wanted.iter().filter_map(|op| op.show(&catalog));
        return Ok(applied(results.collect(), read()));
    }
    Err(server_error("the nodes are changed by too many at once"))
}

/// Reads one operation. The inner error is the operation's own, as the answer to a transaction has it.
fn operation(kind: Kind, fields: &Map<String, Value>) -> Result<Result<Wanted, String>, Refused> {
    let named = |name: &str| {
        let mut found = fields.iter();
        let found = found.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let (what, inner) = match kind {
        Kind::Node => ("Node", named("Node")),
        Kind::Service => ("Service", named("Service")),
        Kind::Check => ("Check", named("Check")),
        Kind::Key => unreachable!("keys have their own transactions"),
    };
    let Value::String(verb) = named("Verb") else {
        return Err(unreadable(&format!("{what}.Verb must be a string")));
    };
    if !inner.is_object() {
        return Err(unreadable(&format!("{what}.{what} must be an object")));
    }
    let index = inner["ModifyIndex"].as_u64().unwrap_or(0);
    let verb = match verb.as_str() {
        "get" => Verb::Get,
        "set" => Verb::Set,
        "cas" => Verb::Cas(index),
        "delete" => Verb::Delete,
        "delete-cas" => Verb::DeleteCas(index),
        other => return Ok(Err(format!("unknown {what} verb {other:?}"))),
    };
    let keeps = matches!(verb, Verb::Set | Verb::Cas(_));
    let node = match kind {
        Kind::Service => named("Node"),
        _ => inner["Node"].clone(),
    };
    let node = match NodeName::parse(node.as_str().unwrap_or_default()) {
        Ok(node) => node,
        Err(error) => return Ok(Err(format!("Invalid node: {error}"))),
    };
    let id = |name: &str, or: &str| {
        let text = |name: &str| inner[name].as_str().filter(|text| !text.is_empty());
        text(name)
            .or_else(|| text(or))
            .unwrap_or_default()
            .to_owned()
    };
    let object = match kind {
        Kind::Node if matches!(verb, Verb::Cas(_) | Verb::DeleteCas(_)) => {
            let reason =
                "cas and delete-cas of nodes are not supported: their index differs between agents";
            return Ok(Err(reason.to_owned()));
        }
        Kind::Node if keeps => {
            let body = json!({
                "Node": inner["Node"], "Address": inner["Address"], "ID": inner["ID"],
                "NodeMeta": inner["Meta"], "TaggedAddresses": inner["TaggedAddresses"],
            });
            match Fields::of(body).and_then(external::parse) {
                Ok(parsed) => Object::Node(parsed.described.map(Box::new)),
                Err(refused) => return Ok(Err(refused.to_string())),
            }
        }
        Kind::Node => Object::Node(None),
        Kind::Service => {
            let id = id("ID", "Service");
            match keeps.then(|| Fields::of(inner).and_then(agent_services::external)) {
                None => Object::Service(id, None),
                Some(Ok(instance)) => {
                    Object::Service(instance.id.to_string(), Some(Box::new(instance)))
                }
                Some(Err(refused)) => return Ok(Err(refused.to_string())),
            }
        }
        Kind::Check => {
            let id = id("CheckID", "Name");
            match keeps.then(|| external::check(inner)) {
                None => Object::Check(id, None),
                Some(Ok(check)) => Object::Check(check.id.to_string(), Some(Box::new(check))),
                Some(Err(refused)) => return Ok(Err(refused.to_string())),
            }
        }
        Kind::Key => unreachable!("keys have their own transactions"),
    };
    Ok(Ok(Wanted { node, object, verb }))
}

/// What the nodes would be; or what does not apply.
fn carry_out<'a>(
    pairs: &'a Pairs,
    publisher: &dyn Publisher,
    catalog: &Catalog,
    wanted: &'a [Wanted],
) -> Result<Result<Changed<'a>, Vec<Failed>>, Refused> {
    let mut changed = Changed::new();
    let mut failed = Vec::new();
    for (op_index, op) in wanted.iter().enumerate() {
        let outcome = match op.verb {
            Verb::Get => op.found(catalog),
            _ => {
                let node = match changed.entry(&op.node) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(Draft::open(pairs, &op.node)?),
                };
                let allowed = publisher.may_be_external(&op.node);
                allowed
                    .map_err(|error| error.to_string())
                    .and_then(|()| op.change(node, catalog))
            }
        };
        if let Err(what) = outcome {
            failed.push(Failed { op_index, what });
        }
    }
    Ok(match failed.is_empty() {
        true => Ok(changed),
        false => Err(failed),
    })
}

/// What the catalog shows of an operation's object.
struct Seen {
    node: Arc<NodeView>,
    instances: Vec<Arc<InstanceView>>,
}

impl Seen {
    fn of(catalog: &Catalog, node: &NodeName) -> Option<Self> {
        let node = catalog.node(node.as_str())?;
        let instances = catalog.instances_on(&node.record.id);
        Some(Self { node, instances })
    }

    fn service(&self, id: &str) -> Option<&Instance> {
        let mut all = self.instances.iter().map(|view| &*view.instance);
        all.find(|instance| instance.id.as_str() == id)
    }

    fn check(&self, id: &str) -> Option<(&CheckRecord, Option<&Instance>)> {
        let of_node = self.node.checks.iter().map(|check| (&**check, None));
        let of_instances = self.instances.iter().flat_map(|view| {
            let own = view.checks.iter().filter(|check| check.service.is_some());
            own.map(|check| (&**check, Some(&*view.instance)))
        });
        of_node
            .chain(of_instances)
            .find(|(check, _)| &*check.id == id)
    }
}

impl Wanted {
    fn found(&self, catalog: &Catalog) -> Result<(), String> {
        let seen = Seen::of(catalog, &self.node);
        let found = match (&self.object, &seen) {
            (_, None) => false,
            (Object::Node(_), Some(_)) => true,
            (Object::Service(id, _), Some(seen)) => seen.service(id).is_some(),
            (Object::Check(id, _), Some(seen)) => seen.check(id).is_some(),
        };
        found
            .then_some(())
            .ok_or_else(|| format!("{} doesn't exist", self.name()))
    }

    /// In Consul's words.
    fn name(&self) -> String {
        let node = &self.node;
        match &self.object {
            Object::Node(_) => format!("node \"{node}\""),
            Object::Service(id, _) => format!("service {id:?} on node \"{node}\""),
            Object::Check(id, _) => format!("check {id:?} on node \"{node}\""),
        }
    }

    /// Changes what is kept of the node.
    fn change(&self, node: &mut Draft<'_>, catalog: &Catalog) -> Result<(), String> {
        let said = |refused: Refused| refused.to_string();
        if let Verb::Cas(index) | Verb::DeleteCas(index) = self.verb
            && !self.is_at(index, node, catalog).map_err(said)?
        {
            let verb = match self.verb {
                Verb::Cas(_) => "set",
                _ => "delete",
            };
            return Err(format!("failed to {verb} {}, index is stale", self.name()));
        }
        let there = node.node().is_some();
        let changed = match &self.object {
            Object::Node(Some(described)) => node.describe(described),
            Object::Node(None) => node.remove(),
            Object::Service(_, Some(_)) | Object::Check(_, Some(_)) if !there => {
                node.need_node().map_err(said)?;
                return Err("Missing node registration".to_owned());
            }
            Object::Service(_, Some(instance)) => node.put_service(instance),
            Object::Check(_, Some(check)) => {
                if let Some(service) = &check.service
                    && node.service(service.as_str()).map_err(said)?.is_none()
                {
                    node.need_node().map_err(said)?;
                    return Err("Missing service registration".to_owned());
                }
                node.put_check(check)
            }
            Object::Service(id, None) => node.remove_service(id),
            Object::Check(id, None) => node.remove_check(id),
        };
        changed.map_err(said)
    }

    /// Whether the object is the one that the catalog shows with this index: what is kept may be newer.
    fn is_at(&self, index: u64, node: &mut Draft<'_>, catalog: &Catalog) -> Result<bool, Refused> {
        let seen = Seen::of(catalog, &self.node);
        Ok(match &self.object {
            Object::Node(_) => false,
            Object::Service(id, _) => {
                let shown = seen.as_ref().and_then(|seen| seen.service(id));
                match (node.service(id)?, shown) {
                    (Some(kept), Some(shown)) => shown.modify_stamp == index && shown.same_as(kept),
                    (None, _) => index == 0,
                    (Some(_), None) => false,
                }
            }
            Object::Check(id, _) => {
                let shown = seen.as_ref().and_then(|seen| seen.check(id));
                match (node.check(id)?, shown) {
                    (Some(kept), Some((shown, _))) => {
                        shown.modify_stamp == index && shown.same_as(kept)
                    }
                    (None, _) => index == 0,
                    (Some(_), None) => false,
                }
            }
        })
    }

    /// What the answer says of it; nothing of what was taken away.
    fn show(&self, catalog: &Catalog) -> Option<Value> {
        if matches!(self.verb, Verb::Delete | Verb::DeleteCas(_)) {
            return None;
        }
        let seen = Seen::of(catalog, &self.node)?;
        let (kind, mut value) = match &self.object {
            Object::Node(_) => ("Node", json!(render::node(&seen.node))),
            Object::Service(id, _) => ("Service", json!(render::service(seen.service(id)?))),
            Object::Check(id, _) => {
                let (check, instance) = seen.check(id)?;
                let node = seen.node.record.name.as_str();
                ("Check", json!(render::foreign_check(node, check, instance)))
            }
        };
        // No tags are `null` here.
        for field in ["Tags", "ServiceTags"] {
            if value.get(field).is_some_and(|tags| *tags == json!([])) {
                value[field] = Value::Null;
            }
        }
        Some(json!({kind: value}))
    }
}
