//! `/v1/catalog/register` and `/v1/catalog/deregister`: nodes that run no agent, with their services and checks, each a
//! pair of its own ([`kept`]); the server speaks for them in the catalog.
//!
//! A registration reads the node and what it names, commits what differs, and tells the mesh of just that: its cost does
//! not grow with what else the node has. That of taking an instance away grows with the checks of its node, among which its
//! own are looked for. Those that come together share a commit and a message to the mesh.

mod draft;
pub mod kept;

use std::sync::Arc;

use http::StatusCode;
use libmesh::{
    catalog::Catalog,
    identity::BoxFuture,
    model::{CheckRecord, Datacenter, Health, Instance, InstanceId, NodeName},
};
use serde_json::Value;
use uuid::Uuid;

pub(super) use draft::Draft;
use kept::{Described, Part};

use super::{Opener, Pairs, StoreError, pairs::TxnError};
use crate::{
    consul::{Refused, agent_services, bad_request, decode::Fields, server_error},
    http::{BoxFuture as Handling, Call, Reply, Routes},
};

/// How often a change is tried again that somebody else's came before.
pub(super) const ATTEMPTS: usize = 16;

/// Makes what is kept of external nodes known to the mesh.
pub trait Publisher: Send + Sync + 'static {
    /// Whether a name may be an external node's: not a member's.
    ///
    /// # Errors
    /// Why not.
    fn may_be_external(&self, name: &NodeName) -> Result<(), StoreError>;

    /// The datacenter of all nodes here, once this server is one.
    fn datacenter(&self) -> Option<Datacenter>;

    /// The catalog that shows them, once this server is a node.
    fn catalog(&self) -> Option<Catalog>;

    /// Tells the mesh what is now kept of parts of a node. Returns when this server's catalog shows it.
    fn publish<'a>(
        &'a self,
        name: &'a NodeName,
        parts: Vec<Part>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
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
        Box::pin(async move { to_its_end(answer).await.unwrap_or_else(Reply::from) })
    }
}

/// Goes on when the client goes: what is committed has to be told.
pub(super) async fn to_its_end(
    work: impl Future<Output = Result<Reply, Refused>> + Send + 'static,
) -> Result<Reply, Refused> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|_| Err(server_error("the registration ended abnormally")))
}

/// What a registration asks for.
pub(super) struct Registration {
    pub node: NodeName,
    /// `None`: what is known of the node stays.
    pub described: Option<Described>,
    service: Option<Instance>,
    checks: Vec<CheckRecord>,
}

/// What a body may have besides; it means nothing here.
const ELSEWHERE: &[&str] = &["Namespace", "Partition", "PeerName", "Token"];

/// There is only this one.
fn datacenter(fields: &mut Fields, publisher: &dyn Publisher) -> Result<(), Refused> {
    let asked = fields.text("Datacenter")?;
    let own = publisher.datacenter();
    match own.is_none_or(|own| asked.is_empty() || asked == own.as_str()) {
        true => Ok(()),
        false => Err(server_error("No path to datacenter")),
    }
}

async fn register(
    pairs: Pairs,
    publisher: Arc<dyn Publisher>,
    call: Call,
) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    datacenter(&mut fields, &*publisher)?;
    let asked = parse(fields)?;
    publisher.may_be_external(&asked.node)?;
    change(&pairs, &*publisher, &asked.node, |draft| {
        if let Some(described) = &asked.described
            && draft.node() != Some(described)
        {
            draft.describe(described)?;
        }
        let exists = draft.node().is_some();
        if !exists || (asked.service.is_none() && asked.checks.is_empty()) {
            draft.need_node()?;
        }
        if !exists {
            return Err(server_error(
                "Must provide address if SkipNodeUpdate is not set",
            ));
        }
        if let Some(service) = &asked.service {
            draft.put_service(service)?;
        }
        for check in &asked.checks {
            draft.put_check(check)?;
        }
        Ok(())
    })
    .await
}

async fn deregister(
    pairs: Pairs,
    publisher: Arc<dyn Publisher>,
    call: Call,
) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    datacenter(&mut fields, &*publisher)?;
    let (node, service, check) = (
        fields.text("Node")?,
        fields.text("ServiceID")?,
        fields.text("CheckID")?,
    );
    fields.ignore(&["Address"]);
    fields.ignore(ELSEWHERE);
    fields.finish()?;
    if node.is_empty() {
        return Err(server_error("Must provide node"));
    }
    // What cannot be a name, nobody has.
    let Ok(node) = NodeName::parse(&node) else {
        return Ok(yes());
    };
    change(&pairs, &*publisher, &node, |draft| {
        if !service.is_empty() {
            draft.remove_service(&service)
        } else if !check.is_empty() {
            draft.remove_check(&check)
        } else {
            draft.remove()
        }
    })
    .await
}

/// Changes what is kept of a node, as `decide` says, and tells the mesh.
async fn change(
    pairs: &Pairs,
    publisher: &dyn Publisher,
    node: &NodeName,
    decide: impl Fn(&mut Draft<'_>) -> Result<(), Refused>,
) -> Result<Reply, Refused> {
    for _ in 0..ATTEMPTS {
        let mut draft = Draft::open(pairs, node)?;
        decide(&mut draft)?;
        let changes = draft.changes();
        if changes.parts.is_empty() {
            return Ok(yes());
        }
        match pairs.apply_for(changes.needs, changes.ops).await {
            Ok(_) => {}
            // Somebody else's change came before: what is there now may allow another outcome.
            Err(TxnError::Refused(_)) => continue,
            Err(TxnError::Store(error)) => return Err(error.into()),
        }
        publisher.publish(node, changes.parts).await?;
        return Ok(yes());
    }
    Err(server_error(format!(
        "node {node} is changed by too many at once"
    )))
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
    fields.ignore(&["Locality"]);
    fields.ignore(ELSEWHERE);
    fields.finish()?;
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
