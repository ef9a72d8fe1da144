//! Views of the catalog in Consul's shapes.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use libmesh::{
    catalog::{InstanceView, NodeView},
    health::How,
    model::{CheckRecord, Health, Host, Instance, Kind, Liveness, Meta, NodeId, NodeRecord},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Inner, catalog::Way, decode::go_format};

type Strings<'a> = BTreeMap<&'a str, Cow<'a, str>>;

/// A node.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node<'a> {
    #[serde(rename = "ID")]
    id: String,
    node: &'a str,
    address: IpAddr,
    datacenter: &'a str,
    tagged_addresses: Option<Strings<'a>>,
    meta: Option<Strings<'a>>,
    create_index: u64,
    modify_index: u64,
}

/// An instance, as `/v1/health/service` and `/v1/catalog/node` have it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'static str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [Arc<str>],
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tagged_addresses: Option<Value>,
    /// Consul says `null` here for none, and `{}` in `/v1/catalog/service`.
    meta: Option<&'a Meta>,
    port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port<'a>>,
    weights: Weights,
    enable_tag_override: bool,
    proxy: Proxy<'a>,
    connect: Connect,
    peer_name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<Locality<'a>>,
    create_index: u64,
    modify_index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Port<'a> {
    name: &'a str,
    port: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Locality<'a> {
    region: &'a str,
    zone: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u16,
    warning: u16,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Connect {
    /// It speaks mTLS itself, at the port that is shown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Proxy<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    destination_service_name: &'a str,
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "str::is_empty")]
    destination_service_id: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    local_service_address: String,
    #[serde(skip_serializing_if = "is_zero")]
    local_service_port: u16,
    mode: &'static str,
    mesh_gateway: Empty,
    expose: Empty,
}

/// A check.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Check<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    check_id: &'a str,
    name: &'a str,
    status: &'static str,
    notes: &'a str,
    output: String,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [Arc<str>],
    r#type: &'a str,
    interval: String,
    timeout: String,
    exposed_port: u16,
    definition: Empty,
    create_index: u64,
    modify_index: u64,
}

/// An entry of `/v1/health/service`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthEntry<'a> {
    node: Node<'a>,
    service: Service<'a>,
    checks: Vec<Check<'a>>,
}

/// An entry of `/v1/catalog/service`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogEntry<'a> {
    #[serde(rename = "ID")]
    id: String,
    node: &'a str,
    address: IpAddr,
    datacenter: &'a str,
    tagged_addresses: Option<Strings<'a>>,
    node_meta: Option<Strings<'a>>,
    service_kind: &'static str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [Arc<str>],
    service_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tagged_addresses: Option<Value>,
    service_weights: Weights,
    service_meta: &'a Meta,
    service_port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_ports: Vec<Port<'a>>,
    service_socket_path: &'static str,
    service_enable_tag_override: bool,
    service_proxy: Proxy<'a>,
    service_connect: Connect,
    service_locality: Option<Locality<'a>>,
    create_index: u64,
    modify_index: u64,
}

/// A node id in the form Consul's clients expect of one.
pub fn uuid(id: &NodeId) -> String {
    uuid::Uuid::from_bytes(*id.as_bytes()).to_string()
}

/// Consul's word for a status; it knows maintenance only as a kind of check.
pub fn status(health: Health) -> &'static str {
    match health {
        Health::Maintenance => Health::Critical.as_str(),
        other => other.as_str(),
    }
}

/// A node.
pub fn node(view: &NodeView) -> Node<'_> {
    let record = &view.record;
    Node {
        id: node_id(record),
        node: record.name.as_str(),
        address: record.address,
        datacenter: record.datacenter.as_str(),
        tagged_addresses: node_addresses(record),
        meta: shown_meta(view),
        create_index: view.revision,
        modify_index: view.revision,
    }
}

/// A member's own id; of others the one they were registered with.
fn node_id(record: &NodeRecord) -> String {
    match &record.external {
        None => uuid(&record.id),
        Some(external) => {
            let given = external.uuid.map(uuid::Uuid::from_bytes);
            given.map(|uuid| uuid.to_string()).unwrap_or_default()
        }
    }
}

/// A member's, by all the names that Consul gives them; of others those they were registered with.
fn node_addresses(record: &NodeRecord) -> Option<Strings<'_>> {
    if let Some(external) = &record.external {
        let given = external.tagged_addresses.iter();
        let given: Strings<'_> = given
            .map(|(tag, address)| (&**tag, Cow::Borrowed(&**address)))
            .collect();
        return (!given.is_empty()).then_some(given);
    }
    let address = record.address;
    let (lan, wan) = match address {
        IpAddr::V4(_) => ("lan_ipv4", "wan_ipv4"),
        IpAddr::V6(_) => ("lan_ipv6", "wan_ipv6"),
    };
    let text = || Cow::Owned(address.to_string());
    Some(BTreeMap::from([
        ("lan", text()),
        ("wan", text()),
        (lan, text()),
        (wan, text()),
    ]))
}

/// Without pairs, one that is no member has none at all.
fn shown_meta(view: &NodeView) -> Option<Strings<'_>> {
    let meta = node_meta(view);
    (view.record.is_member() || !meta.is_empty()).then_some(meta)
}

/// A node's own pairs, and the two that Consul adds for members.
pub fn node_meta(view: &NodeView) -> Strings<'_> {
    let own = view.record.meta.iter();
    let mut meta: Strings<'_> = own
        .map(|(key, value)| (&**key, Cow::Borrowed(&**value)))
        .collect();
    if view.record.is_member() {
        meta.insert("consul-network-segment", Cow::Borrowed(""));
        meta.insert("consul-version", Cow::Borrowed(&view.record.version));
    }
    meta
}

/// The addresses that were given, and those that Consul adds to them when the instance's own is an IP; `None` when
/// there are none.
pub fn tagged_addresses(instance: &Instance) -> Option<Value> {
    let entry = |host: &Host, port: u16| json!({"Address": host.to_string(), "Port": port});
    let mut all = serde_json::Map::new();
    if let Some(own @ Host::Ip(ip)) = &instance.address {
        let (lan, wan) = match ip {
            IpAddr::V4(_) => ("lan_ipv4", "wan_ipv4"),
            IpAddr::V6(_) => ("lan_ipv6", "wan_ipv6"),
        };
        for tag in [lan, wan] {
            all.insert(tag.to_owned(), entry(own, instance.port));
        }
    }
    for given in &instance.tagged_addresses {
        all.insert(given.tag.to_string(), entry(&given.host, given.port));
    }
    (!all.is_empty()).then_some(Value::Object(all))
}

fn ports(instance: &Instance) -> Vec<Port<'_>> {
    let ports = instance.ports.iter().map(|named| Port {
        name: &named.name,
        port: named.port,
        default: named.port == instance.port,
    });
    ports.collect()
}

fn locality(instance: &Instance) -> Option<Locality<'_>> {
    instance.locality.as_ref().map(|locality| Locality {
        region: &locality.region,
        zone: &locality.zone,
    })
}

fn weights(instance: &Instance) -> Weights {
    Weights {
        passing: instance.weights.passing,
        warning: instance.weights.warning,
    }
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

fn proxy(instance: &Instance) -> Proxy<'_> {
    let of = instance.proxy.as_deref();
    let address = of.and_then(|proxy| proxy.address.as_ref());
    Proxy {
        destination_service_name: of.map_or("", |proxy| proxy.service.as_str()),
        destination_service_id: of
            .and_then(|proxy| proxy.instance.as_ref())
            .map_or("", |id| id.as_str()),
        local_service_address: address.map(Host::to_string).unwrap_or_default(),
        local_service_port: of.map_or(0, |proxy| proxy.port),
        mode: "",
        mesh_gateway: Empty {},
        expose: Empty {},
    }
}

fn own_address(instance: &Instance) -> String {
    let address = instance.address.as_ref();
    address.map(Host::to_string).unwrap_or_default()
}

/// An instance.
pub fn service(instance: &Instance) -> Service<'_> {
    service_at(instance, instance.port)
}

/// The same, reached at a port.
fn service_at(instance: &Instance, port: u16) -> Service<'_> {
    Service {
        kind: instance.kind.as_str(),
        id: instance.id.as_str(),
        service: instance.service.as_str(),
        tags: &instance.tags,
        address: own_address(instance),
        tagged_addresses: tagged_addresses(instance),
        meta: (!instance.meta.is_empty()).then_some(&instance.meta),
        port,
        ports: ports(instance),
        weights: weights(instance),
        enable_tag_override: instance.enable_tag_override,
        proxy: proxy(instance),
        connect: connect(instance, port),
        peer_name: "",
        locality: locality(instance),
        create_index: instance.create_stamp,
        modify_index: instance.modify_stamp,
    }
}

/// Where an instance is reached.
fn port(instance: &Instance, way: Way) -> u16 {
    match way {
        Way::Plain => instance.port,
        Way::Connect => instance.mesh_port.unwrap_or(instance.port),
    }
}

fn connect(instance: &Instance, port: u16) -> Connect {
    Connect {
        native: instance.mesh_port == Some(port),
    }
}

/// An instance of this agent, as `/v1/agent/services` has it: without what only the catalog adds.
pub fn agent_service(inner: &Inner, instance: &Instance) -> Value {
    let mut value = json!({
        "ID": instance.id.as_str(),
        "Service": instance.service.as_str(),
        "Tags": &instance.tags,
        "Meta": &instance.meta,
        "Port": instance.port,
        "Address": own_address(instance),
        "Weights": weights(instance),
        "EnableTagOverride": instance.enable_tag_override,
        "Datacenter": inner.about.datacenter.as_str(),
    });
    if let Some(tagged) = tagged_addresses(instance) {
        value["TaggedAddresses"] = tagged;
    }
    if instance.kind != Kind::Typical {
        value["Kind"] = json!(instance.kind.as_str());
    }
    if instance.proxy.is_some() {
        value["Proxy"] = json!(proxy(instance));
    }
    if instance.mesh_port == Some(instance.port) {
        value["Connect"] = json!(connect(instance, instance.port));
    }
    if !instance.ports.is_empty() {
        value["Ports"] = json!(ports(instance));
    }
    if let Some(locality) = locality(instance) {
        value["Locality"] = json!(locality);
    }
    value
}

/// An entry of `/v1/catalog/service`.
pub fn catalog_entry(view: &InstanceView, way: Way) -> CatalogEntry<'_> {
    let (record, instance) = (&view.node.record, &*view.instance);
    let port = port(instance, way);
    CatalogEntry {
        id: node_id(record),
        node: record.name.as_str(),
        address: record.address,
        datacenter: record.datacenter.as_str(),
        tagged_addresses: node_addresses(record),
        node_meta: shown_meta(&view.node),
        service_kind: instance.kind.as_str(),
        service_id: instance.id.as_str(),
        service_name: instance.service.as_str(),
        service_tags: &instance.tags,
        service_address: own_address(instance),
        service_tagged_addresses: tagged_addresses(instance),
        service_weights: weights(instance),
        service_meta: &instance.meta,
        service_port: port,
        service_ports: ports(instance),
        service_socket_path: "",
        service_enable_tag_override: instance.enable_tag_override,
        service_proxy: proxy(instance),
        service_connect: connect(instance, port),
        service_locality: locality(instance),
        create_index: instance.create_stamp,
        modify_index: instance.modify_stamp,
    }
}

/// An entry of `/v1/health/service`.
pub fn health_entry<'a>(inner: &Inner, view: &'a InstanceView, way: Way) -> HealthEntry<'a> {
    let own = view.checks.iter().map(|record| {
        let instance = record.service.is_some().then_some(&*view.instance);
        check(inner, &view.node, record, instance)
    });
    HealthEntry {
        node: node(&view.node),
        service: service_at(&view.instance, port(&view.instance, way)),
        checks: member_check(&view.node).into_iter().chain(own).collect(),
    }
}

/// A check. Its output is known only to the node that runs it.
pub fn check<'a>(
    inner: &Inner,
    node: &'a NodeView,
    record: &'a CheckRecord,
    instance: Option<&'a Instance>,
) -> Check<'a> {
    let mut check = foreign_check(node.record.name.as_str(), record, instance);
    if node.record.id == inner.about.id {
        check.output = inner.checks.output(&record.id).unwrap_or_default();
    }
    check
}

/// A check as the agent's own endpoints show it: with its timing, without indexes.
pub fn agent_check<'a>(
    inner: &Inner,
    node: &'a str,
    record: &'a CheckRecord,
    instance: Option<&'a Instance>,
) -> Check<'a> {
    let check = inner.checks.check(&record.id);
    let (interval, timeout) = match check.as_deref().map(|check| &check.how) {
        Some(How::Every {
            interval, timeout, ..
        }) => (go_format(*interval), go_format(*timeout)),
        Some(How::Ttl { .. } | How::Alias(_)) | None => Default::default(),
    };
    Check {
        output: inner.checks.output(&record.id).unwrap_or_default(),
        interval,
        timeout,
        create_index: 0,
        modify_index: 0,
        ..foreign_check(node, record, instance)
    }
}

/// A check as `/v1/agent/health/service` shows it: no type, and a definition in which every field is at
/// its zero value, as recorded from Consul.
pub fn health_check(check: &Check<'_>) -> Value {
    json!({
        "Node": check.node,
        "CheckID": check.check_id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": check.service_name,
        "ServiceTags": (!check.service_tags.is_empty()).then_some(check.service_tags),
        "Type": "",
        "ExposedPort": 0,
        "Definition": {
            "Interval": "0s", "Timeout": "0s", "DeregisterCriticalServiceAfter": "0s",
            "HTTP": "", "Header": null, "Method": "", "Body": "", "TLSServerName": "",
            "TLSSkipVerify": false, "TCP": "", "TCPUseTLS": false, "UDP": "", "GRPC": "",
            "OSService": "", "GRPCUseTLS": false,
        },
        "CreateIndex": 0,
        "ModifyIndex": 0,
    })
}

/// A check that somebody else runs: its output is not known here.
pub fn foreign_check<'a>(
    node: &'a str,
    record: &'a CheckRecord,
    instance: Option<&'a Instance>,
) -> Check<'a> {
    Check {
        node,
        check_id: &record.id,
        name: &record.name,
        status: status(record.status),
        notes: &record.notes,
        output: String::new(),
        service_id: instance.map_or("", |instance| instance.id.as_str()),
        service_name: instance.map_or("", |instance| instance.service.as_str()),
        service_tags: instance.map_or(&[], |instance| &instance.tags),
        r#type: &record.kind,
        interval: String::new(),
        timeout: String::new(),
        exposed_port: 0,
        definition: Empty {},
        create_index: record.create_stamp,
        modify_index: record.modify_stamp,
    }
}

/// What membership thinks, as the check that Consul's clients know by this name; nothing of one that is no member.
pub fn member_check(node: &NodeView) -> Option<Check<'_>> {
    if !node.record.is_member() {
        return None;
    }
    let (status, output) = match node.liveness {
        Liveness::Alive | Liveness::Suspect => (Health::Passing, "Agent alive and reachable"),
        Liveness::Down | Liveness::Left => (Health::Critical, "Agent not live or unreachable"),
    };
    Some(Check {
        node: node.record.name.as_str(),
        check_id: "serfHealth",
        name: "Serf Health Status",
        status: status.as_str(),
        notes: "",
        output: output.to_owned(),
        service_id: "",
        service_name: "",
        service_tags: &[],
        r#type: "",
        interval: String::new(),
        timeout: String::new(),
        exposed_port: 0,
        definition: Empty {},
        create_index: node.revision,
        modify_index: node.revision,
    })
}
