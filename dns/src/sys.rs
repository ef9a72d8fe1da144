//! What differs between platforms: how a thread receives datagrams, sends the replies, and is made to stop.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest request that is read whole.
const REQUEST: usize = 4096;
/// Failed receives in a row after which a socket is given up.
const PATIENCE: u32 = 1000;

/// Makes the thread that serves `socket` look at its stop flag.
pub(crate) fn wake(socket: &UdpSocket) {
    // On Linux this wakes the receiver of an unconnected socket too, though it also reports ENOTCONN; elsewhere the
    // receive timeout does it.
    let _ = socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Both);
}

/// Prepares a socket for [`serve`].
pub(crate) fn prepare(socket: &socket2::Socket) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    socket.set_read_timeout(Some(std::time::Duration::from_millis(500)))
}

/// Takes datagrams off `socket` and sends what `answer` writes, until `stop` is set and the thread was woken.
/// `answer` gets the request, its sender and a buffer of `reply` octets, and returns how many of them to send; 0 for
/// none. Waiting datagrams are taken and answered in batches.
pub(crate) fn serve(
    socket: &UdpSocket,
    stop: &AtomicBool,
    reply: usize,
    answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize,
) -> io::Result<()> {
    let mut failures = 0;
    let again = move |result: io::Result<usize>| match result {
        _ if stop.load(Ordering::Acquire) => Ok(None),
        Ok(received) => {
            failures = 0;
            Ok(Some(received))
        }
        // Errors of a datagram socket are about some datagram; only an endless run of them is about the socket.
        Err(error) => {
            failures += 1;
            if failures == PATIENCE {
                Err(error)
            } else {
                Ok(Some(0))
            }
        }
    };
    platform::serve(socket, reply, answer, again)
}

#[cfg(target_os = "linux")]
mod platform {
    use std::array;
    use std::io::{self, IoSlice, IoSliceMut};
    use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{
        MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg,
    };
    use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

    use super::REQUEST;

    /// Datagrams a system call takes at most.
    const BATCH: usize = 32;

    pub(super) fn serve(
        socket: &UdpSocket,
        reply: usize,
        answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize,
        again: impl FnMut(io::Result<usize>) -> io::Result<Option<usize>>,
    ) -> io::Result<()> {
        if socket.local_addr()?.is_ipv4() {
            batches(socket, reply, answer, again, |from: SockaddrIn| {
                SocketAddrV4::from(from).into()
            })
        } else {
            batches(socket, reply, answer, again, |from: SockaddrIn6| {
                SocketAddrV6::from(from).into()
            })
        }
    }

    fn batches<S: SockaddrLike + Copy>(
        socket: &UdpSocket,
        reply: usize,
        mut answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize,
        mut again: impl FnMut(io::Result<usize>) -> io::Result<Option<usize>>,
        address: impl Fn(S) -> SocketAddr,
    ) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        let mut headers = MultiHeaders::<S>::preallocate(BATCH, None);
        let mut requests = vec![0; BATCH * REQUEST];
        let mut replies = vec![0; BATCH * reply];
        let mut heads: [Option<(usize, SocketAddr)>; BATCH] = [None; BATCH];
        loop {
            let mut chunks = requests.chunks_exact_mut(REQUEST);
            let mut slots: [[IoSliceMut<'_>; 1]; BATCH] =
                array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
            let received = recvmmsg(
                fd,
                &mut headers,
                slots.iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            );
            let received = received.map_err(io::Error::from).map(|messages| {
                let mut count = 0;
                for (head, message) in heads.iter_mut().zip(messages) {
                    *head = message.address.map(|from| (message.bytes, address(from)));
                    count += 1;
                }
                count
            });
            let Some(received) = again(received)? else {
                return Ok(());
            };

            let mut filled = [(0, None); BATCH];
            let mut count = 0;
            let mut buffers = replies.chunks_exact_mut(reply);
            for (request, head) in requests.chunks_exact(REQUEST).zip(&heads[..received]) {
                // Nobody can be reached at port 0, and one such address makes a whole batch fail.
                let Some((len, from)) = head.filter(|(len, from)| *len > 0 && from.port() != 0)
                else {
                    continue;
                };
                let Some(buffer) = buffers.next() else { break };
                let len = answer(&request[..len], from, buffer);
                if len > 0 {
                    filled[count] = (len, Some(from));
                    count += 1;
                } else {
                    // Unused: the next reply takes its place.
                    buffers = replies.chunks_exact_mut(reply);
                    if count > 0 {
                        buffers.nth(count - 1);
                    }
                }
            }
            send(socket, &replies, reply, &filled[..count]);
        }
    }

    fn send(
        socket: &UdpSocket,
        replies: &[u8],
        stride: usize,
        filled: &[(usize, Option<SocketAddr>)],
    ) {
        if let [(len, Some(to))] = filled {
            // A reply that cannot be sent is lost, as any datagram may be; its asker asks again.
            let _ = socket.send_to(&replies[..*len], to);
            return;
        }
        let mut slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|_| [IoSlice::new(&[])]);
        let mut addresses: [Option<SocketAddrAny>; BATCH] = array::from_fn(|_| None);
        for (i, (len, to)) in filled.iter().enumerate() {
            slices[i] = [IoSlice::new(&replies[i * stride..][..*len])];
            addresses[i] = to.map(SocketAddrAny::from);
        }
        let mut control: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
            array::from_fn(|_| SendAncillaryBuffer::default());
        let mut messages: Vec<MMsgHdr<'_>> = Vec::with_capacity(filled.len());
        for ((slice, to), control) in slices
            .iter()
            .zip(&addresses)
            .zip(&mut control)
            .take(filled.len())
        {
            if let Some(to) = to {
                messages.push(MMsgHdr::new_with_addr(to, slice, control));
            }
        }
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            // One that fails is left out, not those behind it.
            let sent = sendmmsg(socket, rest, SendFlags::empty())
                .unwrap_or(0)
                .max(1);
            rest = rest.split_at_mut(sent.min(rest.len())).1;
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::io;
    use std::net::{SocketAddr, UdpSocket};

    use super::REQUEST;

    pub(super) fn serve(
        socket: &UdpSocket,
        reply: usize,
        mut answer: impl FnMut(&[u8], SocketAddr, &mut [u8]) -> usize,
        mut again: impl FnMut(io::Result<usize>) -> io::Result<Option<usize>>,
    ) -> io::Result<()> {
        let mut request = vec![0; REQUEST];
        let mut buffer = vec![0; reply];
        loop {
            let mut from = None;
            let received = match socket.recv_from(&mut request) {
                // Only the moment to look at the stop flag.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    Ok(0)
                }
                received => received.map(|(len, sender)| {
                    from = Some(sender);
                    len
                }),
            };
            let Some(len) = again(received)? else {
                return Ok(());
            };
            let Some(from) = from.filter(|_| len > 0) else {
                continue;
            };
            let len = answer(&request[..len], from, &mut buffer);
            if len > 0 {
                // A reply that cannot be sent is lost, as any datagram may be; its asker asks again.
                let _ = socket.send_to(&buffer[..len], from);
            }
        }
    }
}
