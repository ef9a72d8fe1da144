//! `mesh demo`: a whole mesh on loopback, walked through step by step.
//!
//! Nothing here is special to the demo: it starts the same binary that users start (`mesh server`,
//! `mesh agent`, `mesh sidecar`) with configuration files in a temporary directory, and speaks to it
//! through the same commands and ports. A step that does not hold fails the demo.

mod app;
mod calls;
mod cluster;
mod process;
mod screen;
mod steps;

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use app::run as run_app;
pub(crate) use process::end_with_parent;

use cluster::Cluster;

/// Runs the demo. With `once` it ends after the last step; without, it stays up until Ctrl-C.
///
/// Every process and the temporary directory are gone when this returns, whatever the reason.
pub(crate) async fn run(once: bool) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("mesh-demo-")
        .tempdir()
        .context("cannot create a temporary directory")?;
    let mut cluster = Cluster::new(dir.path())?;
    let held = AtomicBool::new(false);
    let outcome = tokio::select! {
        outcome = steps::walk(&mut cluster, once, &held) => outcome,
        signal = interrupted() => match signal {
            Ok(name) if held.load(Ordering::Relaxed) => {
                println!("\n{name}: stopping everything");
                Ok(())
            }
            Ok(name) => Err(anyhow::anyhow!("{name} before the last step")),
            Err(error) => Err(error),
        },
    };
    cluster.stop_all().await;
    dir.close()
        .context("cannot remove the temporary directory")?;
    outcome
}

async fn interrupted() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
        _ = hangup.recv() => "hung up",
    })
}
