//! `/v1/catalog/register` and `/v1/catalog/deregister`: nodes that run no agent, with their services and checks. Kept as
//! pairs `external/<node>`; the server speaks for them in the catalog.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use http::StatusCode;
use libmesh::{
    catalog::Catalog,
    identity::BoxFuture,
    model::{
        CheckRecord, Datacenter, External as NotMember, Health, Instance, InstanceId, NodeId,
        NodeName, NodeRecord,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;
use vault_kv::KvOp;
use zeroize::Zeroizing;

use super::{Opener, Pairs, Scope, StoreError};
use crate::{
    consul::{Refused, agent_services, bad_request, decode::Fields, server_error},
    http::{BoxFuture as Handling, Call, Reply, Routes},
};

/// Where external nodes are kept.
pub const PREFIX: &str = "external/";

/// How often a change is tried again that somebody else's came before.
pub(super) const ATTEMPTS: usize = 16;

/// An external node's value in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct External {
    /// Where it is.
    pub address: IpAddr,
    /// The id it was registered with.
    pub uuid: Option<Uuid>,
    /// Its metadata.
    pub meta: BTreeMap<String, String>,
    /// Further addresses, by name.
    pub tagged_addresses: BTreeMap<String, String>,
    /// Its instances, by id.
    pub services: BTreeMap<String, Instance>,
    /// Its checks, by id.
    pub checks: BTreeMap<String, CheckRecord>,
}

impl External {
    /// What is said of the node itself.
    pub fn record(&self, id: NodeId, name: &NodeName, datacenter: &Datacenter) -> NodeRecord {
        fn shared(pairs: &BTreeMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect()
        }
        NodeRecord {
            datacenter: datacenter.clone(),
            meta: shared(&self.meta),
            version: "".into(),
            external: Some(Box::new(NotMember {
                uuid: self.uuid.map(|uuid| *uuid.as_bytes()),
                tagged_addresses: shared(&self.tagged_addresses),
            })),
            ..NodeRecord::new(id, name.clone(), self.address, 0)
        }
    }
}

impl External {
    /// Whether the catalog would take it: what it would refuse must not be kept.
    pub(super) fn validate(&self, name: &NodeName) -> Result<(), Refused> {
        let record = self.record(NodeId([0; 16]), name, &Datacenter::default());
        let valid = record.validate();
        valid.map_err(|error| bad_request(format!("Invalid node: {error}")))
    }

    /// Takes an instance and its checks away.
    pub(super) fn remove_service(&mut self, id: &str) {
        self.services.remove(id);
        let of_it = |check: &CheckRecord| check.service.as_ref().is_some_and(|it| *it == id);
        self.checks.retain(|_, check| !of_it(check));
    }
}

/// Makes what is kept of external nodes known to the mesh.
pub trait Publisher: Send + Sync + 'static {
    /// Whether a name may be an external node's: not a member's.
    ///
    /// # Errors
    /// Why not.
    fn may_be_external(&self, name: &NodeName) -> Result<(), StoreError>;

    /// The catalog that shows them, once this server is a node.
    fn catalog(&self) -> Option<Catalog>;

    /// Tells the mesh what is kept of a node, or that it is gone. Returns when this server's catalog shows it.
    fn publish<'a>(&'a self, name: &'a NodeName) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// The routes. `open` opens the pairs in which the nodes are kept.
pub fn routes(open: &Opener, publisher: &Arc<dyn Publisher>) -> Routes {
    Routes::new()
        .put("/v1/catalog/register", on(open, publisher, register))
        .put("/v1/catalog/deregister", on(open, publisher, deregister))
}

fn on<F, R>(
    open: &Opener,
    publisher: &Arc<dyn Publisher>,
    run: F,
) -> impl Fn(Call) -> Handling<Reply> + Send + Sync + 'static
where
    F: Fn(Pairs, Arc<dyn Publisher>, Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Refused>> + Send + 'static,
{
    let (open, publisher) = (Arc::clone(open), Arc::clone(publisher));
    move |call| {
        let answer = run(open(&call), Arc::clone(&publisher), call);
        Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
    }
}

/// What a registration asks for.
pub(super) struct Registration {
    pub node: NodeName,
    /// `None`: what is known of the node stays.
    pub described: Option<Described>,
    service: Option<Instance>,
    checks: Vec<CheckRecord>,
}

/// What is said of a node itself.
pub(super) struct Described {
    address: IpAddr,
    uuid: Option<Uuid>,
    meta: BTreeMap<String, String>,
    tagged_addresses: BTreeMap<String, String>,
}

async fn register(
    pairs: Pairs,
    publisher: Arc<dyn Publisher>,
    call: Call,
) -> Result<Reply, Refused> {
    let asked = parse(Fields::parse(call.body())?)?;
    publisher.may_be_external(&asked.node)?;
    change(&pairs, &asked.node, |known| {
        let mut node = match (known, &asked.described) {
            (known, Some(described)) => described.of(known),
            (Some(known), None) => known,
            (None, None) => {
                return Err(server_error(
                    "Must provide address if SkipNodeUpdate is not set",
                ));
            }
        };
        if let Some(service) = &asked.service {
            node.services
                .insert(service.id.to_string(), service.clone());
        }
        for check in &asked.checks {
            if let Some(service) = &check.service
                && !node.services.contains_key(service.as_str())
            {
                return Err(server_error(format!(
                    "Unknown service ID '{service}' for check ID '{}'",
                    check.id
                )));
            }
            node.checks.insert(check.id.to_string(), check.clone());
        }
        node.validate(&asked.node)?;
        Ok(Some(node))
    })
    .await?;
    publisher.publish(&asked.node).await?;
    Ok(yes())
}

impl Described {
    /// The node, so described, with the instances and checks that it has.
    pub(super) fn of(&self, known: Option<External>) -> External {
        let (services, checks) = known
            .map(|known| (known.services, known.checks))
            .unwrap_or_default();
        External {
            address: self.address,
            uuid: self.uuid,
            meta: self.meta.clone(),
            tagged_addresses: self.tagged_addresses.clone(),
            services,
            checks,
        }
    }
}

async fn deregister(
    pairs: Pairs,
    publisher: Arc<dyn Publisher>,
    call: Call,
) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let (node, service, check) = (
        fields.text("Node")?,
        fields.text("ServiceID")?,
        fields.text("CheckID")?,
    );
    if node.is_empty() {
        return Err(server_error("Must provide node"));
    }
    // What cannot be a name, nobody has.
    let Ok(node) = NodeName::parse(&node) else {
        return Ok(yes());
    };
    change(&pairs, &node, |known| {
        let Some(mut node) = known else {
            return Ok(None);
        };
        if !service.is_empty() {
            node.remove_service(&service);
        } else if !check.is_empty() {
            node.checks.remove(&check);
        } else {
            return Ok(None);
        }
        Ok(Some(node))
    })
    .await?;
    publisher.publish(&node).await?;
    Ok(yes())
}

/// Changes what is kept of a node; `None` from `decide`: nothing is, from then on.
async fn change(
    pairs: &Pairs,
    node: &NodeName,
    decide: impl Fn(Option<External>) -> Result<Option<External>, Refused>,
) -> Result<(), Refused> {
    for _ in 0..ATTEMPTS {
        let (known, index) = kept(pairs, node)?;
        let wanted = decide(known.clone())?;
        if wanted == known {
            return Ok(());
        }
        if pairs.change(to_keep(node, wanted.as_ref(), index)).await? {
            return Ok(());
        }
    }
    Err(server_error(format!(
        "node {node} is changed by too many at once"
    )))
}

/// What is kept of a node, and the ledger index of that; 0 for nothing.
pub(super) fn kept(pairs: &Pairs, node: &NodeName) -> Result<(Option<External>, u64), Refused> {
    let (found, _) = pairs.read(Scope::Key(&format!("{PREFIX}{node}")))?;
    let Some(pair) = found.first() else {
        return Ok((None, 0));
    };
    let known = serde_json::from_slice(&pair.value).map_err(|error| {
        server_error(format!(
            "what is kept of node {node} is not readable: {error}"
        ))
    })?;
    Ok((Some(known), pair.modified))
}

/// The operation that keeps `wanted` of a node, if what is kept is still that of `index`.
pub(super) fn to_keep(node: &NodeName, wanted: Option<&External>, index: u64) -> KvOp {
    let (key, cas) = (format!("{PREFIX}{node}"), Some(index));
    match wanted {
        Some(wanted) => KvOp::Set {
            key,
            value: Zeroizing::new(serde_json::to_vec(wanted).expect("plain data encodes")),
            flags: 0,
            cas,
            ttl: None,
        },
        None => KvOp::Delete { key, cas },
    }
}

pub(super) fn parse(mut fields: Fields) -> Result<Registration, Refused> {
    let (node, address, id) = (
        fields.text("Node")?,
        fields.text("Address")?,
        fields.text("ID")?,
    );
    let skip = fields.flag("SkipNodeUpdate")?;
    let meta = fields.pairs("NodeMeta")?;
    let tagged_addresses = fields.pairs("TaggedAddresses")?;
    let (service, one, many) = (
        fields.take("Service"),
        fields.take("Check"),
        fields.items("Checks")?,
    );
    if node.is_empty() {
        return Err(server_error("Must provide node"));
    }
    if address.is_empty() && !skip {
        return Err(server_error(
            "Must provide address if SkipNodeUpdate is not set",
        ));
    }
    let uuid = match id.as_str() {
        "" => None,
        id if id.len() != 36 => {
            return Err(server_error("Bad node ID: uuid string is wrong length"));
        }
        id => Some(
            Uuid::try_parse(id).map_err(|error| server_error(format!("Bad node ID: {error}")))?,
        ),
    };
    let invalid =
        |error: libmesh::model::InvalidField| bad_request(format!("Invalid node: {error}"));
    let node = NodeName::parse(&node).map_err(invalid)?;
    let described = match skip {
        true => None,
        false => Some(Described {
            address: address.parse().map_err(|_| {
                bad_request(format!(
                    "Invalid node: address: {address:?} is no IP address (host names are for services)"
                ))
            })?,
            uuid,
            meta,
            tagged_addresses,
        }),
    };
    let service = match service {
        Some(service) => Some(agent_services::external(Fields::of(service)?)?),
        None => None,
    };
    let checks = one.into_iter().chain(many).map(check);
    Ok(Registration {
        node,
        described,
        service,
        checks: checks.collect::<Result<_, _>>()?,
    })
}

/// A check that somebody else runs. Its output is not passed on.
pub(super) fn check(value: Value) -> Result<CheckRecord, Refused> {
    let mut fields = Fields::of(value)?;
    let (id, name) = (fields.text("CheckID")?, fields.text("Name")?);
    let (status, notes) = (fields.text("Status")?, fields.text("Notes")?);
    let (service, kind) = (fields.text("ServiceID")?, fields.text("Type")?);
    let id = if id.is_empty() { &name } else { &id };
    let service = match service.as_str() {
        "" => None,
        service => {
            Some(InstanceId::parse(service).map_err(|error| bad_request(error.to_string()))?)
        }
    };
    let status = match status.as_str() {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        "critical" | "" => Health::Critical,
        "maintenance" => Health::Maintenance,
        other => return Err(bad_request(format!("Invalid check status: '{other}'"))),
    };
    let record = CheckRecord {
        id: id.as_str().into(),
        name: name.as_str().into(),
        service,
        status,
        kind: kind.as_str().into(),
        notes: notes.as_str().into(),
        create_stamp: 0,
        modify_stamp: 0,
    };
    record
        .validate()
        .map_err(|error| bad_request(format!("Invalid check: {error}")))?;
    Ok(record)
}

fn yes() -> Reply {
    crate::http::json(StatusCode::OK, &true)
}
