//! The whole store in one file, on its way to an operator.

pub(crate) mod archive;

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, header};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use vault_kv::{Capability, SnapshotError, Vault};

use super::{Outcome, Refused, asker};
use crate::{
    http::{Body, Call, Reply},
    server::Shared,
};

/// Pieces (of a megabyte) that may wait for the client.
const AHEAD: usize = 2;
/// A client that takes nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Streams a snapshot: it is written as fast as the client takes it. The last piece, without which it is no snapshot, goes
/// out when its line is in the audit log.
pub(super) async fn save(shared: Arc<Shared>, call: Call) -> Outcome {
    let write = |vault: &Vault, out: &mut Outgoing| {
        let saved = vault.save_snapshot(out);
        saved.map(drop).map_err(said)
    };
    stream(&shared, &call, "application/octet-stream", write).await
}

/// The same in the archive that clients of Consul expect.
pub(super) async fn save_archive(shared: Arc<Shared>, call: Call) -> Outcome {
    let index = shared.vault.ledger().head().index;
    let scratch = shared.scratch.clone();
    let write = move |vault: &Vault, out: &mut Outgoing| archive::write(vault, &scratch, out);
    let mut reply = stream(&shared, &call, "application/x-gzip", write).await?;
    let headers = reply.headers_mut();
    headers.insert("x-consul-index", index.max(1).into());
    for (name, value) in [
        ("x-consul-knownleader", "true"),
        ("x-consul-lastcontact", "0"),
        ("x-consul-query-backend", "blocking-query"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    Ok(reply)
}

/// Says what is wrong with an archive; and of a good one, how it is restored.
pub(super) async fn check_archive(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, "mesh/snapshot")?;
    let body = call.body().clone();
    let checked = tokio::task::spawn_blocking(move || archive::check(&body)).await;
    let message = match checked {
        Ok(Ok(())) => "the archive is whole, but a running server does not restore: take state.bin out of it (tar xzf), \
             stop the server, and use `mesh operator snapshot restore state.bin --dir STORE`"
            .to_owned(),
        Ok(Err(reason)) => reason,
        Err(_) => "the archive could not be looked at".to_owned(),
    };
    Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, message))
}

fn said(error: SnapshotError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

async fn stream(
    shared: &Shared,
    call: &Call,
    kind: &'static str,
    write: impl FnOnce(&Vault, &mut Outgoing) -> Result<(), String> + Send + 'static,
) -> Outcome {
    let asker = asker(shared, call);
    let attended = asker.attend(Capability::Read, "mesh/snapshot").await?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    let vault = shared.vault.clone();
    let mut out = Outgoing {
        sender: sender.clone(),
        held: Bytes::new(),
        runtime: Handle::current(),
    };
    tokio::spawn(async move {
        let saved = tokio::task::spawn_blocking(move || {
            write(&vault, &mut out)?;
            Ok::<_, String>(out.held)
        });
        let saved = match saved.await {
            Ok(saved) => saved,
            Err(_) => Err("it was cut off".to_owned()),
        };
        let failed = saved.as_ref().err().map(String::as_str);
        let on_record = attended.finish(failed).await;
        let last = match (saved, on_record) {
            (Ok(last), Ok(())) => Ok(last),
            (Err(why), _) => Err(why),
            (Ok(_), Err(error)) => Err(error.to_string()),
        };
        let last = last.map_err(|why| {
            tracing::warn!(error = %why, "a snapshot was not saved");
            io::Error::other(why)
        });
        // The client may be gone; there is nobody else to tell.
        let _ = timeout(PATIENCE, sender.send(last)).await;
    });
    let mut reply = Reply::new(Body::stream(pieces));
    let kind = header::HeaderValue::from_static(kind);
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(reply)
}

/// The sending end for a thread that may block. Holds back the newest piece.
struct Outgoing {
    sender: mpsc::Sender<io::Result<Bytes>>,
    held: Bytes,
    runtime: Handle,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = std::mem::replace(&mut self.held, Bytes::copy_from_slice(bytes));
        if !piece.is_empty() {
            let sent = timeout(PATIENCE, self.sender.send(Ok(piece)));
            match self.runtime.block_on(sent) {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
