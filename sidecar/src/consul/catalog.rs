//! `/v1/catalog/`: reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use http::StatusCode;
use libmesh::{
    catalog::{Doubtful, InstanceView, NodeView, Select, ServiceView},
    model::Proxy,
};
use serde_json::{Value, json};

use super::{
    Inner, Refused,
    answers::{Question, State},
    bad_request,
    blocking::Blocking,
    coordinates::sort_near,
    filter::{self, Filter},
    handler, reading, render,
};
use crate::http::{Call, Reply, Routes, json as json_reply};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/catalog/datacenters", handler(inner, datacenters))
        .get("/v1/catalog/nodes", reading(inner, nodes))
        .get("/v1/catalog/services", reading(inner, services))
        .get("/v1/catalog/service/*name", reading(inner, service))
        .get("/v1/catalog/connect/*name", reading(inner, connect))
        .get(
            "/v1/catalog/gateway-services/*name",
            reading(inner, gateway_services),
        )
        .get("/v1/catalog/node/:name", reading(inner, node))
        .get(
            "/v1/catalog/node-services/:name",
            reading(inner, node_services),
        )
}

async fn datacenters(inner: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    let names = [inner.about.datacenter.as_str()];
    Ok(json_reply(StatusCode::OK, &names))
}

async fn nodes(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::NODE)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let mut nodes = inner.catalog.nodes();
    sort_near(&inner, &call, &mut nodes, |node| node.record.id);
    let list: Vec<_> = nodes
        .iter()
        .filter(|node| has_meta(&call, node))
        .map(|node| render::node(node))
        .collect();
    let reply = blocking.reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}

async fn services(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::CATALOG_ENTRY)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let reply = match call.query.filled("filter") {
        None => {
            let tags = inner.catalog.service_tags(|node| has_meta(&call, node));
            let names: BTreeMap<&str, BTreeSet<&str>> = tags
                .iter()
                .map(|(name, tags)| (name.as_str(), tags.iter().map(|tag| &**tag).collect()))
                .collect();
            blocking.reply(index, &names)
        }
        Some(_) => blocking.reply(index, &tags_of_those(&inner, &call, &filter)),
    };
    Ok(inner.answers.keep(question, reply))
}

/// The services with instances that pass, and the tags of these. Looks at every instance.
fn tags_of_those(
    inner: &Inner,
    call: &Call,
    filter: &Filter,
) -> BTreeMap<String, BTreeSet<Arc<str>>> {
    let nodes = inner.catalog.nodes();
    let nodes = nodes.iter().filter(|node| has_meta(call, node));
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for view in nodes.flat_map(|node| inner.catalog.instances_on(&node.record.id)) {
        if filter.passes(&render::catalog_entry(&view, Way::Plain)) {
            let tags = found.entry(view.instance.service.to_string());
            tags.or_default().extend(view.instance.tags.iter().cloned());
        }
    }
    found
}

async fn service(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    reached(inner, call, Way::Plain).await
}

async fn connect(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    reached(inner, call, Way::Connect).await
}

async fn reached(inner: Arc<Inner>, call: Call, way: Way) -> Result<Reply, Refused> {
    let name = service_name(&call)?;
    let proxies = way.proxies(name);
    let filter = Filter::of(&call, filter::CATALOG_ENTRY)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking
        .service(&inner, &call, name, proxies.as_deref())
        .await;
    let state = State::of_service(&inner, name, proxies.as_deref());
    let question = Question::of(&call, state);
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let views = services_of(&inner, name, proxies.as_deref());
    let mut chosen: Vec<_> = way.chosen(&call, name, &views, &Select::any()).collect();
    sort_near(&inner, &call, &mut chosen, |view| view.node.record.id);
    let list: Vec<_> = chosen
        .into_iter()
        .map(|instance| render::catalog_entry(instance, way))
        .collect();
    let reply = blocking.reply(index, &filter.keep(list));
    Ok(inner.answers.keep(question, reply))
}

async fn node(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::SERVICE)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let Some(node) = one(&inner, &call) else {
        return Ok(blocking.reply(index, &Value::Null));
    };
    let instances = inner.catalog.instances_on(&node.record.id);
    let services: BTreeMap<&str, _> = instances
        .iter()
        .map(|view| (view.instance.id.as_str(), render::service(&view.instance)))
        .filter(|(_, service)| filter.passes(service))
        .collect();
    let value = json!({"Node": render::node(&node), "Services": services});
    let reply = blocking.reply(index, &value);
    Ok(inner.answers.keep(question, reply))
}

async fn node_services(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::SERVICE)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let question = Question::of(&call, State::of_all(&inner));
    if let Some(body) = inner.answers.find(&question) {
        return Ok(blocking.kept(index, body));
    }
    let Some(node) = one(&inner, &call) else {
        return Ok(blocking.reply(index, &json!({"Node": null, "Services": null})));
    };
    let instances = inner.catalog.instances_on(&node.record.id);
    let services: Vec<_> = instances
        .iter()
        .map(|view| render::service(&view.instance))
        .collect();
    let value = json!({"Node": render::node(&node), "Services": filter.keep(services)});
    let reply = blocking.reply(index, &value);
    Ok(inner.answers.keep(question, reply))
}

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// At the port of each instance.
    Plain,
    /// Over mTLS: at the listener of an instance's sidecar, or at one of the proxies that stand in front of the service.
    Connect,
}

impl Way {
    /// The service that proxies of `name` are instances of, by Consul's rule for their names, where they are wanted.
    pub fn proxies(self, name: &str) -> Option<String> {
        (self == Self::Connect).then(|| format!("{name}{}", Proxy::SUFFIX))
    }

    /// Of the instances that are [`wanted`], those that are reached so.
    pub fn chosen<'v>(
        self,
        call: &Call,
        name: &str,
        views: &'v [Arc<ServiceView>],
        select: &Select,
    ) -> impl Iterator<Item = &'v Arc<InstanceView>> {
        let all = views
            .iter()
            .flat_map(|view| wanted(call, Some(view), select.clone()));
        all.filter(move |view| {
            let instance = &view.instance;
            let of_it = |proxy: &Arc<Proxy>| proxy.service.as_str() == name;
            match self {
                Self::Plain => true,
                Self::Connect if instance.service.as_str() == name => instance.mesh_port.is_some(),
                Self::Connect => instance.proxy.as_ref().is_some_and(of_it),
            }
        })
    }
}

/// What the catalog shows of a service and of its proxies.
pub fn services_of(inner: &Inner, name: &str, proxies: Option<&str>) -> Vec<Arc<ServiceView>> {
    let names = std::iter::once(name).chain(proxies);
    names
        .filter_map(|name| inner.catalog.service(name))
        .collect()
}

/// What gateways lead to: there are none.
pub async fn nothing(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let name = service_name(&call)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.service(&inner, &call, name, None).await;
    Ok(blocking.reply(index, &[(); 0]))
}

/// What gateways lead to: there are none.
async fn gateway_services(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    if call.params.get("name").is_empty() {
        return Err(bad_request("Missing gateway name"));
    }
    nothing(inner, call).await
}

/// The node of the path, unless another mesh's is asked for.
pub fn one(inner: &Inner, call: &Call) -> Option<Arc<NodeView>> {
    let node = inner.catalog.node(call.params.get("name"))?;
    call.query.filled("peer").is_none().then_some(node)
}

/// The `:name` of a service route.
pub fn service_name(call: &Call) -> Result<&str, Refused> {
    match call.params.get("name") {
        "" => Err(bad_request("Missing service name")),
        name => Ok(name),
    }
}

/// The instances of a service that have every `tag` (or version) asked for and are fit for `select`, on nodes that have
/// every `node-meta` asked for.
pub fn wanted<'v>(
    call: &Call,
    view: Option<&'v ServiceView>,
    select: Select,
) -> impl Iterator<Item = &'v Arc<InstanceView>> {
    let tags = call.query.all("tag").filter(|tag| !tag.is_empty());
    // Consul knows no doubt.
    let select = tags
        .fold(select, Select::subset)
        .doubtful(Doubtful::Include);
    let instances = view.map(|view| view.select(&select)).unwrap_or_default();
    instances
        .into_iter()
        .filter(move |instance| has_meta(call, &instance.node))
}

/// Whether a node has every `node-meta=key:value` asked for, and is not asked for as one of another mesh: of those none
/// is known here.
pub fn has_meta(call: &Call, node: &NodeView) -> bool {
    if call.query.filled("peer").is_some() {
        return false;
    }
    let mut asked = call.query.all("node-meta").filter(|pair| !pair.is_empty());
    let first = asked.next();
    let Some(first) = first else {
        return true;
    };
    let meta = render::node_meta(node);
    std::iter::once(first).chain(asked).all(|pair| {
        let (key, value) = pair.split_once(':').unwrap_or((pair, ""));
        meta.get(key).is_some_and(|own| own == value)
    })
}
