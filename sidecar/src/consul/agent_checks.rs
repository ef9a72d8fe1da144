//! `/v1/agent/check*`: checks of this agent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::StatusCode;
use libmesh::{
    health::{Check, CheckError, HttpProbe, TcpProbe, Thresholds},
    model::{Health, Instance, InstanceId},
};
use serde_json::Value;

use super::{
    Inner, Refused, bad_request, catalog::no_filter, decode::Fields, done, handler, render,
    server_error,
};
use crate::http::{Call, Reply, Routes, json as json_reply};

/// Consul's defaults and floors.
const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL_FLOOR: Duration = Duration::from_secs(1);
const DEREGISTER_FLOOR: Duration = Duration::from_secs(60);

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

/// A check inside a service's registration; `number` when there are several.
pub fn of_service(
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
    let parsed = parse(fields, &id, &name)?;
    Ok(parsed.check.of(instance.id.clone()))
}

struct Parsed {
    check: Check,
    service: String,
}

fn parse(mut fields: Fields, default_id: &str, default_name: &str) -> Result<Parsed, Refused> {
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
    let http = fields.text("HTTP")?;
    let method = fields.text("Method")?;
    let header = fields.take("Header");
    let body = fields.text("Body")?;
    let tcp = fields.text("TCP")?;
    let success = fields.integer("SuccessBeforePassing")?;
    let warning = fields.integer("FailuresBeforeWarning")?;
    let critical = fields.integer("FailuresBeforeCritical")?;
    let deregister_after = fields.duration("DeregisterCriticalServiceAfter")?;
    let script = [fields.texts("Args")?, fields.texts("ScriptArgs")?].concat();
    fields.unsupported(&[
        "TLSServerName",
        "TLSSkipVerify",
        "DisableRedirects",
        "TCPUseTLS",
        "UDP",
        "GRPC",
        "GRPCUseTLS",
        "H2PING",
        "H2PingUseTLS",
        "DockerContainerID",
        "OSService",
        "AliasNode",
        "AliasService",
    ])?;
    fields.ignore(&["Shell", "OutputMaxSize", "Token", "Namespace", "Partition"]);
    fields.finish()?;

    let invalid = |reason: &str| bad_request(format!("Invalid check: {reason}"));
    if !script.is_empty() {
        return Err(server_error(
            "Scripts are disabled on this agent from remote calls; to enable, configure \
             'enable_script_checks' to true",
        ));
    }
    if ttl.is_some() && interval.is_some() {
        return Err(invalid("Interval and TTL cannot both be specified"));
    }
    let every = || {
        let reason = "Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks";
        let interval = interval.map(|interval| interval.max(INTERVAL_FLOOR));
        interval.ok_or_else(|| invalid(reason))
    };
    let mut check = match (http.as_str(), tcp.as_str(), ttl) {
        ("", "", Some(ttl)) => Check::ttl(&id, ttl),
        ("", "", None) => return Err(invalid("TTL must be > 0 for TTL checks")),
        (url, "", None) => {
            let interval = every()?;
            let refuse = |error: libmesh::model::InvalidField| invalid(&error.to_string());
            let mut probe = HttpProbe::new(url).map_err(refuse)?;
            if !method.is_empty() {
                probe = probe.method(&method).map_err(refuse)?;
            }
            for (name, value) in headers(header)? {
                probe = probe.header(&name, &value).map_err(refuse)?;
            }
            Check::every(&id, interval, probe.body(body))
        }
        ("", address, None) => {
            let interval = every()?;
            let probe = TcpProbe::new(address).map_err(|error| invalid(&error.to_string()))?;
            Check::every(&id, interval, probe)
        }
        _ => return Err(invalid("exactly one of HTTP, TCP and TTL can be specified")),
    };
    if let libmesh::health::How::Every { timeout: own, .. } = &mut check.how {
        *own = timeout.unwrap_or(TIMEOUT);
    }
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
    check.deregister_after = deregister_after.map(|after| after.max(DEREGISTER_FLOOR));
    Ok(Parsed { check, service })
}

/// `{"name": ["value", …]}`
fn headers(value: Option<Value>) -> Result<Vec<(String, String)>, Refused> {
    let mut pairs = Vec::new();
    let Some(value) = value else {
        return Ok(pairs);
    };
    let given: BTreeMap<String, Vec<String>> = serde_json::from_value(value)
        .map_err(|_| bad_request("Request decode failed: Header must be lists of strings"))?;
    for (name, values) in given {
        pairs.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    Ok(pairs)
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
pub fn resume(inner: &Inner, body: Value) -> Result<(), Refused> {
    let mut check = check_of(inner, Fields::of(body)?)?;
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
    let parsed = parse(fields, "", "")?;
    if parsed.check.name.is_empty() {
        return Err(bad_request("Missing check name"));
    }
    match parsed.service.as_str() {
        "" => Ok(parsed.check),
        id => {
            let unknown = || {
                let message = format!("ServiceID {id:?} does not exist");
                Refused::new(StatusCode::NOT_FOUND, message)
            };
            let id = InstanceId::parse(id).map_err(|_| unknown())?;
            inner.catalog.local().service(&id).ok_or_else(unknown)?;
            Ok(parsed.check.of(id))
        }
    }
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
    set(&inner, &call, Health::Passing, call.query.get("note")).await
}

async fn warn(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    set(&inner, &call, Health::Warning, call.query.get("note")).await
}

async fn fail(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    set(&inner, &call, Health::Critical, call.query.get("note")).await
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
    set(&inner, &call, health, Some(&output)).await
}

async fn set(
    inner: &Inner,
    call: &Call,
    health: Health,
    note: Option<&str>,
) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    let updated = inner.checks.update(id, health, note.unwrap_or_default());
    updated.map_err(|error| match error {
        CheckError::Unknown(_) => unknown(id),
        CheckError::NotTtl(_) => {
            server_error(format!("CheckID {id:?} does not have associated TTL"))
        }
        CheckError::Refused(error) => server_error(error.to_string()),
    })?;
    shown(inner, id, health).await;
    Ok(done())
}

/// Whoever asked for a status reads it back at once: waits until the check's own task has taken it in.
async fn shown(inner: &Inner, id: &str, health: Health) {
    let mut changes = inner.catalog.watch_all();
    let done = || {
        inner
            .catalog
            .local()
            .check(id)
            .is_none_or(|c| c.status == health)
    };
    let wait = async { while !done() && changes.changed().await.is_ok() {} };
    // A newer update may have overtaken this one; then there is nothing to wait for.
    let _ = tokio::time::timeout(Duration::from_millis(500), wait).await;
}

async fn list(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    no_filter(&call)?;
    let local = inner.catalog.local();
    let checks = local.checks();
    let instances: BTreeMap<InstanceId, Arc<Instance>> = local
        .services()
        .into_iter()
        .map(|instance| (instance.id.clone(), instance))
        .collect();
    let node = inner.about.node.as_str();
    let list: BTreeMap<&str, _> = checks
        .iter()
        .map(|check| {
            let instance = check.service.as_ref().and_then(|id| instances.get(id));
            let output = inner.checks.output(&check.id);
            let rendered = render::agent_check(node, check, instance.map(|i| &**i), output);
            (&*check.id, rendered)
        })
        .collect();
    Ok(json_reply(StatusCode::OK, &list))
}
