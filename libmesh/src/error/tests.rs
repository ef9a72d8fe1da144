use std::{error::Error, io, path::PathBuf};

use super::*;
use crate::{
    bundle::BundleError,
    catalog::LocalError,
    connect::ConnectError,
    identity::{IdentityError, KeyError, LeafError, SourceError, SpiffeError, TrustError},
    join::{DirectoryError, JoinError},
    mesh::{Config, MeshError},
    model::{InvalidField, NodeName, ServiceName},
    rpc::RpcError,
};

fn system() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device")
}

fn key() -> KeyError {
    KeyError::File {
        path: "/x/key.p8".into(),
        source: system(),
    }
}

/// One of each kind that has a cause, and of those that a node meets at its start.
fn samples() -> Vec<(MeshError, Blame, bool)> {
    let addr = "10.0.0.1:8301".parse().unwrap();
    let web: ServiceName = "web".parse().unwrap();
    let node: NodeName = "node-1".parse().unwrap();
    let leaf = || LeafError::Spiffe(SpiffeError::Form("http://x".into()));
    let path = || PathBuf::from("/x");
    vec![
        (
            Config::builder("").build().err().unwrap().into(),
            Blame::Configuration,
            false,
        ),
        (
            MeshError::PortInUse { what: "UDP", addr },
            Blame::Environment,
            false,
        ),
        (
            MeshError::Listen {
                what: "TCP",
                addr,
                source: io::ErrorKind::AddrNotAvailable.into(),
            },
            Blame::Configuration,
            false,
        ),
        (
            MeshError::Listen {
                what: "TCP",
                addr,
                source: io::ErrorKind::PermissionDenied.into(),
            },
            Blame::Environment,
            false,
        ),
        (MeshError::NotJoined(node), Blame::Configuration, false),
        (
            JoinError::Later("sealed".into()).into(),
            Blame::Authority,
            true,
        ),
        (
            JoinError::Unreachable("10.0.0.1".into()).into(),
            Blame::Peer,
            true,
        ),
        (
            JoinError::Expired("yesterday".into()).into(),
            Blame::Configuration,
            false,
        ),
        (JoinError::Key(key()).into(), Blame::Environment, false),
        (
            DirectoryError::File {
                path: path(),
                source: system(),
            }
            .into(),
            Blame::Environment,
            false,
        ),
        (DirectoryError::Key(key()).into(), Blame::Environment, false),
        (
            DirectoryError::Exposed {
                path: path(),
                mode: 0o755,
            }
            .into(),
            Blame::Environment,
            false,
        ),
        (
            IdentityError::Source(SourceError::Unavailable("sealed".into())).into(),
            Blame::Authority,
            true,
        ),
        (
            IdentityError::Source(SourceError::Refused("not yours".into())).into(),
            Blame::Authority,
            false,
        ),
        (
            IdentityError::Trust(TrustError::Leaf(leaf())).into(),
            Blame::Authority,
            false,
        ),
        (TrustError::Leaf(leaf()).into(), Blame::Peer, false),
        (
            BundleError::Cache {
                path: path(),
                source: system(),
            }
            .into(),
            Blame::Environment,
            false,
        ),
        (
            BundleError::Signer(TrustError::Pin).into(),
            Blame::Peer,
            false,
        ),
        (BundleError::Forked(7).into(), Blame::Authority, false),
        (
            LocalError::Invalid(InvalidField::new("tags", "too many")).into(),
            Blame::Caller,
            false,
        ),
        (
            LocalError::NotPermitted {
                service: web.clone(),
            }
            .into(),
            Blame::Configuration,
            false,
        ),
        (ConnectError::NoEndpoint(web).into(), Blame::Peer, true),
        (
            ConnectError::Denied("no rule".into()).into(),
            Blame::Authority,
            false,
        ),
    ]
}

#[test]
fn errors_say_whom_to_blame_and_whether_to_retry() {
    for (error, blame, retry) in samples() {
        assert_eq!(error.blame(), blame, "{error}");
        assert_eq!(error.retry().is_worthwhile(), retry, "{error}");
    }
}

#[test]
fn a_message_never_repeats_that_of_its_source() {
    let mut with_a_cause = 0;
    for (error, ..) in samples() {
        let mut error: &dyn Error = &error;
        while let Some(source) = error.source() {
            let (whole, part) = (error.to_string(), source.to_string());
            assert!(!whole.contains(&part), "{whole:?} repeats {part:?}");
            with_a_cause += 1;
            error = source;
        }
    }
    assert!(with_a_cause >= 8, "{with_a_cause}");
}

#[test]
fn calls_between_nodes_tell_a_bad_question_from_a_peer_in_trouble() {
    let status = |code: u16| RpcError::Status {
        addr: "10.0.0.1:8301".parse().unwrap(),
        path: "/x".into(),
        status: http::StatusCode::from_u16(code).unwrap(),
        message: String::new(),
    };
    let told = |error: RpcError| (error.blame(), error.retry());
    assert_eq!(told(status(404)), (Blame::Caller, Retry::No));
    assert_eq!(told(status(503)), (Blame::Peer, Retry::Later));
    assert_eq!(told(status(429)), (Blame::Peer, Retry::Later));
    let addr = "10.0.0.1:8301".parse().unwrap();
    assert_eq!(
        told(RpcError::Refused { addr }),
        (Blame::Peer, Retry::Later)
    );
}
