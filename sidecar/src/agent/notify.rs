//! Tells systemd how far the process is (`sd_notify(3)`, `Type=notify`).

use std::{env, os::unix::net::UnixDatagram};

/// Sends one state line; does nothing when nobody asked for it. Being unheard is no reason to fail.
pub fn tell(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = send(&socket, &path, state.as_bytes());
    }
}

#[cfg(target_os = "linux")]
fn send(socket: &UnixDatagram, path: &std::ffi::OsStr, state: &[u8]) -> std::io::Result<usize> {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net::SocketAddr},
    };
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.send_to_addr(state, &SocketAddr::from_abstract_name(name)?),
        None => socket.send_to(state, path),
    }
}

#[cfg(not(target_os = "linux"))]
fn send(socket: &UnixDatagram, path: &std::ffi::OsStr, state: &[u8]) -> std::io::Result<usize> {
    socket.send_to(state, path)
}
