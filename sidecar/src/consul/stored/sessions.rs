//! `/v1/session/`: sessions of the plain keys.
//!
//! Times are Consul's: a session lives for twice its TTL, and a lock-delay is fifteen seconds unless said otherwise. An
//! agent has looked at the node and its checks before it passes a new session on; `consul/bound` says when they end one.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vault_kv::{Behavior, Session, SessionOptions};

use super::{Opener, Pairs, changed_or_over, decorate, on};
use crate::{
    consul::{
        Refused, bad_request,
        blocking::Blocking,
        bound::MEMBERSHIP,
        decode::{Fields, go_duration},
        server_error,
    },
    http::{Call, Reply, Routes, json as json_reply},
};

const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_LOCK_DELAY: Duration = Duration::from_secs(15);
const MAX_LOCK_DELAY: Duration = Duration::from_secs(60);

/// What is kept with a session for this interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Kept {
    /// The node that it lives with.
    pub node: String,
    /// The TTL as it was given.
    #[serde(rename = "TTL")]
    pub ttl: String,
    /// Checks of the node.
    pub node_checks: Option<Vec<String>>,
    /// Checks of services on the node.
    pub service_checks: Option<Vec<ServiceCheck>>,
}

/// A check of a service, as Consul names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceCheck {
    /// The check's id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
}

impl Kept {
    /// What is kept with a session; nothing if it was made elsewhere.
    pub fn of(options: &SessionOptions) -> Self {
        serde_json::from_slice(&options.data).unwrap_or_default()
    }
}

/// What asks for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRequest {
    name: String,
    behavior: Behavior,
    lock_delay: Duration,
    ttl: Option<Duration>,
    /// What is kept with it; the node is empty if none is named.
    pub kept: Kept,
}

impl SessionRequest {
    /// Reads a request's body; an empty one asks for the defaults.
    pub fn parse(body: &[u8]) -> Result<Self, Refused> {
        let body = if body.is_empty() { b"{}" } else { body };
        let mut fields = Fields::parse(body)?;
        let behavior = match fields.text("Behavior")?.as_str() {
            "" | "release" => Behavior::Release,
            "delete" => Behavior::Delete,
            other => {
                return Err(server_error(format!("Invalid Behavior setting '{other}'")));
            }
        };
        let lock_delay = match fields.take("LockDelay") {
            None => DEFAULT_LOCK_DELAY,
            // Small numbers are seconds, others nanoseconds.
            Some(serde_json::Value::Number(number)) => match number.as_u64() {
                Some(seconds) if seconds < 1000 => Duration::from_secs(seconds),
                Some(nanos) => Duration::from_nanos(nanos),
                None => Duration::ZERO,
            },
            Some(serde_json::Value::String(text)) => go_duration(&text)
                .map_err(|error| bad_request(format!("Request decode failed: {error}")))?,
            Some(_) => {
                return Err(bad_request(
                    "Request decode failed: LockDelay must be a duration",
                ));
            }
        };
        let ttl = fields.text("TTL")?;
        let node_checks = match (fields.given("NodeChecks"), fields.given("Checks")) {
            (true, _) => Some(fields.texts("NodeChecks")?),
            (false, true) => Some(fields.texts("Checks")?),
            (false, false) => Some(vec![MEMBERSHIP.to_owned()]),
        };
        let service_checks = fields
            .items("ServiceChecks")?
            .into_iter()
            .map(serde_json::from_value)
            .collect::<Result<Vec<ServiceCheck>, _>>()
            .map_err(|error| bad_request(format!("Request decode failed: {error}")))?;
        let request = Self {
            name: fields.text("Name")?,
            behavior,
            lock_delay: lock_delay.min(MAX_LOCK_DELAY),
            ttl: time_to_live(&ttl)?,
            kept: Kept {
                node: fields.text("Node")?,
                ttl,
                node_checks: node_checks.filter(|checks| !checks.is_empty()),
                service_checks: Some(service_checks).filter(|checks| !checks.is_empty()),
            },
        };
        // Whatever else it has is passed over, as by Consul.
        Ok(request)
    }

    /// The same as a body.
    pub fn to_body(&self) -> Vec<u8> {
        let behavior = word(self.behavior);
        let kept = &self.kept;
        json!({
            "Name": self.name,
            "Behavior": behavior,
            "LockDelay": format!("{}ns", self.lock_delay.as_nanos()),
            "TTL": kept.ttl,
            "Node": kept.node,
            "NodeChecks": kept.node_checks.clone().unwrap_or_default(),
            "ServiceChecks": kept.service_checks,
        })
        .to_string()
        .into_bytes()
    }

    fn options(self) -> SessionOptions {
        SessionOptions {
            name: self.name,
            behavior: self.behavior,
            lock_delay: self.lock_delay,
            ttl: self.ttl,
            // A session of Consul lives for twice its TTL, and its clients count on it.
            grace: self.ttl.unwrap_or_default(),
            data: serde_json::to_vec(&self.kept).expect("plain data always encodes"),
        }
    }
}

fn word(behavior: Behavior) -> &'static str {
    match behavior {
        Behavior::Release => "release",
        Behavior::Delete => "delete",
    }
}

fn time_to_live(given: &str) -> Result<Option<Duration>, Refused> {
    if given.is_empty() {
        return Ok(None);
    }
    let ttl = go_duration(given)
        .map_err(|error| server_error(format!("Session TTL '{given}' invalid: {error}")))?;
    match ttl {
        Duration::ZERO => Ok(None),
        ttl if (MIN_TTL..=MAX_TTL).contains(&ttl) => Ok(Some(ttl)),
        ttl => Err(server_error(format!(
            "Invalid Session TTL '{}', must be between [10s=24h0m0s]",
            ttl.as_nanos()
        ))),
    }
}

/// A session in Consul's shape.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    node: String,
    lock_delay: u64,
    behavior: &'static str,
    #[serde(rename = "TTL")]
    ttl: String,
    node_checks: Option<Vec<String>>,
    service_checks: Option<Vec<ServiceCheck>>,
    create_index: u64,
    modify_index: u64,
}

impl From<Session> for Shown {
    fn from(session: Session) -> Self {
        let kept = Kept::of(&session.options);
        Self {
            id: session.id,
            name: session.options.name,
            node: kept.node,
            lock_delay: session.options.lock_delay.as_nanos() as u64,
            behavior: word(session.options.behavior),
            ttl: kept.ttl,
            node_checks: kept.node_checks,
            service_checks: kept.service_checks,
            create_index: session.created,
            modify_index: session.modified,
        }
    }
}

pub fn routes(open: &Opener) -> Routes {
    Routes::new()
        .on(Method::PUT, "/v1/session/create", on(open, create))
        .on(Method::PUT, "/v1/session/destroy/*id", on(open, destroy))
        .on(Method::PUT, "/v1/session/renew/*id", on(open, renew))
        .on(Method::GET, "/v1/session/info/*id", on(open, info))
        .on(Method::GET, "/v1/session/node/*node", on(open, of_node))
        .on(Method::GET, "/v1/session/list", on(open, list))
}

fn id(call: &Call) -> Result<&str, Refused> {
    match call.params.get("id") {
        "" => Err(bad_request("Missing session")),
        id => Ok(id),
    }
}

async fn create(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let request = SessionRequest::parse(call.body())?;
    let id = pairs.create_session(request.options()).await?;
    Ok(json_reply(StatusCode::OK, &json!({"ID": id})))
}

async fn destroy(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    pairs.destroy_session(id(&call)?).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

async fn renew(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let id = id(&call)?;
    match pairs.renew_session(id)? {
        Some(session) => Ok(json_reply(StatusCode::OK, &[Shown::from(session)])),
        None => Err(Refused::new(
            StatusCode::NOT_FOUND,
            format!("Session id '{id}' not found"),
        )),
    }
}

async fn info(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let id = id(&call)?.to_owned();
    look(&pairs, &call, Some(&id), |_| true).await
}

async fn of_node(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let node = call.params.get("node");
    if node.is_empty() {
        return Err(bad_request("Missing node name"));
    }
    look(&pairs, &call, None, |session| session.node == node).await
}

async fn list(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    look(&pairs, &call, None, |_| true).await
}

/// Waits for a change if asked to; the sessions that are `wanted`.
async fn look(
    pairs: &Pairs,
    call: &Call,
    id: Option<&str>,
    wanted: impl Fn(&Shown) -> bool,
) -> Result<Reply, Refused> {
    let blocking = Blocking::of(call)?;
    let (mut found, mut index) = pairs.sessions(id)?;
    if let Some(wait) = blocking.wait_beyond(index) {
        let changed = pairs.session_changed_after(id, blocking.index);
        changed_or_over(call, wait, changed).await;
        (found, index) = pairs.sessions(id)?;
    }
    let shown = found.into_iter().map(Shown::from);
    let shown: Vec<_> = shown.filter(wanted).collect();
    let mut reply = json_reply(StatusCode::OK, &shown);
    decorate(&mut reply, index);
    Ok(reply)
}
