//! User events: `/v1/event/fire/…` and `/v1/event/list`.
//!
//! An event reaches every agent that is present when it is fired, at most once, and is kept there if its filters fit: the
//! last 256, in memory. Whoever is away then never hears of it. How it travels: see [`spread`].

mod kept;
mod spread;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, StatusCode};
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::{
    Inner, Refused, around::Right, bad_request, blocking::Blocking, handler, server_error,
};
use crate::http::{Call, Reply, Routes, json as json_reply};

pub use kept::Events;
use kept::UserEvent;
pub(crate) use spread::{samples, understands};

/// Largest event, in bytes: payload, name and filters.
const EVENT_MAX: usize = 8 << 10;
/// How large a compiled filter may be, in bytes.
const PATTERN_MAX: usize = 1 << 18;

pub(super) fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .put("/v1/event/fire/*name", handler(inner, fire))
        .get("/v1/event/list", handler(inner, list))
}

async fn fire(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let name = call.params.get("name").to_owned();
    if name.is_empty() {
        return Err(bad_request("Missing name"));
    }
    let given = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let event = UserEvent {
        id: uuid::Uuid::new_v4().into_bytes(),
        name,
        payload: call.body().to_vec(),
        node: given("node"),
        service: given("service"),
        tag: given("tag"),
        ltime: 0,
    };
    for (what, filter) in [
        ("node", &event.node),
        ("service", &event.service),
        ("tag", &event.tag),
    ] {
        pattern(filter).map_err(|error| {
            let reason = go_words(filter, &error);
            server_error(format!(
                "Invalid {what} filter: error parsing regexp: {reason}"
            ))
        })?;
    }
    if !event.tag.is_empty() && event.service.is_empty() {
        return Err(server_error(
            "Cannot provide tag filter without service filter",
        ));
    }
    if event.size() > EVENT_MAX {
        return Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("user event exceeds configured limit of {EVENT_MAX} bytes before encoding"),
        ));
    }
    let path = format!("consul/event/{}", event.name);
    inner.may(&call, Right::Update, &path).await?;
    let shown = show(&event);
    inner.around()?.events.fire(event);
    Ok(json_reply(StatusCode::OK, &shown))
}

async fn list(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let events = &inner.around()?.events;
    let name = call.query.filled("name");
    let mut changes = events.changes();
    let now = || {
        let list = events.list(name);
        let index = list.last().map_or(1, |last| last.index());
        (list, index)
    };
    let (mut found, mut index) = now();
    if blocking.index == index
        && let Some(wait) = blocking.wait_beyond(0)
    {
        let changed = async {
            // The sender lives as long as this agent.
            while now().1 == blocking.index && changes.changed().await.is_ok() {}
            0
        };
        blocking.until(&call, wait, changed).await;
        (found, index) = now();
    }
    let shown: Vec<_> = found.iter().map(|event| show(event)).collect();
    let mut reply = json_reply(StatusCode::OK, &shown);
    reply
        .headers_mut()
        .insert("x-consul-index", HeaderValue::from(index));
    Ok(reply)
}

fn show(event: &UserEvent) -> Value {
    let payload = (!event.payload.is_empty()).then(|| STANDARD.encode(&event.payload));
    json!({
        "ID": uuid::Uuid::from_bytes(event.id).to_string(),
        "Name": event.name,
        "Payload": payload,
        "NodeFilter": event.node,
        "ServiceFilter": event.service,
        "TagFilter": event.tag,
        "Version": 1,
        "LTime": event.ltime,
    })
}

fn pattern(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text).size_limit(PATTERN_MAX).build()
}

/// Go's words for the mistakes that are made most.
fn go_words(pattern: &str, error: &regex::Error) -> String {
    let ours = error.to_string();
    let from = |c: char| pattern.find(c).map_or(pattern, |at| &pattern[at..]);
    if ours.contains("unclosed character class") {
        return format!("missing closing ]: `{}`", from('['));
    }
    if ours.contains("unclosed group") {
        return format!("missing closing ): `{pattern}`");
    }
    if ours.contains("unopened group") {
        return format!("unexpected ): `{pattern}`");
    }
    let last = ours.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}
