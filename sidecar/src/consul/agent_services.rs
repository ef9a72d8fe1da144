//! `/v1/agent/service*`: instances of this agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use http::{HeaderValue, StatusCode};
use libmesh::{
    catalog::LocalError,
    health::Check,
    model::{
        Health, Host, Instance, InstanceId, Locality, Meta, NamedPort, Proxy, ServiceName,
        TaggedAddress, Weights,
    },
};
use serde_json::{Value, json};

use super::{
    Inner, Refused,
    agent_checks::{self, Scripts},
    bad_request,
    blocking::Blocking,
    decode::Fields,
    done,
    filter::Filter,
    handler,
    registered::ServiceRequest,
    render,
};
use crate::http::{Call, Reply, Routes, json as json_reply, text};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .put("/v1/agent/service/register", handler(inner, register))
        .put(
            "/v1/agent/service/deregister/*id",
            handler(inner, deregister),
        )
        .put(
            "/v1/agent/service/maintenance/*id",
            handler(inner, maintenance),
        )
        .put("/v1/agent/maintenance", handler(inner, node_maintenance))
        .get("/v1/agent/services", handler(inner, list))
        .get("/v1/agent/service/*id", handler(inner, one))
        .get(
            "/v1/agent/health/service/id/*id",
            handler(inner, health_by_id),
        )
        .get(
            "/v1/agent/health/service/name/*name",
            handler(inner, health_by_name),
        )
}

async fn register(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let parsed = parse(inner.scripts(), Fields::parse(call.body())?)?;
    let local = inner.catalog.local();
    let id = parsed.0.id.clone();
    let replaced: Vec<_> = match call.query.has("replace-existing-checks") {
        true => local.checks_of(Some(&id)),
        false => Vec::new(),
    };
    let kept: BTreeSet<_> = parsed.1.iter().map(|check| check.id.to_string()).collect();
    publish(&inner, parsed)?;
    for old in replaced {
        if !kept.contains(&*old.id) {
            inner.checks.remove(&old.id);
        }
    }
    let registered = &inner.registered;
    registered.service(local, &id, call.body(), kept).await?;
    Ok(done())
}

fn publish(inner: &Inner, (instance, checks): Parsed) -> Result<(), Refused> {
    inner
        .catalog
        .local()
        .put_service(instance)
        .map_err(refused)?;
    for check in checks {
        inner
            .checks
            .add(check)
            .map_err(|error| bad_request(format!("Invalid check: {error}")))?;
    }
    Ok(())
}

/// Registers again what was registered in the agent's last life; its checks go on from where they were.
pub fn resume(inner: &Inner, request: &ServiceRequest) -> Result<(), Refused> {
    let (instance, mut checks) = parse(
        inner.scripts(),
        Fields::parse(request.body.get().as_bytes())?,
    )?;
    checks.retain(|check| request.checks.contains(&*check.id));
    for check in &mut checks {
        agent_checks::go_on(inner, check);
    }
    publish(inner, (instance, checks))
}

/// What the log refuses, in the status that tells whose fault it is.
pub fn refused(error: LocalError) -> Refused {
    match error {
        LocalError::NotPermitted { .. } => Refused::new(
            StatusCode::FORBIDDEN,
            format!("Permission denied: {error}; join with a token that was made with --publish"),
        ),
        LocalError::Quota { .. } => Refused::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("This agent publishes too much: {error}"),
        ),
        other => bad_request(format!("Invalid service: {other}")),
    }
}

type Parsed = (Instance, Vec<Check>);

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
    }
}

pub fn parse(scripts: Scripts, mut fields: Fields) -> Result<Parsed, Refused> {
    let name = fields.text("Name")?;
    // One that says nothing is none, as clients send who always have the field.
    let one = fields.take("Check").filter(|check| !says_nothing(check));
    let many = fields.items("Checks")?;
    let weights = fields.take("Weights");
    let instance = instance(&name, fields, weights)?;

    let given: Vec<Value> = one.into_iter().chain(many).collect();
    let several = given.len() > 1;
    let checks = given.into_iter().enumerate().map(|(at, check)| {
        let number = several.then_some(at + 1);
        agent_checks::of_service(scripts, Fields::of(check)?, &instance, number)
    });
    let checks = checks.collect::<Result<_, _>>()?;
    Ok((instance, checks))
}

/// The service of `/v1/catalog/register`.
pub fn external(mut fields: Fields) -> Result<Instance, Refused> {
    let name = fields.text("Service")?;
    fields.ignore(&["CreateIndex", "ModifyIndex", "PeerName"]);
    // An empty one asks for nothing, as everywhere.
    fields.unsupported(&["Check", "Checks"])?;
    // Go's client sends zeros when it is given no weights.
    let none = json!({"Passing": 0, "Warning": 0});
    let given = fields.take("Weights").filter(|given| *given != none);
    instance(&name, fields, given)
}

fn instance(name: &str, mut fields: Fields, given: Option<Value>) -> Result<Instance, Refused> {
    let id = fields.text("ID")?;
    let tags = fields.texts("Tags")?;
    let meta = fields.pairs("Meta")?;
    if let Some((key, value)) = meta.iter().find(|(key, _)| key.starts_with("consul-")) {
        return Err(bad_request(format!(
            "Invalid Service Meta: Couldn't load metadata pair ('{key}', '{value}'): Key prefix 'consul-' is reserved for internal use"
        )));
    }
    let address = fields.text("Address")?;
    let port = fields.integer("Port")?;
    let enable_tag_override = fields.flag("EnableTagOverride")?;
    let kind = fields.text("Kind")?;
    let tagged_addresses = fields.take("TaggedAddresses").map(tagged_addresses);
    let ports = ports(fields.items("Ports")?)?;
    let locality = fields.take("Locality").map(locality).transpose()?;
    let proxy = fields.take("Proxy").map(proxy).transpose()?.flatten();
    let weights = given.map(weights).transpose()?;
    fields.unsupported(&["SocketPath"])?;
    let native = match fields.take("Connect") {
        Some(connect) => is_native(connect)?,
        None => false,
    };
    fields.ignore(&["Token", "Namespace", "Partition"]);
    fields.finish()?;

    if name.is_empty() {
        return Err(bad_request("Missing service name"));
    }
    if address == "0.0.0.0" || address == "::" {
        return Err(bad_request("Invalid service address"));
    }
    let invalid = |error| bad_request(format!("Invalid service: {error}"));
    let service = ServiceName::parse(name).map_err(invalid)?;
    let port = number(port)?;
    let mut instance = Instance::new(service, port).map_err(invalid)?;
    if !id.is_empty() {
        instance.id = InstanceId::parse(&id).map_err(invalid)?;
    }
    if !address.is_empty() {
        instance.address = Some(Host::parse(&address).map_err(invalid)?);
    }
    instance.tags = tags.iter().map(|tag| Arc::from(tag.as_str())).collect();
    instance.version = meta
        .get("version")
        .filter(|v| !v.is_empty())
        .map(|v| v.as_str().into());
    instance.meta = shared(&meta);
    instance.weights = weights.unwrap_or_default();
    instance.enable_tag_override = enable_tag_override;
    instance.tagged_addresses = tagged_addresses.transpose()?.unwrap_or_default();
    instance.kind = kind.parse().map_err(invalid)?;
    instance.locality = locality;
    instance.proxy = proxy.map(Arc::new);
    if !ports.is_empty() {
        if port != 0 {
            return Err(bad_request(
                "Invalid service: Port and Ports exclude each other",
            ));
        }
        let default = ports.iter().find(|(_, default)| *default);
        instance.port = default.unwrap_or(&ports[0]).0.port;
        instance.ports = ports.into_iter().map(|(port, _)| port).collect();
    }
    if native {
        if instance.port == 0 {
            return Err(bad_request(
                "Invalid service: Connect.Native needs a Port: where it speaks mTLS",
            ));
        }
        instance.mesh_port = Some(instance.port);
    }
    instance.validate().map_err(invalid)?;
    Ok(instance)
}

/// Whether an instance speaks mTLS itself. A wish for a sidecar says nothing that is not so for every service: one attaches by
/// itself. What it should do is refused.
fn is_native(value: Value) -> Result<bool, Refused> {
    let mut fields = Fields::of(value)?;
    let native = fields.flag("Native")?;
    if let Some(sidecar) = fields.take("SidecarService") {
        let mut sidecar = Fields::of(sidecar)?;
        if let Some(asked) = sidecar.take("Proxy") {
            proxy(asked)?;
        }
        sidecar.finish()?;
    }
    fields.finish()?;
    Ok(native)
}

fn shared(pairs: &BTreeMap<String, String>) -> Meta {
    let share = |text: &String| Arc::from(text.as_str());
    pairs.iter().map(|(k, v)| (share(k), share(v))).collect()
}

/// `{name: {address, port}}`.
fn tagged_addresses(value: Value) -> Result<Vec<TaggedAddress>, Refused> {
    let Value::Object(entries) = value else {
        return Err(bad_request("Invalid TaggedAddresses: not an object"));
    };
    let entries = entries.into_iter().map(|(tag, entry)| {
        let mut fields = Fields::of(entry)?;
        let (address, port) = (fields.text("Address")?, fields.integer("Port")?);
        fields.finish()?;
        Ok(TaggedAddress {
            host: Host::parse(&address).map_err(|error| {
                bad_request(format!("Invalid TaggedAddresses {tag:?}: {error}"))
            })?,
            port: number(port)?,
            tag: tag.into(),
        })
    });
    entries.collect()
}

/// `[{name, port, default}]`; whether each is the default.
fn ports(values: Vec<Value>) -> Result<Vec<(NamedPort, bool)>, Refused> {
    let ports = values.into_iter().map(|value| {
        let mut fields = Fields::of(value)?;
        let (name, port) = (fields.text("Name")?, fields.integer("Port")?);
        let default = fields.flag("Default")?;
        fields.finish()?;
        let (name, port) = (name.into(), number(port)?);
        Ok((NamedPort { name, port }, default))
    });
    let ports: Vec<_> = ports.collect::<Result<_, Refused>>()?;
    match ports.iter().filter(|(_, default)| *default).count() {
        0 | 1 => Ok(ports),
        _ => Err(bad_request("Invalid Ports: only one can be the default")),
    }
}

fn locality(value: Value) -> Result<Locality, Refused> {
    let mut fields = Fields::of(value)?;
    let (region, zone) = (fields.text("Region")?, fields.text("Zone")?);
    fields.finish()?;
    Locality::new(&region, &zone).map_err(|error| bad_request(format!("Invalid service: {error}")))
}

/// What a proxy speaks for; how it does is the business of a mesh that we are not. An empty object asks for nothing.
fn proxy(value: Value) -> Result<Option<Proxy>, Refused> {
    let mut fields = Fields::of(value)?;
    let service = fields.text("DestinationServiceName")?;
    let instance = fields.text("DestinationServiceID")?;
    let address = fields.text("LocalServiceAddress")?;
    let port = number(fields.integer("LocalServicePort")?)?;
    fields.unsupported(&[
        "Config",
        "Upstreams",
        "Mode",
        "TransparentProxy",
        "AccessLogs",
        "EnvoyExtensions",
    ])?;
    fields.ignore(&["MeshGateway", "Expose"]);
    fields.finish()?;
    if service.is_empty() {
        return Ok(None);
    }
    let invalid = |error| bad_request(format!("Invalid Proxy: {error}"));
    let filled = |text: String| (!text.is_empty()).then_some(text);
    Ok(Some(Proxy {
        service: ServiceName::parse(&service).map_err(invalid)?,
        instance: filled(instance)
            .map(|id| InstanceId::parse(&id))
            .transpose()
            .map_err(invalid)?,
        address: filled(address)
            .map(|host| Host::parse(&host))
            .transpose()
            .map_err(invalid)?,
        port,
    }))
}

fn number(port: i64) -> Result<u16, Refused> {
    u16::try_from(port).map_err(|_| bad_request(format!("Invalid port: {port}")))
}

fn weights(value: Value) -> Result<Weights, Refused> {
    let mut fields = Fields::of(value)?;
    let (passing, warning) = (fields.integer("Passing")?, fields.integer("Warning")?);
    fields.finish()?;
    if passing < 1 {
        return Err(bad_request(
            "Invalid Weights: Passing must be greater than 0",
        ));
    }
    if warning < 0 {
        return Err(bad_request(
            "Invalid Weights: Warning must be greater or equal than 0",
        ));
    }
    let fit = |weight: i64| {
        u16::try_from(weight)
            .map_err(|_| bad_request("Invalid Weights: the largest weight is 65535"))
    };
    Ok(Weights {
        passing: fit(passing)?,
        warning: fit(warning)?,
    })
}

async fn deregister(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let id = known(&inner, &call)?.id.clone();
    inner.checks.remove_service(&id);
    inner.registered.forget_gone(inner.catalog.local()).await?;
    Ok(done())
}

fn known(inner: &Inner, call: &Call) -> Result<Arc<Instance>, Refused> {
    let given = call.params.get("id");
    let id = InstanceId::parse(given).ok();
    let instance = id.and_then(|id| inner.own_service(&id));
    instance.ok_or_else(|| {
        let message = format!(
            "Unknown service ID {given:?}. Ensure that the service ID is passed, not the service name."
        );
        Refused::new(StatusCode::NOT_FOUND, message)
    })
}

async fn maintenance(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    if call.params.get("id").is_empty() {
        return Err(bad_request("Missing service ID"));
    }
    let enable = enable(&call)?;
    let instance = known(&inner, &call)?;
    set_maintenance(&inner, &call, Some(&instance.id), enable)
}

async fn node_maintenance(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let enable = enable(&call)?;
    set_maintenance(&inner, &call, None, enable)
}

fn enable(call: &Call) -> Result<bool, Refused> {
    match call.query.filled("enable") {
        None => Err(bad_request("Missing value for enable")),
        Some("1" | "t" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(bad_request(format!("Invalid value for enable: {other:?}"))),
    }
}

fn set_maintenance(
    inner: &Inner,
    call: &Call,
    instance: Option<&InstanceId>,
    enable: bool,
) -> Result<Reply, Refused> {
    let checks = &inner.checks;
    match enable {
        true => {
            let reason = call.query.get("reason").unwrap_or_default();
            let begun = checks.begin_maintenance(instance, reason);
            begun.map_err(|error| bad_request(format!("Invalid reason: {error}")))?;
        }
        false => {
            checks.end_maintenance(instance);
        }
    }
    Ok(done())
}

/// What a filter may ask of an instance.
const FIELDS: &[&str] = &[
    "ID",
    "Service",
    "Tags",
    "Meta",
    "Port",
    "Address",
    "TaggedAddresses",
    "Weights",
    "EnableTagOverride",
    "Kind",
    "Datacenter",
];

async fn list(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, FIELDS)?;
    let services = inner.own_services();
    let list: BTreeMap<&str, Value> = services
        .iter()
        .map(|instance| {
            (
                instance.id.as_str(),
                render::agent_service(&inner, instance),
            )
        })
        .filter(|(_, instance)| filter.keeps(instance))
        .collect();
    Ok(json_reply(StatusCode::OK, &list))
}

/// What a hash is for, an own change stamp does as well.
fn content_hash(instance: &Instance) -> String {
    format!("{:016x}", instance.modify_stamp)
}

/// With `hash`, waits until the instance is another one than that of the hash.
async fn one(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let given = call.params.get("id");
    let id = InstanceId::parse(given).ok();
    let find = || inner.own_service(id.as_ref()?);
    if let Some(hash) = call.query.filled("hash") {
        let blocking = Blocking::of(&call)?;
        let same = || find().is_some_and(|instance| content_hash(&instance) == hash);
        blocking.while_holds(&inner, &call, same).await;
    }
    let Some(instance) = find() else {
        return Err(Refused::new(
            StatusCode::NOT_FOUND,
            format!("unknown service ID: {given}"),
        ));
    };
    let mut value = render::agent_service(&inner, &instance);
    let hash = content_hash(&instance);
    value["ContentHash"] = json!(hash);
    let mut reply = json_reply(StatusCode::OK, &value);
    if let Ok(hash) = HeaderValue::try_from(hash) {
        reply.headers_mut().insert("x-consul-contenthash", hash);
    }
    Ok(reply)
}

async fn health_by_id(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let given = call.params.get("id");
    let id = InstanceId::parse(given).ok();
    match id.and_then(|id| inner.own_service(&id)) {
        Some(instance) => {
            let (health, value) = health_of(&inner, &instance);
            Ok(health_reply(&call, Some(health), health.as_str(), &value))
        }
        None => {
            let reason = format!("ServiceId {given} not found");
            Ok(health_reply(&call, None, &reason, &Value::Null))
        }
    }
}

async fn health_by_name(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let name = call.params.get("name");
    let services = inner.own_services();
    let own = services
        .iter()
        .filter(|i| i.service.as_str().eq_ignore_ascii_case(name));
    let (health, list): (Vec<_>, Vec<_>) = own.map(|i| health_of(&inner, i)).unzip();
    let worst = health.into_iter().max();
    let reason = match worst {
        Some(worst) => worst.as_str().to_owned(),
        None => format!("ServiceName {name} Not Found"),
    };
    Ok(health_reply(&call, worst, &reason, &Value::Array(list)))
}

fn health_of(inner: &Inner, instance: &Instance) -> (Health, Value) {
    let node = inner.about.node.as_str();
    let checks = inner.catalog.local().checks();
    let own: Vec<_> = checks
        .iter()
        .filter(|check| check.service.as_ref().is_none_or(|id| *id == instance.id))
        .collect();
    let worst = own.iter().map(|check| check.status).max();
    let worst = worst.unwrap_or(Health::Passing);
    let rendered = own.iter().map(|check| {
        let instance = check.service.is_some().then_some(instance);
        render::health_check(&render::agent_check(inner, node, check, instance))
    });
    let value = json!({
        "AggregatedStatus": worst.as_str(),
        "Service": render::agent_service(inner, instance),
        "Checks": rendered.collect::<Vec<_>>(),
    });
    (worst, value)
}

fn health_reply(call: &Call, health: Option<Health>, reason: &str, value: &Value) -> Reply {
    let status = match health {
        Some(Health::Passing) => StatusCode::OK,
        Some(Health::Warning) => StatusCode::TOO_MANY_REQUESTS,
        Some(Health::Critical | Health::Maintenance) => StatusCode::SERVICE_UNAVAILABLE,
        None => StatusCode::NOT_FOUND,
    };
    let mut reply = match call.query.get("format") {
        Some("text") => {
            let mut reply = text(status, reason.to_owned());
            let plain = HeaderValue::from_static("text/plain");
            reply
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, plain);
            reply
        }
        _ => json_reply(status, value),
    };
    if let Ok(reason) = HeaderValue::try_from(reason) {
        reply.headers_mut().insert("x-consul-reason", reason);
    }
    reply
}
