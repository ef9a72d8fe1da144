//! The two sockets of a node: UDP and TCP at one port number.

use std::net::SocketAddr;

use tokio::net::{TcpListener, UdpSocket};

use super::MeshError;

/// How often a free port is tried that turns out to be taken for the other protocol.
const TRIES: usize = 20;

/// Listens at `addr`, UDP and TCP. Port 0 takes one that is free for both.
pub(super) async fn bind(
    addr: SocketAddr,
) -> Result<(UdpSocket, TcpListener, SocketAddr), MeshError> {
    let mut tries = if addr.port() == 0 { TRIES } else { 1 };
    loop {
        let tcp = TcpListener::bind(addr)
            .await
            .map_err(|e| MeshError::bind("TCP", addr, e))?;
        let bound = tcp
            .local_addr()
            .map_err(|e| MeshError::bind("TCP", addr, e))?;
        tries -= 1;
        match UdpSocket::bind(bound).await {
            Ok(udp) => return Ok((udp, tcp, bound)),
            Err(error) if tries == 0 => return Err(MeshError::bind("UDP", bound, error)),
            Err(_) => {}
        }
    }
}
