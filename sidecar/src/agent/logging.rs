//! Logs: always to stderr, human on a terminal, one JSON object a line otherwise. Whoever follows them over the Consul
//! interface gets them besides, at a level of his own.

mod follow;

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

pub use follow::{Follower, follow};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets logging up for this process; `RUST_LOG` wins over the level. Later calls change nothing.
pub fn init(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| level_filter(config.level));
    let (filter, handle) = reload::Layer::new(filter);
    let human = match config.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match human {
        true => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colour).with_filter(filter).boxed()
        }
        false => {
            let lines = lines.json().flatten_event(true);
            lines.with_filter(filter).boxed()
        }
    };
    let (followers, wanted) = follow::layer();
    let all = vec![lines, followers];
    if tracing_subscriber::registry().with(all).try_init().is_ok() {
        // Only the first caller gets here.
        let _ = FILTER.set(handle);
        follow::ready(wanted);
    }
}

/// Changes the level of a running process, unless `RUST_LOG` says otherwise.
pub fn set_level(level: tracing::Level) {
    if std::env::var_os("RUST_LOG").is_some() {
        return;
    }
    if let Some(handle) = FILTER.get() {
        // Fails only when the subscriber is gone, and then there is nothing to filter.
        let _ = handle.reload(level_filter(level));
    }
}

fn level_filter(level: tracing::Level) -> EnvFilter {
    EnvFilter::new(level.as_str().to_lowercase())
}
