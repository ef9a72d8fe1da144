//! One question over UDP, for people: what `mesh demo` prints beside the `dig` line that asks the same.

use std::{io, net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{
        Name, RData, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};
use tokio::{net::UdpSocket, time::timeout};

use crate::wire::EDE_STALE_ANSWER;

/// Number of the EDNS option for extended errors (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

/// The number of a record type, given by its name in any case ("SRV") or as `TYPE65400`.
pub fn record_type(kind: &str) -> Option<u16> {
    let kind: RecordType = kind.to_ascii_uppercase().parse().ok()?;
    Some(kind.into())
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The name or the type cannot be asked for.
    #[error("cannot ask for {name} {kind}: {reason}")]
    Question {
        /// The name.
        name: String,
        /// The record type.
        kind: String,
        /// What is wrong with them.
        reason: String,
    },
    /// The socket failed.
    #[error("cannot ask {server}: {source}")]
    Io {
        /// The server.
        server: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error("no answer from {server} within {within:?}")]
    TimedOut {
        /// The server.
        server: SocketAddr,
        /// How long we waited.
        within: Duration,
    },
    /// What came back was no answer to the question.
    #[error("{server} sent something that is no answer to the question")]
    Malformed {
        /// The server.
        server: SocketAddr,
    },
}

/// An answer, decoded.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The response code.
    pub code: ResponseCode,
    /// It did not fit: the whole comes over TCP.
    pub truncated: bool,
    /// It is the last that was known (RFC 8914, "Stale Answer").
    pub stale: bool,
    /// The answer section, one line a record as `dig` prints it.
    pub lines: Vec<String>,
    /// The data of the answer section.
    pub data: Vec<RData>,
}

impl Answer {
    /// The response code as `dig` prints it.
    pub fn code_name(&self) -> String {
        let known = match self.code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::NotImp => "NOTIMP",
            ResponseCode::Refused => "REFUSED",
            other => return format!("RCODE{}", u16::from(other)),
        };
        known.to_owned()
    }
}

/// Asks `server` for `name` and record type `kind` ("A", "SRV", ...) once, without retries.
pub async fn query(
    server: SocketAddr,
    name: &str,
    kind: &str,
    within: Duration,
) -> Result<Answer, ClientError> {
    let question = |reason: String| ClientError::Question {
        name: name.to_owned(),
        kind: kind.to_owned(),
        reason,
    };
    let asked = Name::from_ascii(format!("{}.", name.trim_end_matches('.')))
        .map_err(|error| question(error.to_string()))?;
    let kind = record_type(kind).ok_or_else(|| question("no such record type".to_owned()))?;
    let kind = RecordType::from(kind);

    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(asked, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    let id = message.metadata.id;
    let packet = message
        .to_vec()
        .map_err(|error| question(error.to_string()))?;

    let io = |source| ClientError::Io { server, source };
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(local).await.map_err(io)?;
    socket.connect(server).await.map_err(io)?;
    socket.send(&packet).await.map_err(io)?;
    let mut buffer = [0u8; 4096];
    let length = timeout(within, socket.recv(&mut buffer))
        .await
        .map_err(|_| ClientError::TimedOut { server, within })?
        .map_err(io)?;
    let answer = Message::from_vec(&buffer[..length])
        .ok()
        .filter(|answer| answer.metadata.id == id)
        .ok_or(ClientError::Malformed { server })?;
    let stale = answer.edns.as_ref().is_some_and(|edns| {
        let errors = edns.option(EdnsCode::Unknown(EXTENDED_ERROR));
        matches!(errors, Some(EdnsOption::Unknown(_, data)) if data.starts_with(&EDE_STALE_ANSWER.to_be_bytes()))
    });
    Ok(Answer {
        code: answer.metadata.response_code,
        truncated: answer.metadata.truncation,
        stale,
        lines: answer.answers.iter().map(ToString::to_string).collect(),
        data: answer
            .answers
            .into_iter()
            .map(|record| record.data)
            .collect(),
    })
}
