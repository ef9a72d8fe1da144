//! The TCP proxy: connections of the mesh to the application, connections of the application to the mesh.
//!
//! Who may talk to whom is libmesh's to decide (`Acceptor`, `Connector`); here bytes are carried, counted, and
//! whoever is refused learns it at once. A connection that did not end well is *reset* towards the application, so
//! that what was cut never looks complete.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libmesh::connect::{AcceptError, Acceptor, ConnectError, Connector, MeshStream};
use libmesh::identity::SpiffeId;
use libmesh::model::ServiceName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connections::{Certificate, Connections, Direction, End, Parties, Refusal};
use super::drain::Drain;
use super::listen::accept_loop;
use super::relay::{RelayError, Side, relay};
use super::workers::Workers;

/// Bounds of a proxy.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once, both directions together, those in their handshake included; more are refused.
    /// Default 10,000.
    pub connections: usize,
    /// Time to reach the application, or the other sidecar. Default 5 s.
    pub connect: Duration,
    /// A connection that moves no byte for so long is closed. Default: never.
    pub idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connect: Duration::from_secs(5),
            idle: None,
        }
    }
}

/// A proxy with its listeners. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    workers: Arc<Workers>,
    limits: Limits,
    room: Arc<Semaphore>,
    connections: Connections,
    drain: Drain,
}

/// One listener's side of a connection that was let through.
struct Carried {
    mesh: MeshStream,
    application: TcpStream,
    direction: Direction,
    service: Arc<str>,
}

impl Proxy {
    /// A proxy on `workers`, without listeners yet.
    pub fn new(workers: Arc<Workers>, limits: Limits) -> Self {
        let proxy = Self {
            room: Arc::new(Semaphore::new(
                limits.connections.min(Semaphore::MAX_PERMITS),
            )),
            connections: Connections::new(),
            drain: Drain::new(),
            workers,
            limits,
        };
        if let Some(idle) = proxy.limits.idle {
            proxy.workers.next().spawn(close_idle(
                proxy.connections.clone(),
                proxy.drain.clone(),
                idle,
            ));
        }
        proxy
    }

    /// What it carries and has carried.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Takes calls of the mesh on `listener` (non-blocking) and passes them to the application at `application`.
    pub fn inbound(
        &self,
        listener: std::net::TcpListener,
        acceptor: Acceptor,
        own: SpiffeId,
        application: SocketAddr,
    ) {
        let proxy = self.clone();
        self.listen(listener, move |stream, from| {
            let (proxy, acceptor, own) = (proxy.clone(), acceptor.clone(), own.clone());
            async move {
                proxy
                    .carry_in(stream, from, &acceptor, &own, application)
                    .await
            }
        });
    }

    /// Takes the application's connections on `listener` (non-blocking, on loopback) and passes them to `service`.
    pub fn outbound(
        &self,
        listener: std::net::TcpListener,
        connector: Connector,
        own: SpiffeId,
        service: ServiceName,
    ) {
        let proxy = self.clone();
        self.listen(listener, move |stream, from| {
            let (proxy, connector, own, service) = (
                proxy.clone(),
                connector.clone(),
                own.clone(),
                service.clone(),
            );
            async move {
                proxy
                    .carry_out(stream, from, &connector, &own, &service)
                    .await
            }
        });
    }

    /// Stops listening, lets open connections end within `within`, and cuts the rest. Returns how many were cut.
    pub async fn drain(&self, within: Duration) -> usize {
        self.drain
            .finish(within, || self.connections.cut_all("drained"))
            .await
    }

    fn listen<F, R>(&self, listener: std::net::TcpListener, carry: F)
    where
        F: Fn(TcpStream, SocketAddr) -> R + Clone + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (workers, drain) = (Arc::clone(&self.workers), self.drain.clone());
        self.workers.next().spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => accept_loop(listener, workers, drain, carry).await,
                Err(error) => tracing::error!(%error, "a listener cannot be served"),
            }
        });
    }

    async fn carry_in(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        acceptor: &Acceptor,
        own: &SpiffeId,
        application: SocketAddr,
    ) {
        let refuse = |reason, peer: Option<End>, detail: &str| {
            let shown = peer.as_ref().map_or("unknown", |peer| &*peer.spiffe);
            let word = Refusal::as_str(reason);
            tracing::warn!(direction = "inbound", local = %own, peer = shown, %from, reason = word, "{detail}");
            let (local, service) = (End::named(own), "".into());
            let parties = Parties {
                direction: Direction::Inbound,
                service,
                local,
                peer,
                address: from,
            };
            self.connections.refuse(parties, reason, detail);
        };
        let Some(_permit) = self.permit() else {
            return refuse(
                Refusal::Limit,
                None,
                "as many connections as allowed are open",
            );
        };
        let accepted = tokio::select! {
            () = self.drain.cutting() => return,
            accepted = acceptor.accept(stream) => accepted,
        };
        let mesh = match accepted {
            Ok(mesh) => mesh,
            Err(error) => {
                let (reason, peer) = match &error {
                    AcceptError::Denied { peer, .. } => (Refusal::Intention, Some(End::of(peer))),
                    AcceptError::NotAService(_) => (Refusal::Identity, None),
                    _ => (Refusal::Handshake, None),
                };
                return refuse(reason, peer, &error.to_string());
            }
        };
        let service: Arc<str> = mesh
            .peer()
            .as_service()
            .map_or_else(|| "".into(), ServiceName::shared);
        let reached = tokio::select! {
            () = self.drain.cutting() => return,
            reached = timeout(self.limits.connect, TcpStream::connect(application)) => reached,
        };
        let reached = reached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match reached.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(application) => {
                let carried = Carried {
                    mesh,
                    application,
                    direction: Direction::Inbound,
                    service,
                };
                self.carry(carried, from).await;
            }
            Err(error) => {
                let detail = format!("the application does not answer at {application}: {error}");
                tracing::warn!(local = %own, peer = %mesh.peer(), reason = "application", "{detail}");
                let parties = Parties::of(&mesh, Direction::Inbound, service, from);
                self.connections
                    .refuse(parties, Refusal::Application, &detail);
            }
        }
    }

    async fn carry_out(
        &self,
        application: TcpStream,
        from: SocketAddr,
        connector: &Connector,
        own: &SpiffeId,
        service: &ServiceName,
    ) {
        let wanted = own
            .datacenter()
            .map(|dc| SpiffeId::service(own.trust_domain(), dc, service));
        let refuse = |reason, detail: &str| {
            reset(&application);
            let peer = wanted.as_ref().map(End::named);
            let shown = peer.as_ref().map_or("unknown", |peer| &*peer.spiffe);
            let word = Refusal::as_str(reason);
            tracing::warn!(direction = "outbound", local = %own, peer = shown, reason = word, "{detail}");
            let (direction, local) = (Direction::Outbound, End::named(own));
            let parties = Parties {
                direction,
                service: service.shared(),
                local,
                peer,
                address: from,
            };
            self.connections.refuse(parties, reason, detail);
        };
        let Some(_permit) = self.permit() else {
            return refuse(Refusal::Limit, "as many connections as allowed are open");
        };
        if let Err(error) = application.set_nodelay(true) {
            return refuse(
                Refusal::Application,
                &format!("the application is gone: {error}"),
            );
        }
        let connected = tokio::select! {
            () = self.drain.cutting() => return reset(&application),
            connected = connector.connect(self.limits.connect) => connected,
        };
        match connected {
            Ok(mesh) => {
                let address = mesh.peer_addr().unwrap_or(from);
                let carried = Carried {
                    mesh,
                    application,
                    direction: Direction::Outbound,
                    service: service.shared(),
                };
                self.carry(carried, address).await;
            }
            Err(error) => {
                let reason = match &error {
                    ConnectError::NoEndpoint(_) => Refusal::NoInstance,
                    ConnectError::Denied(_) => Refusal::Intention,
                    _ => Refusal::Unreachable,
                };
                refuse(reason, &error.to_string());
            }
        }
    }

    async fn carry(&self, carried: Carried, address: SocketAddr) {
        let Carried {
            mut mesh,
            mut application,
            direction,
            service,
        } = carried;
        let open = self
            .connections
            .enter(Parties::of(&mesh, direction, service, address));
        let relayed = async {
            match direction {
                Direction::Inbound => relay(&mut mesh, &mut application, open.flow()).await,
                Direction::Outbound => relay(&mut application, &mut mesh, open.flow()).await,
            }
        };
        let (cut, outcome) = tokio::select! {
            biased;
            relayed = relayed => match relayed {
                Ok(()) => return open.end(false, "closed"),
                Err(error) => ended(&error, direction),
            },
            reason = open.asked_to_end() => (true, reason.to_string()),
        };
        reset(&application);
        if cut {
            let (local, peer) = (&mesh.local_end().spiffe, mesh.peer());
            tracing::warn!(?direction, %local, %peer, "connection closed: {outcome}");
        }
        open.end(cut, &outcome);
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }
}

impl Parties {
    fn of(mesh: &MeshStream, direction: Direction, service: Arc<str>, address: SocketAddr) -> Self {
        let (local, peer) = (End::of(mesh.local_end()), Some(End::of(mesh.peer_end())));
        Self {
            direction,
            service,
            local,
            peer,
            address,
        }
    }
}

impl End {
    fn of(end: &libmesh::connect::End) -> Self {
        let certificate = Certificate {
            serial: end.serial.as_str().into(),
            not_after: end.not_after,
        };
        Self {
            certificate: Some(certificate),
            ..Self::named(&end.spiffe)
        }
    }

    fn named(spiffe: &SpiffeId) -> Self {
        Self {
            spiffe: spiffe.to_string().into(),
            certificate: None,
        }
    }
}

/// Whether this proxy ended the connection, and how it ended in words.
fn ended(error: &RelayError, direction: Direction) -> (bool, String) {
    if error.source.kind() == io::ErrorKind::PermissionDenied {
        return (true, format!("no longer allowed: {}", error.source));
    }
    let mesh = match direction {
        Direction::Inbound => Side::Accepted,
        Direction::Outbound => Side::Dialled,
    };
    let end = if error.side == mesh {
        "the other sidecar"
    } else {
        "the application"
    };
    (
        false,
        format!("{} {end}: {}", error.operation, error.source),
    )
}

/// Has the application see a reset instead of a clean end.
fn reset(application: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = application.set_zero_linger();
}

/// Cuts connections that have moved nothing between two looks, a quarter of `idle` apart, for `idle` in all.
async fn close_idle(connections: Connections, drain: Drain, idle: Duration) {
    let mut quiet = std::collections::HashMap::<u64, (u64, u32)>::new();
    let mut look = interval((idle / 4).max(Duration::from_millis(10)));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reason = format!("idle for {}", humantime::format_duration(idle));
    loop {
        tokio::select! {
            () = drain.cutting() => return,
            _ = look.tick() => {}
        }
        let now = connections.progress();
        let mut next = std::collections::HashMap::with_capacity(now.len());
        for (id, moved) in now {
            let looks = match quiet.get(&id) {
                Some(&(before, looks)) if before == moved => looks + 1,
                _ => 0,
            };
            if looks >= 4 {
                connections.cut(id, &reason);
            }
            next.insert(id, (moved, looks));
        }
        quiet = next;
    }
}

#[cfg(test)]
mod tests;
