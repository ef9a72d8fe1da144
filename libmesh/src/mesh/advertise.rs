//! Which address others are told.

use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;

use super::{Config, MeshError};
use crate::config::unreachable;

/// The address given, else the one that is listened at, else the one from which the first seed is reached.
pub(super) async fn choose(config: &Config, bound: SocketAddr) -> Result<SocketAddr, MeshError> {
    let addr = match config.advertise {
        Some(addr) if addr.port() == 0 => SocketAddr::new(addr.ip(), bound.port()),
        Some(addr) => addr,
        None if bound.ip().is_unspecified() => match towards_seed(config).await {
            Some(ip) => SocketAddr::new(ip, bound.port()),
            None => bound,
        },
        None => bound,
    };
    let refused = |reason: String| MeshError::Advertise { addr, reason };
    if let Some(reason) = unreachable(addr.ip()) {
        return Err(refused(reason.to_owned()));
    }
    if addr.ip().is_loopback()
        && let Some(elsewhere) = seeds(config).await.find(|seed| !seed.ip().is_loopback())
    {
        return Err(refused(format!(
            "only this machine can, and seed {elsewhere} is another one"
        )));
    }
    Ok(addr)
}

/// The addresses behind the seeds; one that does not resolve now says nothing.
async fn seeds(config: &Config) -> impl Iterator<Item = SocketAddr> {
    let mut found = Vec::new();
    for seed in &config.seeds {
        found.extend(seed.resolve().await.unwrap_or_default());
    }
    found.into_iter()
}

/// This machine's address on the way to a seed. Connecting a UDP socket sends nothing.
async fn towards_seed(config: &Config) -> Option<IpAddr> {
    for seed in seeds(config).await {
        let any: SocketAddr = match seed {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let Ok(socket) = UdpSocket::bind(any).await else {
            continue;
        };
        if socket.connect(seed).await.is_ok()
            && let Ok(local) = socket.local_addr()
        {
            return Some(local.ip());
        }
    }
    None
}
