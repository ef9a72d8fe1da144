//! What can go wrong with a call, so that the caller knows whom to blame and whether to try again.

use std::{io, net::SocketAddr, time::Duration};

use http::StatusCode;

use crate::error::{Blame, Retry};

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// The host answered that nobody listens there (RST): the process is not running.
    #[error("{addr} refused the connection: no mesh node listens there")]
    Refused {
        /// Where.
        addr: SocketAddr,
    },
    /// The host could not be reached.
    #[error("cannot reach {addr}")]
    Unreachable {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The peer's identity or ours was not accepted, or it does not speak our protocol.
    #[error("no trusted connection to {addr}: {reason}")]
    Handshake {
        /// Where.
        addr: SocketAddr,
        /// What was wrong.
        reason: String,
    },
    /// Another node answers at this address, or one without the server role that was asked for.
    #[error("{addr} is {got}, not {wanted}")]
    WrongPeer {
        /// Where.
        addr: SocketAddr,
        /// Who answered.
        got: String,
        /// Who was wanted.
        wanted: String,
    },
    /// No answer in time.
    #[error("{addr} did not answer {path} within {after:?}")]
    TimedOut {
        /// Where.
        addr: SocketAddr,
        /// What was called.
        path: String,
        /// The deadline.
        after: Duration,
    },
    /// The connection ended before the answer; the call may have been carried out.
    #[error("the connection to {addr} ended during {path}: {reason}")]
    Closed {
        /// Where.
        addr: SocketAddr,
        /// What was called.
        path: String,
        /// What the protocol said.
        reason: String,
    },
    /// The peer answered with an error of its own.
    #[error("{addr} answered {path} with {status}: {message}")]
    Status {
        /// Where.
        addr: SocketAddr,
        /// What was called.
        path: String,
        /// The status.
        status: StatusCode,
        /// Its message.
        message: String,
    },
}

impl RpcError {
    /// Whom to blame.
    pub fn blame(&self) -> Blame {
        match self.status() {
            Some(status) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                Blame::Caller
            }
            _ => Blame::Peer,
        }
    }

    /// Whether trying again helps. After [`TimedOut`](Self::TimedOut) and [`Closed`](Self::Closed) the call may have
    /// been carried out already.
    pub fn retry(&self) -> Retry {
        Retry::later_if(match self {
            Self::Handshake { .. } | Self::WrongPeer { .. } => false,
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => true,
        })
    }

    /// Whether nothing was carried out and another node may well answer.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Unreachable { .. }
                | Self::Handshake { .. }
                | Self::WrongPeer { .. }
        )
    }

    /// The status that the peer answered with.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}
