//! What a request needs: rights that must be there, and the shape of what is filtered.
//!
//! Keys, sessions, transactions, intentions and everything else that a server keeps is decided there. What is answered here
//! and not in this table needs a right to `operator`: new paths are closed until somebody says what they need.

use bytes::Bytes;
use http::{Method, Request};
use libmesh::model::InstanceId;
use vault_kv::Capability::{self, Read, Update};

use super::shapes::Shape;
use crate::{
    consul::{Inner, Refused, decode::Fields},
    http::query::{Query, decode},
};

/// See the module.
#[derive(Debug, Default)]
pub struct Needs {
    pub rights: Vec<(Capability, String)>,
    pub shape: Option<Shape>,
}

impl Needs {
    pub fn is_none(&self) -> bool {
        self.rights.is_empty() && self.shape.is_none()
    }

    fn right(capability: Capability, path: impl Into<String>) -> Self {
        Self {
            rights: vec![(capability, path.into())],
            shape: None,
        }
    }

    fn shape(shape: Shape) -> Self {
        Self {
            rights: Vec::new(),
            shape: Some(shape),
        }
    }
}

fn service(name: &str) -> String {
    format!("consul/service/{}", name.to_ascii_lowercase())
}

fn node(name: &str) -> String {
    format!("consul/node/{}", name.to_ascii_lowercase())
}

/// What `request` needs.
///
/// # Errors
/// Its body does not say what it is about.
pub fn of(inner: &Inner, request: &Request<Bytes>, query: &Query) -> Result<Needs, Refused> {
    let path = decode(request.uri().path());
    let Some(path) = path.strip_prefix("/v1/") else {
        return Ok(Needs::default());
    };
    let (group, rest) = path.split_once('/').unwrap_or((path, ""));
    let method = request.method();
    if *method == Method::OPTIONS {
        return Ok(Needs::default());
    }
    match group {
        "agent" => of_agent(inner, method, rest, request.body()),
        "catalog" => of_catalog(rest, request.body()),
        "health" => Ok(of_health(rest)),
        "query" => Ok(match rest.rsplit_once('/') {
            Some((_, "execute")) => Needs::shape(Shape::Executed),
            Some((_, "explain")) => Needs::shape(Shape::Explained),
            _ => Needs::default(),
        }),
        "event" => Ok(match rest.split_once('/') {
            Some(("fire", name)) => Needs::right(Update, format!("consul/event/{name}")),
            _ => Needs::shape(Shape::Events),
        }),
        "coordinate" => Ok(match (method, rest) {
            (&Method::GET, "datacenters") => Needs::default(),
            (&Method::GET, _) => Needs::shape(Shape::Coordinates),
            _ => Needs::right(Update, node(inner.about.node.as_str())),
        }),
        "connect" => Ok(match rest {
            "intentions/check" => {
                let destination = query.filled("destination").unwrap_or_default();
                let destination = destination.to_ascii_lowercase();
                Needs::right(Read, format!("mesh/intention/{destination}/"))
            }
            _ => Needs::default(),
        }),
        "discovery-chain" => Ok(Needs::right(Read, service(rest))),
        "operator" => Ok(operator(method)),
        "internal" if rest != "acl/authorize" => Ok(operator(method)),
        // Decided by the server, or said to everybody.
        _ => Ok(Needs::default()),
    }
}

fn operator(method: &Method) -> Needs {
    let capability = if *method == Method::GET { Read } else { Update };
    Needs::right(capability, "consul/operator")
}

fn of_agent(inner: &Inner, method: &Method, rest: &str, body: &Bytes) -> Result<Needs, Refused> {
    let own = inner.about.node.as_str();
    let agent = |capability| Needs::right(capability, format!("consul/agent/{own}"));
    let instance = |id: &str| {
        let id = InstanceId::parse(id).ok()?;
        let found = inner.catalog.local().service(&id)?;
        Some(service(found.service.as_str()))
    };
    // An instance or a check that there is not is told so by whoever looks for it.
    let of_instance = |capability, id: &str| {
        let name = instance(id).map(|path| Needs::right(capability, path));
        name.unwrap_or_default()
    };
    let of_check = |id: &str| match inner.catalog.local().check(id) {
        Some(check) => match &check.service {
            Some(owner) => of_instance(Update, owner.as_str()),
            None => Needs::right(Update, node(own)),
        },
        None => Needs::default(),
    };
    let (head, tail) = rest.split_once('/').unwrap_or((rest, ""));
    Ok(match (method, head, tail) {
        (_, "service", "register") => {
            let mut fields = Fields::parse(body)?;
            let (name, id) = (fields.text("Name")?, fields.text("ID")?);
            let mut needs = Needs::right(Update, service(&name));
            // What it takes the place of.
            let id = if id.is_empty() { name } else { id };
            needs
                .rights
                .extend(instance(&id).map(|path| (Update, path)));
            needs
        }
        (&Method::GET, "service", id) => of_instance(Read, id),
        (_, "service", tail) => {
            of_instance(Update, tail.split_once('/').map_or(tail, |(_, id)| id))
        }
        (_, "services", "") => Needs::shape(Shape::AgentServices),
        (_, "checks", "") => Needs::shape(Shape::AgentChecks),
        (_, "check", "register") => {
            let mut fields = Fields::parse(body)?;
            let named = [
                fields.text("ID")?,
                fields.text("CheckID")?,
                fields.text("Name")?,
            ];
            let id = named
                .into_iter()
                .find(|id| !id.is_empty())
                .unwrap_or_default();
            let mut needs = match fields.text("ServiceID")?.as_str() {
                "" => Needs::right(Update, node(own)),
                id => of_instance(Update, id),
            };
            // What it takes the place of.
            needs.rights.extend(of_check(&id).rights);
            needs
        }
        (_, "check", tail) => of_check(tail.split_once('/').map_or(tail, |(_, id)| id)),
        (_, "maintenance", "") => Needs::right(Update, node(own)),
        (_, "health", tail) => match tail.split_once('/').map(|(_, tail)| tail) {
            Some(tail) => match tail.split_once('/') {
                Some(("id", id)) => of_instance(Read, id),
                Some((_, name)) => Needs::right(Read, service(name)),
                None => Needs::default(),
            },
            None => Needs::default(),
        },
        (_, "members", "") => Needs::shape(Shape::Members),
        (&Method::GET, "version", "") => Needs::default(),
        (&Method::GET, "connect", "ca/roots") => Needs::default(),
        (_, "connect", tail) => match tail.strip_prefix("ca/leaf/") {
            Some(name) => Needs::right(Update, service(name)),
            None => {
                let target = Fields::parse(body)?.text("Target")?;
                Needs::right(Update, service(&target))
            }
        },
        (_, "force-leave", _) => Needs::right(Update, "consul/operator"),
        (&Method::GET, "self" | "host" | "metrics" | "monitor", _) => agent(Read),
        (_, "join" | "leave" | "reload" | "token", _) => agent(Update),
        (method, ..) => operator(method),
    })
}

fn of_catalog(rest: &str, body: &Bytes) -> Result<Needs, Refused> {
    let (head, _) = rest.split_once('/').unwrap_or((rest, ""));
    Ok(match head {
        "datacenters" => Needs::default(),
        "nodes" => Needs::shape(Shape::Nodes),
        "services" => Needs::shape(Shape::ServiceNames),
        "service" | "connect" | "gateway-services" => Needs::shape(Shape::CatalogEntries),
        "node" => Needs::shape(Shape::NodeServices),
        "node-services" => Needs::shape(Shape::NodeServiceList),
        // The server asks for the right to the node; the service is looked at here.
        "register" => {
            let mut fields = Fields::parse(body)?;
            match fields.take("Service").map(Fields::of).transpose()? {
                Some(mut registered) => Needs::right(Update, service(&registered.text("Service")?)),
                None => Needs::default(),
            }
        }
        "deregister" => Needs::default(),
        _ => Needs::right(Read, "consul/operator"),
    })
}

fn of_health(rest: &str) -> Needs {
    let (head, _) = rest.split_once('/').unwrap_or((rest, ""));
    match head {
        "service" | "connect" | "ingress" => Needs::shape(Shape::HealthEntries),
        "checks" | "node" | "state" => Needs::shape(Shape::Checks),
        _ => Needs::right(Read, "consul/operator"),
    }
}
