//! `/v1/agent/check*`: checks of this agent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::StatusCode;
use libmesh::{
    health::{Check, CheckError, Thresholds},
    model::{Health, Instance, InstanceId, NodeName},
};
use serde_json::{Value, value::RawValue};

use super::{
    Inner, Refused, bad_request,
    decode::Fields,
    done,
    filter::{self, Filter},
    handler, render, server_error,
};
use crate::checks::{self, CheckKind, HttpKind, Timing, TlsKind};
use crate::http::{Call, Reply, Routes, json as json_reply};

/// Consul's defaults and floors.
const TIMEOUT: Duration = Duration::from_secs(10);
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
const INTERVAL_FLOOR: Duration = Duration::from_secs(1);

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .put("/v1/agent/check/register", handler(inner, register))
        .put("/v1/agent/check/deregister/*id", handler(inner, deregister))
        .put("/v1/agent/check/pass/*id", handler(inner, pass))
        .put("/v1/agent/check/warn/*id", handler(inner, warn))
        .put("/v1/agent/check/fail/*id", handler(inner, fail))
        .put("/v1/agent/check/update/*id", handler(inner, update))
        .get("/v1/agent/checks", handler(inner, list))
}

/// Whether checks may run programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scripts {
    /// They may.
    Run,
    /// Not those of requests.
    NotByRequest,
    /// None.
    Off,
}

impl Inner {
    /// What holds for requests.
    pub fn scripts(&self) -> Scripts {
        match self.about.exec_checks {
            true => Scripts::Run,
            false => Scripts::NotByRequest,
        }
    }
}

/// A check inside a service's registration; `number` when there are several.
pub fn of_service(
    scripts: Scripts,
    fields: Fields,
    instance: &Instance,
    number: Option<usize>,
) -> Result<Check, Refused> {
    let id = instance.id.as_str();
    let id = match number {
        Some(number) => format!("service:{id}:{number}"),
        None => format!("service:{id}"),
    };
    let name = format!("Service '{}' check", instance.service);
    let parsed = parse(scripts, fields, &id, &name)?;
    Ok(parsed.check.of(instance.id.clone()))
}

struct Parsed {
    check: Check,
    service: String,
}

fn parse(
    scripts: Scripts,
    mut fields: Fields,
    default_id: &str,
    default_name: &str,
) -> Result<Parsed, Refused> {
    let first = |one: String, two: String| if one.is_empty() { two } else { one };
    let id = first(fields.text("CheckID")?, fields.text("ID")?);
    let name = first(fields.text("Name")?, default_name.to_owned());
    let id = match (id.as_str(), default_id) {
        ("", "") => name.clone(),
        ("", default) => default.to_owned(),
        (given, _) => given.to_owned(),
    };
    let notes = fields.text("Notes")?;
    let status = fields.text("Status")?;
    let service = fields.text("ServiceID")?;
    let ttl = fields.duration("TTL")?;
    let interval = fields.duration("Interval")?;
    let timeout = fields.duration("Timeout")?;
    let kinds = kinds(&mut fields, ttl)?;
    let success = fields.integer("SuccessBeforePassing")?;
    let warning = fields.integer("FailuresBeforeWarning")?;
    let critical = fields.integer("FailuresBeforeCritical")?;
    let output_max = fields.integer("OutputMaxSize")?;
    let deregister_after = fields.duration("DeregisterCriticalServiceAfter")?;
    fields.unsupported(&["DockerContainerID", "OSService"])?;
    fields.ignore(&["Shell", "Token", "Namespace", "Partition"]);
    fields.finish()?;

    let invalid = |reason: &str| bad_request(format!("Invalid check: {reason}"));
    let script = kinds
        .iter()
        .any(|kind| matches!(kind, CheckKind::Exec { .. }));
    match scripts {
        Scripts::Run => {}
        Scripts::NotByRequest if script => {
            return Err(server_error(
                "Scripts are disabled on this agent from remote calls; to enable, configure \
                 'enable_script_checks' to true",
            ));
        }
        Scripts::Off if script => {
            return Err(invalid(
                "Scripts are disabled on this agent; to enable, configure 'enable_local_script_checks' to true",
            ));
        }
        Scripts::NotByRequest | Scripts::Off => {}
    }
    let is_alias = |kind: &CheckKind| matches!(kind, CheckKind::Alias { .. });
    let is_ttl = |kind: &CheckKind| matches!(kind, CheckKind::Ttl(_));
    let alias = kinds.iter().any(is_alias);
    let looks = kinds.iter().any(|kind| !is_alias(kind) && !is_ttl(kind));
    if ttl.is_some() && interval.is_some() {
        return Err(invalid("Interval and TTL cannot both be specified"));
    }
    if looks && interval.is_none() {
        return Err(invalid(
            "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks",
        ));
    }
    if looks && alias {
        return Err(invalid("Interval cannot be set for Alias checks"));
    }
    if alias && ttl.is_some() {
        return Err(invalid("TTL must be not be set for Alias checks"));
    }
    let kind = match &kinds[..] {
        [] => return Err(invalid("TTL must be > 0 for TTL checks")),
        [kind] => kind,
        [..] => return Err(invalid("only one type of check can be specified")),
    };
    let output_max = match output_max {
        0 => None,
        size => {
            Some(usize::try_from(size).map_err(|_| invalid("MaxOutputMaxSize must be positive"))?)
        }
    };
    let timing = Timing {
        interval: interval.unwrap_or_default().max(INTERVAL_FLOOR),
        timeout: timeout.unwrap_or(if script { SCRIPT_TIMEOUT } else { TIMEOUT }),
    };
    let made = checks::make(&id, kind, timing, output_max);
    let mut check = made.map_err(|error| invalid(&error.to_string()))?;
    let count = |number: i64, what: &str| {
        u32::try_from(number).map_err(|_| invalid(&format!("{what} must be non-negative")))
    };
    check.thresholds = Thresholds {
        success_before_passing: count(success, "SuccessBeforePassing")?,
        failures_before_warning: match count(warning, "FailuresBeforeWarning")? {
            0 => None,
            failures => Some(failures),
        },
        failures_before_critical: count(critical, "FailuresBeforeCritical")?,
        ..Thresholds::IMMEDIATE
    };
    if warning > critical {
        return Err(invalid(
            "FailuresBeforeWarning can't be higher than FailuresBeforeCritical",
        ));
    }
    check.initial = match status.as_str() {
        "" => None,
        "passing" => Some(Health::Passing),
        "warning" => Some(Health::Warning),
        "critical" => Some(Health::Critical),
        _ => return Err(bad_request("Bad check status")),
    };
    check.name = name.as_str().into();
    check.notes = notes.as_str().into();
    check.deregister_after = deregister_after;
    Ok(Parsed { check, service })
}

/// What the fields ask for: one thing, if all is well.
fn kinds(fields: &mut Fields, ttl: Option<Duration>) -> Result<Vec<CheckKind>, Refused> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let tls = TlsKind {
        server_name: some(fields.text("TLSServerName")?),
        skip_verify: fields.flag("TLSSkipVerify")?,
        ca_file: None,
    };
    let http = HttpKind {
        method: some(fields.text("Method")?),
        headers: headers(fields.take("Header"))?,
        body: fields.text("Body")?,
        follow_redirects: !fields.flag("DisableRedirects")?,
        tls: tls.clone(),
        ..HttpKind::get(fields.text("HTTP")?)
    };
    let http = (!http.url.is_empty()).then_some(CheckKind::Http(http));
    let over_tls = |wanted: bool| wanted.then(|| tls.clone());
    let tcp_tls = over_tls(fields.flag("TCPUseTLS")?);
    let grpc_tls = over_tls(fields.flag("GRPCUseTLS")?);
    // The only one that Consul turns on unless told otherwise.
    let h2_tls = over_tls(fields.flag_or("H2PingUseTLS", true)?);
    let tcp = some(fields.text("TCP")?);
    let udp = some(fields.text("UDP")?);
    let grpc = some(fields.text("GRPC")?);
    let h2ping = some(fields.text("H2PING")?);
    let args = [fields.texts("Args")?, fields.texts("ScriptArgs")?].concat();
    let named = |text: &str| bad_request(format!("Invalid check: {text}"));
    let service = some(fields.text("AliasService")?);
    let service = service.map(|id| InstanceId::parse(&id)).transpose();
    let service = service.map_err(|error| named(&format!("AliasService: {error}")))?;
    let node = some(fields.text("AliasNode")?);
    let node = node.map(|name| NodeName::parse(&name)).transpose();
    let node = node.map_err(|error| named(&format!("AliasNode: {error}")))?;
    let alias = service.is_some() || node.is_some();
    let kinds = [
        http,
        tcp.map(|address| CheckKind::Tcp {
            address,
            tls: tcp_tls,
        }),
        udp.map(|address| CheckKind::Udp { address }),
        grpc.map(|target| CheckKind::Grpc {
            target,
            tls: grpc_tls,
        }),
        h2ping.map(|address| CheckKind::H2Ping {
            address,
            tls: h2_tls,
        }),
        (!args.is_empty()).then_some(CheckKind::Exec { args }),
        ttl.map(CheckKind::Ttl),
        alias.then_some(CheckKind::Alias { node, service }),
    ];
    Ok(kinds.into_iter().flatten().collect())
}

/// `{"name": ["value", …]}`
fn headers(value: Option<Value>) -> Result<BTreeMap<String, Vec<String>>, Refused> {
    let Some(value) = value else {
        return Ok(BTreeMap::new());
    };
    serde_json::from_value(value)
        .map_err(|_| bad_request("Request decode failed: Header must be lists of strings"))
}

async fn register(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let check = check_of(&inner, Fields::parse(call.body())?)?;
    let id = Arc::clone(&check.id);
    publish(&inner, check)?;
    let local = inner.catalog.local();
    inner.registered.check(local, &id, call.body()).await?;
    Ok(done())
}

/// Registers again what was registered in the agent's last life.
pub fn resume(inner: &Inner, body: &RawValue) -> Result<(), Refused> {
    let mut check = check_of(inner, Fields::parse(body.get().as_bytes())?)?;
    go_on(inner, &mut check);
    publish(inner, check)
}

/// The check's last status counts for more than what it was registered with.
pub fn go_on(inner: &Inner, check: &mut Check) {
    if inner.catalog.local().check(&check.id).is_some() {
        check.initial = None;
    }
}

fn publish(inner: &Inner, check: Check) -> Result<(), Refused> {
    let added = inner.checks.add(check);
    added.map_err(|error| bad_request(format!("Invalid check: {error}")))
}

fn check_of(inner: &Inner, fields: Fields) -> Result<Check, Refused> {
    let (check, service) = alone(inner.scripts(), fields)?;
    let Some(id) = service else {
        return Ok(check);
    };
    match inner.catalog.local().service(&id) {
        Some(_) => Ok(check.of(id)),
        None => Err(no_service(id.as_str())),
    }
}

/// A check that is not written in a service, and the instance that it is of.
pub fn alone(scripts: Scripts, fields: Fields) -> Result<(Check, Option<InstanceId>), Refused> {
    let parsed = parse(scripts, fields, "", "")?;
    if parsed.check.name.is_empty() {
        return Err(bad_request("Missing check name"));
    }
    let id = match parsed.service.as_str() {
        "" => None,
        id => Some(InstanceId::parse(id).map_err(|_| no_service(id))?),
    };
    Ok((parsed.check, id))
}

fn no_service(id: &str) -> Refused {
    let message = format!("ServiceID {id:?} does not exist");
    Refused::new(StatusCode::NOT_FOUND, message)
}

async fn deregister(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    if !inner.checks.remove(id) {
        return Err(unknown(id));
    }
    inner.registered.forget_gone(inner.catalog.local()).await?;
    Ok(done())
}

fn unknown(id: &str) -> Refused {
    let message =
        format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
    Refused::new(StatusCode::NOT_FOUND, message)
}

async fn pass(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    set(&inner, &call, Health::Passing, call.query.get("note"))
}

async fn warn(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    set(&inner, &call, Health::Warning, call.query.get("note"))
}

async fn fail(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    set(&inner, &call, Health::Critical, call.query.get("note"))
}

async fn update(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let (status, output) = (fields.text("Status")?, fields.text("Output")?);
    fields.finish()?;
    let health = match status.as_str() {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        "critical" => Health::Critical,
        other => return Err(bad_request(format!("Invalid check status: '{other}'"))),
    };
    set(&inner, &call, health, Some(&output))
}

fn set(inner: &Inner, call: &Call, health: Health, note: Option<&str>) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    let updated = inner.checks.update(id, health, note.unwrap_or_default());
    updated.map_err(|error| match error {
        CheckError::Unknown(_) => unknown(id),
        CheckError::NotTtl(_) => {
            server_error(format!("CheckID {id:?} does not have associated TTL"))
        }
        CheckError::Refused(error) => server_error(error.to_string()),
    })?;
    Ok(done())
}

async fn list(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::CHECK)?;
    let local = inner.catalog.local();
    let checks = local.checks();
    let instances: BTreeMap<InstanceId, Arc<Instance>> = local
        .services()
        .into_iter()
        .map(|instance| (instance.id.clone(), instance))
        .collect();
    let node = inner.about.node.as_str();
    let mut list = BTreeMap::new();
    for check in &checks {
        let instance = check.service.as_ref().and_then(|id| instances.get(id));
        let rendered = render::agent_check(&inner, node, check, instance.map(|i| &**i));
        let rendered =
            serde_json::to_value(rendered).map_err(|error| server_error(error.to_string()))?;
        if filter.keeps(&rendered) {
            list.insert(&*check.id, rendered);
        }
    }
    Ok(json_reply(StatusCode::OK, &list))
}
