//! Ports: free ones for processes that are started in a moment, and who has a taken one.

use std::{
    fs, io,
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

/// Who listens on the port of `addr`: "name (process 42)", or what is known of him. Other users' processes are seen by
/// root only; elsewhere than on Linux nobody is.
pub(crate) fn owner(addr: SocketAddr) -> String {
    let unknown = || "another process".to_owned();
    let mut inodes = Vec::new();
    for table in ["udp", "udp6", "tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        inodes.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| listener(line, addr.port())),
        );
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return unknown();
    };
    for process in processes.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid
            .to_str()
            .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        // Those of others cannot be looked into.
        let files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten();
        let has_it = files.flatten().any(|file| {
            let target = fs::read_link(file.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|it| it.strip_suffix(']'));
            inode.is_some_and(|inode| inodes.iter().any(|known| known == inode))
        });
        if has_it {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("{} (process {pid})", name.trim());
        }
    }
    unknown()
}

/// The inode of a line of `/proc/net/{tcp,udp}*`, if it is a socket without a peer on this port.
fn listener(line: &str, port: u16) -> Option<String> {
    let mut fields = line.split_whitespace();
    let (local, remote) = (fields.nth(1)?, fields.next()?);
    let local = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    let alone = remote.ends_with(":0000");
    // Local, remote, state, queues, timers, retransmissions, user, timeout, inode.
    let inode = fields.nth(6)?;
    (local == port && alone).then(|| inode.to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_taken_port_is_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        for addr in [tcp.local_addr().unwrap(), udp.local_addr().unwrap()] {
            let owner = owner(addr);
            let own = format!("(process {})", std::process::id());
            assert!(owner.ends_with(&own), "{owner}");
        }
        let free: [SocketAddr; 1] = free().unwrap();
        assert_eq!(owner(free[0]), "another process");
    }
}
