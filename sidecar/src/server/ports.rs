//! What a server answers: the part of Consul's interface that the store here is for, and the Vault port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use libmesh::mesh::Mesh;
use tokio_util::sync::CancellationToken;

use super::{ServerError, Shared, clients, events, outbound, own_routes, records, sessions};
use crate::{
    config::Config,
    consul::stored::{self, Asker, Pairs, Tokenless},
    http::{Call, ConnInfo, Limits, Listener, Routes, bind, serve},
};

/// The largest body of the Vault interface.
const MAX_BODY: usize = 32 << 20;

/// KV, sessions, transactions and intentions, over the store here.
pub fn store_routes(shared: &Arc<Shared>) -> Routes {
    let tokenless = shared.tokenless();
    let opener = |namespace: &'static str, path: &'static str, noun: &'static str| {
        let shared = Arc::clone(shared);
        let open: stored::Opener = Arc::new(move |call: &Call| Pairs {
            kv: shared.vault.kv(namespace),
            asker: Asker::of(&shared.vault, call, tokenless),
            path,
            noun,
        });
        open
    };
    let publisher: Arc<dyn stored::external::Publisher> = Arc::<Shared>::clone(shared);
    let nodes = opener(records::NAMESPACE, "mesh/", "external node");
    stored::routes(
        &opener(sessions::NAMESPACE, "consul/kv/", "kv"),
        &opener(records::NAMESPACE, "mesh/", "intention"),
        &nodes,
        &publisher,
    )
    .merge(acl_routes(shared, tokenless))
}

fn acl_routes(shared: &Arc<Shared>, tokenless: Tokenless) -> Routes {
    if !shared.acl.enabled {
        return stored::acl::disabled();
    }
    let methods = Arc::new(stored::acl::Methods::new(Some(Arc::new(outbound::Direct))));
    let shared = Arc::clone(shared);
    let open: stored::acl::Opener = Arc::new(move |call: &Call| stored::acl::Desk {
        asker: Asker::of(&shared.vault, call, tokenless),
        kv: shared.vault.kv(records::NAMESPACE),
        methods: Arc::clone(&methods),
        default_allow: shared.acl.default_allow,
    });
    stored::acl::routes(&open)
}

/// The Vault port: our own routes, then the whole Vault interface.
pub async fn listen(
    config: &Config,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
) -> Result<Option<SocketAddr>, ServerError> {
    let Some(port) = config.ports.vault else {
        return Ok(None);
    };
    let ip = config.addresses.vault;
    let tls = match &config.tls {
        Some(files) => Some(crate::agent::tls_config(files, crate::agent::Clients::May)?),
        None if ip.is_loopback() => None,
        None => return Err(ServerError::Clear(ip)),
    };
    let tcp = bind(SocketAddr::new(ip, port))
        .await
        .map_err(ServerError::Listen)?;
    let addr = tcp.local_addr().map_err(ServerError::Listen)?;
    tracing::info!(%addr, "the Vault port is open");
    let listener = match tls {
        Some(tls) => Listener::Tls(tcp, tls),
        None => Listener::Tcp(tcp),
    };
    let limits = Limits {
        body: MAX_BODY,
        json_errors: true,
        body_timeout: Duration::from_secs(90),
        ..Limits::default()
    };
    let own = own_routes::routes(shared).merge(own_routes::local_routes(shared));
    let serving = Arc::clone(shared);
    let handler = move |request: Request<Bytes>, conn: Arc<ConnInfo>| {
        let (own, shared) = (own.clone(), Arc::clone(&serving));
        async move {
            if request.uri().path().starts_with("/v1/mesh/") {
                return own.dispatch(request, conn).await;
            }
            let vault = &shared.vault;
            if events::wanted(&request) {
                let (vault, drains) = (vault.clone(), conn.shutdown.clone());
                let caller = move || clients::caller(&conn, shared.mesh.get().map(Mesh::trust));
                return Box::pin(events::answer(vault, request, caller, drains)).await;
            }
            let caller = clients::caller(&conn, shared.mesh.get().map(Mesh::trust));
            vault.handle(request, caller).await.map(Into::into)
        }
    };
    tokio::spawn(serve(listener, limits, stop.clone(), handler));
    Ok(Some(addr))
}
