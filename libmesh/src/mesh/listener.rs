//! A listener for one service: accepts, makes handshakes side by side, and hands out who may call.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, sync::DropGuard};

use crate::connect::{Acceptor, MeshStream};

/// Handshakes under way at most.
const HANDSHAKES: usize = 256;
/// Connections that wait for [`Listener::accept`] at most.
const WAITING: usize = 64;

/// Calls for one service. Dropping it stops listening; connections handed out live on.
pub struct Listener {
    addr: SocketAddr,
    calls: mpsc::Receiver<MeshStream>,
    _stop: DropGuard,
}

impl Listener {
    /// Listens at `addr` (port 0: a free one) until dropped or `stop`.
    pub(super) async fn bind(
        addr: SocketAddr,
        acceptor: Acceptor,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let (give, calls) = mpsc::channel(WAITING);
        tokio::spawn(run(listener, acceptor, give, stop.clone()));
        Ok(Self {
            addr,
            calls,
            _stop: stop.drop_guard(),
        })
    }

    /// Where it listens: the port is the instance's `mesh_port`.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next caller that may call; `None` after the mesh has ended. Callers that may not are logged.
    pub async fn accept(&mut self) -> Option<MeshStream> {
        self.calls.recv().await
    }
}

async fn run(
    listener: TcpListener,
    acceptor: Acceptor,
    give: mpsc::Sender<MeshStream>,
    stop: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let permit = handshakes
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a call");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, give) = (acceptor.clone(), give.clone());
        tokio::spawn(async move {
            match acceptor.accept(stream).await {
                // Nobody waits any more: the connection is closed.
                Ok(call) => drop(give.send(call).await),
                Err(error) => tracing::info!(%from, %error, "call not accepted"),
            }
            drop(permit);
        });
    }
}
