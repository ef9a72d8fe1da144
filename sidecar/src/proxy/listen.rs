//! Accepts connections on a listener and gives each to a worker.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::drain::Drain;
use super::workers::Workers;

/// The pause after a failed accept: mostly there are no file descriptors left, and some will be closed.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener bound to `addr`, which it is named for in the error.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(addr).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}"))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accepts until `drain` begins; `carry` runs once for each connection, on a worker, counted by `drain`.
pub async fn accept_loop<F, R>(listener: TcpListener, workers: Arc<Workers>, drain: Drain, carry: F)
where
    F: Fn(TcpStream, SocketAddr) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, from)| Ok((stream.into_std()?, from))) {
            Ok((stream, from)) => {
                failing = false;
                let carry = carry.clone();
                workers.next().spawn(drain.track(async move {
                    // The stream moves from the listener's event loop to the worker's.
                    match TcpStream::from_std(stream) {
                        Ok(stream) => carry(stream, from).await,
                        Err(error) => {
                            tracing::warn!(%error, %from, "connection lost before it was served")
                        }
                    }
                }));
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept connections; trying on");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
