//! `/v1/agent/monitor`: the log of this agent as it is written, until the client leaves.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, header};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tracing::Level;

use super::{Inner, Refused, around::Right, bad_request, handler};
use crate::{
    agent::logging,
    http::{Body, Call, Reply, Routes},
};

/// Lines on the way to a slow client.
const AHEAD: usize = 64;

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new().get("/v1/agent/monitor", handler(inner, monitor))
}

async fn monitor(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let asked = call.query.filled("loglevel").unwrap_or("info");
    let level = match asked.to_ascii_lowercase().as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "info" => Level::INFO,
        "warn" => Level::WARN,
        "err" | "error" => Level::ERROR,
        _ => return Err(bad_request(format!("Unknown log level: {asked}"))),
    };
    inner.may(&call, Right::Read, &inner.own_path()).await?;
    let json = call.query.has("logjson");
    let (sender, pieces) = mpsc::channel(AHEAD);
    let drains = call.conn.shutdown.clone();
    let mut lines = logging::follow(level);
    let following = async move {
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                () = sender.closed() => return,
            };
            let line = match line {
                Ok(line) if json => line.json(),
                Ok(line) => line.text(),
                Err(RecvError::Lagged(lost)) => format!("[{lost} lines were lost on the way]\n"),
                Err(RecvError::Closed) => return,
            };
            let sent = sender.send(Ok::<_, io::Error>(Bytes::from(line)));
            if sent.await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move { drains.run_until_cancelled(following).await });
    let mut reply = Reply::new(Body::stream(pieces));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(reply)
}
