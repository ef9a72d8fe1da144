//! Ports for processes that are started in a moment.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

/// Below the ports that systems give to outgoing connections, so that none of those takes one meanwhile.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// `N` different loopback addresses whose ports are free for TCP and UDP.
///
/// # Errors
/// Hardly any port is free.
pub(crate) fn free<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let mut found = Vec::with_capacity(N);
    for _ in 0..1000 {
        let port = rand::random_range(RANGE);
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let free = TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok();
        if free && !found.contains(&addr) {
            found.push(addr);
        }
        if found.len() == N {
            break;
        }
    }
    found.try_into().map_err(|_| {
        let reason = "hardly a port of 127.0.0.1 is free for both TCP and UDP";
        io::Error::new(io::ErrorKind::AddrInUse, reason)
    })
}
