//! Log lines for those who follow them. As long as nobody does, nothing is formatted and no level is raised.

use std::{
    fmt,
    sync::{LazyLock, OnceLock},
};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer, Registry,
    filter::LevelFilter,
    layer::{Context, Filter},
    reload,
};

/// Lines that a slow follower may lag behind.
const BEHIND: usize = 512;

type Wanted = reload::Handle<LevelFilter, Registry>;

static LINES: LazyLock<broadcast::Sender<Line>> = LazyLock::new(|| broadcast::Sender::new(BEHIND));
static WANTED: OnceLock<Wanted> = OnceLock::new();
/// The levels that followers want.
static LEVELS: Mutex<Vec<Level>> = Mutex::new(Vec::new());

/// A line of the log.
#[derive(Debug, Clone)]
pub struct Line {
    level: Level,
    time: OffsetDateTime,
    target: &'static str,
    message: String,
    fields: Vec<(&'static str, String)>,
}

/// Follows the log until it is dropped.
pub struct Follower {
    level: Level,
    lines: broadcast::Receiver<Line>,
}

/// Lines of this level and those that matter more, from now on.
pub fn follow(level: Level) -> Follower {
    let lines = LINES.subscribe();
    let mut levels = LEVELS.lock();
    levels.push(level);
    apply(&levels);
    Follower { level, lines }
}

impl Follower {
    /// The next line.
    ///
    /// # Errors
    /// Lines were written faster than they were taken: how many are lost.
    pub async fn next(&mut self) -> Result<Line, RecvError> {
        loop {
            let line = self.lines.recv().await?;
            if line.level <= self.level {
                return Ok(line);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut levels = LEVELS.lock();
        if let Some(at) = levels.iter().position(|level| *level == self.level) {
            levels.swap_remove(at);
        }
        apply(&levels);
    }
}

/// Lets through what somebody wants.
fn apply(levels: &[Level]) {
    let most = levels.iter().max();
    let filter = most.map_or(LevelFilter::OFF, |level| LevelFilter::from_level(*level));
    if let Some(wanted) = WANTED.get() {
        // Fails only when the subscriber is gone, and then there is nothing to follow.
        let _ = wanted.reload(filter);
    }
}

/// The layer that hands lines to followers, and what lets them through.
pub(super) fn layer() -> (Box<dyn Layer<Registry> + Send + Sync>, Wanted) {
    let (filter, wanted) = reload::Layer::new(LevelFilter::OFF);
    let filter: Box<dyn Filter<Registry> + Send + Sync> = Box::new(filter);
    (Lines.with_filter(filter).boxed(), wanted)
}

/// The layer is in use.
pub(super) fn ready(wanted: Wanted) {
    let _ = WANTED.set(wanted);
    apply(&LEVELS.lock());
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut line = Line {
            level: *meta.level(),
            time: OffsetDateTime::now_utc(),
            target: meta.target(),
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        // Without followers it is dropped.
        let _ = LINES.send(line);
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

impl Line {
    fn add(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }

    fn time(&self) -> String {
        self.time.format(&Rfc3339).unwrap_or_default()
    }

    /// As Consul writes one.
    pub fn text(&self) -> String {
        let mut line = format!(
            "{} {:7} {}: {}",
            self.time(),
            format!("[{}]", self.level),
            self.target,
            self.message
        );
        for (at, (name, value)) in self.fields.iter().enumerate() {
            line.push_str(if at == 0 { ": " } else { " " });
            line.push_str(name);
            line.push('=');
            match value.contains([' ', '"', '\n']) {
                true => line.push_str(&format!("{value:?}")),
                false => line.push_str(value),
            }
        }
        line.push('\n');
        line
    }

    /// As one JSON object.
    pub fn json(&self) -> String {
        let mut fields = Map::new();
        for (name, value) in [
            ("@timestamp", self.time()),
            ("@level", self.level.as_str().to_lowercase()),
            ("@module", self.target.to_owned()),
            ("@message", self.message.clone()),
        ] {
            fields.insert(name.to_owned(), value.into());
        }
        for (name, value) in &self.fields {
            fields.insert((*name).to_owned(), value.as_str().into());
        }
        format!("{}\n", Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        let line = Line {
            level: Level::WARN,
            time: OffsetDateTime::UNIX_EPOCH,
            target: "sidecar::agent",
            message: "no".to_owned(),
            fields: vec![("node", "n1".to_owned()), ("why", "it\nbroke".to_owned())],
        };
        assert_eq!(
            line.text(),
            "1970-01-01T00:00:00Z [WARN]  sidecar::agent: no: node=n1 why=\"it\\nbroke\"\n"
        );
        let read: Value = serde_json::from_str(&line.json()).unwrap();
        assert_eq!(
            (&read["@level"], &read["why"]),
            (&"warn".into(), &"it\nbroke".into())
        );
    }
}
