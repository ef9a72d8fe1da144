//! Small constructors for the answers that handlers give.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;

/// What a handler answers.
pub type Reply = Response<Body>;

/// The body of an answer: nearly always whole, as it was built in memory.
pub struct Body(Content);

enum Content {
    Whole(Option<Bytes>),
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl Body {
    /// A body that comes piece by piece and may be larger than memory. An error cuts the connection, so that the
    /// client cannot take what it got for all of it.
    pub fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self(Content::Stream(pieces))
    }

    /// How long it is, in bytes; `None` of one that comes piece by piece.
    pub fn length(&self) -> Option<usize> {
        match &self.0 {
            Content::Whole(bytes) => Some(bytes.as_ref().map_or(0, Bytes::len)),
            Content::Stream(_) => None,
        }
    }

    /// The whole body; `None` of one that comes piece by piece.
    pub fn into_bytes(self) -> Option<Bytes> {
        match self.0 {
            Content::Whole(bytes) => Some(bytes.unwrap_or_default()),
            Content::Stream(_) => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Whole(Some(bytes).filter(|all| !all.is_empty())))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|all| Ok(Frame::data(all)))),
            Content::Stream(pieces) => {
                let piece = pieces.poll_recv(context);
                piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |all| all.len() as u64))
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// A `text/plain` answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

/// An `application/json` answer. A value that cannot be written as JSON becomes a 500 that says so.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => with_type(status, "application/json", body.into()),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer could not be written as JSON: {error}"),
        ),
    }
}

/// An answer without a body or content type.
pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Body::from(Bytes::new()));
    *reply.status_mut() = status;
    reply
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Body::from(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    reply
}
