//! Answers that go on: whole frames, one after the other, over one call.
//!
//! A frame is its length (four bytes, big-endian) and so many bytes. A writer that is faster than its reader waits; one
//! whose reader has gone finds its channel closed.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::mpsc;

use super::{RpcError, client::Connection};

/// Frames that wait for a slow reader at most, besides what the connection holds.
const WAITING: usize = 8;

/// The writing end of an answer that goes on. Dropping it ends the answer.
#[derive(Debug, Clone)]
pub struct Frames(mpsc::Sender<Bytes>);

/// The reader of an answer has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader of the answer has gone")]
pub struct ReaderGone;

impl Frames {
    /// Writes a frame as soon as there is room.
    ///
    /// # Errors
    /// [`ReaderGone`].
    pub async fn send(&self, frame: impl Into<Bytes>) -> Result<(), ReaderGone> {
        self.0.send(frame.into()).await.map_err(|_| ReaderGone)
    }

    /// Returns when the reader has gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// The frames of an answer, on their way to the connection.
pub(crate) type Waiting = mpsc::Receiver<Bytes>;

pub(crate) fn channel() -> (Frames, Waiting) {
    let (frames, waiting) = mpsc::channel(WAITING);
    (Frames(frames), waiting)
}

/// The body of an answer. `guard` lives until the answer has ended.
pub(super) enum ReplyBody<G> {
    Whole(Full<Bytes>),
    Frames { waiting: Waiting, _guard: G },
}

impl<G: Unpin> Body for ReplyBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Frames { waiting, .. } => waiting.poll_recv(context).map(|frame| {
                let frame = frame?;
                let mut bytes = BytesMut::with_capacity(4 + frame.len());
                bytes.put_u32(u32::try_from(frame.len()).expect("frames are far below 4 GiB"));
                bytes.put(frame);
                Some(Ok(Frame::data(bytes.freeze())))
            }),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Frames { .. } => SizeHint::default(),
        }
    }
}

/// The reading end of an answer that goes on. Dropping it tells the writer.
pub struct Stream {
    pub(super) addr: SocketAddr,
    pub(super) path: String,
    pub(super) body: Incoming,
    pub(super) buffer: BytesMut,
    pub(super) frame_max: usize,
    /// Kept so that the connection stays while it is read.
    pub(super) _connection: Connection,
}

impl Stream {
    /// The next frame; `None` when the answer has ended. Cancel-safe.
    ///
    /// # Errors
    /// [`RpcError::Closed`]: the connection broke, the answer ended inside a frame, or a frame is too long.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RpcError> {
        loop {
            if let Some(head) = self.buffer.first_chunk() {
                let length = u32::from_be_bytes(*head) as usize;
                if length > self.frame_max {
                    return Err(self.broken(format!("a frame of {length} bytes is too long")));
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.put(data);
                    }
                }
                Some(Err(error)) => return Err(self.broken(error.to_string())),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.broken("it ended inside a frame".to_owned())),
            }
        }
    }

    fn broken(&self, reason: String) -> RpcError {
        RpcError::Closed {
            addr: self.addr,
            path: self.path.clone(),
            reason,
        }
    }
}
