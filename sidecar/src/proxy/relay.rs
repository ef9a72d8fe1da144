//! Copies bytes both ways between two streams until both directions have ended.
//!
//! A proxy mostly holds connections that say nothing, so a quiet connection owns no buffer at all. Each worker
//! thread has one scratch buffer of [`SCRATCH`] bytes: a read goes into it and is written on in the same poll.
//! Only what the writer did not take is kept, in a backlog of the connection's own that is at most one scratch
//! long and is given back as soon as the reader has nothing more. While there is a backlog its direction does
//! not read: that is the backpressure.
//!
//! Half-close is kept: the end of one direction is passed on (FIN, and for TLS `close_notify`) while the other
//! one goes on. A direction that fails ends both; the caller then resets what is still open, so that a cut
//! transfer never looks complete.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes one read may bring, and the most one direction of one connection keeps waiting.
pub const SCRATCH: usize = 64 * 1024;

thread_local! {
    static WORKER_SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Bytes that a connection has moved so far, readable while it runs.
#[derive(Debug, Default)]
pub struct Flow {
    /// From the stream that was accepted to the one that was dialled.
    pub forward: AtomicU64,
    /// From the stream that was dialled to the one that was accepted.
    pub backward: AtomicU64,
}

impl Flow {
    /// Bytes moved in both directions together.
    pub fn total(&self) -> u64 {
        self.forward.load(Ordering::Relaxed) + self.backward.load(Ordering::Relaxed)
    }
}

/// Which of the two streams failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The stream that was accepted.
    Accepted,
    /// The stream that was dialled.
    Dialled,
}

/// A direction broke before it ended.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on the {} stream failed", match side { Side::Accepted => "accepted", Side::Dialled => "dialled" })]
pub struct RelayError {
    /// The stream on which it happened.
    pub side: Side,
    /// "read", "write" or "close".
    pub operation: &'static str,
    /// What the system or TLS said.
    pub source: io::Error,
}

/// Copies until both directions have ended, or one has failed.
///
/// `flow` counts what the writers took. Dropping the future stops the copy at once.
///
/// # Errors
/// The first failure of either stream. A TLS stream that ends without `close_notify` is one.
pub async fn relay<A, B>(accepted: &mut A, dialled: &mut B, flow: &Flow) -> Result<(), RelayError>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forward = Direction::default();
    let mut backward = Direction::default();
    poll_fn(|cx| {
        WORKER_SCRATCH.with_borrow_mut(|scratch| {
            let f = forward
                .poll(
                    cx,
                    scratch,
                    Pin::new(&mut *accepted),
                    Pin::new(&mut *dialled),
                    &flow.forward,
                )
                .map_err(|failure| failure.on(Side::Accepted, Side::Dialled))?;
            let b = backward
                .poll(
                    cx,
                    scratch,
                    Pin::new(&mut *dialled),
                    Pin::new(&mut *accepted),
                    &flow.backward,
                )
                .map_err(|failure| failure.on(Side::Dialled, Side::Accepted))?;
            if f.is_ready() && b.is_ready() {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        })
    })
    .await
}

#[derive(Default)]
struct Direction {
    backlog: Vec<u8>,
    /// How much of `backlog` the writer has taken.
    sent: usize,
    unflushed: bool,
    state: State,
}

#[derive(Default, Clone, Copy)]
enum State {
    #[default]
    Copying,
    /// The reader has ended; the writer has to be told.
    Closing,
    Ended,
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
    Close(io::Error),
}

impl Failure {
    fn on(self, reader: Side, writer: Side) -> RelayError {
        let (side, operation, source) = match self {
            Self::Read(source) => (reader, "read", source),
            Self::Write(source) => (writer, "write", source),
            Self::Close(source) => (writer, "close", source),
        };
        RelayError {
            side,
            operation,
            source,
        }
    }
}

impl Direction {
    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        mut reader: Pin<&mut R>,
        mut writer: Pin<&mut W>,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failure>> {
        loop {
            match self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Closing => {
                    ready!(self.poll_backlog(cx, writer.as_mut(), moved))?;
                    // A peer that has already gone cannot be told; it has read all it wanted.
                    match ready!(writer.as_mut().poll_shutdown(cx)) {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(Failure::Close(error)));
                        }
                        _ => self.state = State::Ended,
                    }
                }
                State::Copying => {
                    ready!(self.poll_backlog(cx, writer.as_mut(), moved))?;
                    let mut read = ReadBuf::new(scratch);
                    match reader.as_mut().poll_read(cx, &mut read) {
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::Read(error))),
                        Poll::Ready(Ok(())) if read.filled().is_empty() => {
                            self.state = State::Closing
                        }
                        Poll::Ready(Ok(())) => {
                            self.pass_on(cx, read.filled(), writer.as_mut(), moved)?
                        }
                        Poll::Pending => {
                            self.backlog = Vec::new();
                            if self.unflushed {
                                ready!(writer.as_mut().poll_flush(cx)).map_err(Failure::Write)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Writes what the writer takes now; the rest becomes the backlog.
    fn pass_on<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut data: &[u8],
        mut writer: Pin<&mut W>,
        moved: &AtomicU64,
    ) -> Result<(), Failure> {
        while !data.is_empty() {
            match writer.as_mut().poll_write(cx, data) {
                Poll::Ready(written) => {
                    let n = nonzero(written)?;
                    moved.fetch_add(n as u64, Ordering::Relaxed);
                    self.unflushed = true;
                    data = &data[n..];
                }
                Poll::Pending => {
                    self.backlog.extend_from_slice(data);
                    break;
                }
            }
        }
        Ok(())
    }

    fn poll_backlog<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut writer: Pin<&mut W>,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failure>> {
        while self.sent < self.backlog.len() {
            let n = nonzero(ready!(
                writer.as_mut().poll_write(cx, &self.backlog[self.sent..])
            ))?;
            moved.fetch_add(n as u64, Ordering::Relaxed);
            self.unflushed = true;
            self.sent += n;
        }
        self.backlog.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

fn nonzero(written: io::Result<usize>) -> Result<usize, Failure> {
    match written {
        Ok(0) => Err(Failure::Write(io::ErrorKind::WriteZero.into())),
        Ok(n) => Ok(n),
        Err(error) => Err(Failure::Write(error)),
    }
}

#[cfg(test)]
mod tests;
