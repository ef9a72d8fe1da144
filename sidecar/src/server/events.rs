//! Server-sent events: a read that waits for changes, again and again, over one answer that does not end.
//!
//! Every event is a request of its own behind the scenes, with its rights, its uses and its lines in the audit log: who loses
//! the right to read hears of it instead of the next change. The id of an event is the ledger index to go on from, which
//! browsers send again by themselves when they reconnect (`Last-Event-ID`).

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vault_kv::{Caller, Vault};

use crate::http::{Body, Reply};

const TYPE: &str = "text/event-stream";
/// Without a change a line goes out so often, which shows that both ends are still there.
const QUIET: Duration = Duration::from_secs(20);
/// Events that wait for a slow client.
const BEHIND: usize = 16;

/// Whether a request wants events.
pub fn wanted(request: &Request<Bytes>) -> bool {
    let accepts = request.headers().get(header::ACCEPT);
    let accepts = accepts.and_then(|value| value.to_str().ok());
    let reads = request.method() == Method::GET || request.method().as_str() == "LIST";
    reads && accepts.is_some_and(|types| types.split(',').any(|one| one.trim().starts_with(TYPE)))
}

/// The answer to such a request: events until the client leaves, the server drains or the read is refused. What cannot be
/// waited for, and what is refused at once, is answered as ever. `caller`: who it is now, as a certificate may end meanwhile.
pub async fn answer(
    vault: Vault,
    request: Request<Bytes>,
    caller: impl Fn() -> Caller + Send + Sync + 'static,
    drains: CancellationToken,
) -> Reply {
    let watch = Watch {
        vault,
        request,
        caller,
    };
    let from = watch.begins_at();
    // What there is now, without waiting: the client hears at once that it is connected.
    let first = watch.ask(0).await;
    let Some(index) = index(&first) else {
        return first.map(Into::into);
    };
    let (sender, pieces) = mpsc::channel(BEHIND);
    tokio::spawn(async move {
        tokio::select! {
            () = watch.send_all(first, index, from, &sender) => {}
            () = sender.closed() => {}
            () = drains.cancelled() => {}
        }
    });
    let mut reply = Response::new(Body::stream(pieces));
    let headers = reply.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, TYPE),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    reply
}

struct Watch<C> {
    vault: Vault,
    request: Request<Bytes>,
    caller: C,
}

impl<C: Fn() -> Caller> Watch<C> {
    /// What the client has seen.
    fn begins_at(&self) -> u64 {
        let last = self.request.headers().get("last-event-id");
        let last = last.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let query = self.request.uri().query().unwrap_or_default();
        let named = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("index="));
        last.or_else(|| named?.parse().ok()).unwrap_or(0)
    }

    /// The read, once there is something newer than `index`, or after a while.
    async fn ask(&self, index: u64) -> Response<Bytes> {
        let uri = self.request.uri();
        let own = |pair: &&str| !matches!(pair.split('=').next(), Some("" | "index" | "wait"));
        let mut query: Vec<_> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(own)
            .collect();
        let (index, wait) = (
            format!("index={index}"),
            format!("wait={}s", QUIET.as_secs()),
        );
        query.extend([&*index, &*wait]);
        let target = format!("{}?{}", uri.path(), query.join("&"));
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = self.request.method().clone();
        *request.headers_mut() = self.request.headers().clone();
        // With what is added it may be too long.
        let Ok(uri) = Uri::try_from(target) else {
            let mut refused = Response::new(Bytes::new());
            *refused.status_mut() = StatusCode::URI_TOO_LONG;
            return refused;
        };
        *request.uri_mut() = uri;
        self.vault.handle(request, (self.caller)()).await
    }

    async fn send_all(
        &self,
        mut answer: Response<Bytes>,
        mut now: u64,
        mut seen: u64,
        sender: &mpsc::Sender<io::Result<Bytes>>,
    ) {
        loop {
            // Less than what the client has seen: the store was put back to an older state.
            let piece = match now != seen {
                true => event(kind(answer.status()), Some(now), answer.body()),
                // A comment.
                false => ":\n\n".into(),
            };
            if sender.send(Ok(piece)).await.is_err() {
                return;
            }
            seen = now;
            answer = self.ask(seen).await;
            match index(&answer) {
                Some(index) => now = index,
                None => {
                    // Whether anybody hears it or not, it is over.
                    let _ = sender.send(Ok(event("error", None, answer.body()))).await;
                    return;
                }
            }
        }
    }
}

/// The ledger index of what was read; `None`: nothing was.
fn index(answer: &Response<Bytes>) -> Option<u64> {
    let known = matches!(answer.status(), StatusCode::OK | StatusCode::NOT_FOUND);
    let index = answer.headers().get("x-mesh-index").filter(|_| known)?;
    index.to_str().ok()?.parse().ok()
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::OK => "change",
        _ => "gone",
    }
}

fn event(kind: &str, id: Option<u64>, data: &Bytes) -> Bytes {
    let mut text = format!("event: {kind}\n").into_bytes();
    if let Some(id) = id {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    // JSON without line breaks of its own.
    text.extend_from_slice(b"data: ");
    text.extend_from_slice(data.trim_ascii());
    text.extend_from_slice(b"\n\n");
    text.into()
}
