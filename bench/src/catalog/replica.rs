//! The replica: a child that takes the messages in and tells what it took.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use libmesh::catalog::log::Head;
use libmesh::catalog::testing::TestVerifier;
use libmesh::catalog::{Catalog, Options, Outcome};
use libmesh::model::{Liveness, NodeId};
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::parts;

/// Seconds and bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    pub bytes: f64,
    pub resident: f64,
    pub apply: f64,
    pub floor: f64,
    pub hand_out: f64,
    pub changes: f64,
    pub changing: f64,
    pub read_kept: f64,
    pub read_first: f64,
    pub read_instances: usize,
    pub names: f64,
}

pub fn serve(arguments: &[String]) -> Result<()> {
    let path = arguments.first().context("no file")?;
    let file = std::fs::read(path)?;
    let [snapshots, changes] = parts(&file)?;
    let floor = floor(&snapshots)?;
    let catalog = Catalog::open(
        NodeId([0xff; 16]),
        Options {
            verifier: Some(Arc::new(TestVerifier)),
            ..Options::default()
        },
    );
    let before = resident()?;
    let apply = timed(|| take_in(&catalog, &snapshots))?;
    let resident = resident()? - before;

    let began = Instant::now();
    let names = catalog.service_names();
    let names_took = (Instant::now() - began).as_secs_f64();
    let began = Instant::now();
    let mut handed = 0;
    for head in catalog.heads() {
        let messages = catalog.messages_since(head.node, Head::default());
        handed += messages.iter().map(Bytes::len).sum::<usize>();
    }
    let hand_out = (Instant::now() - began).as_secs_f64();
    black_box(handed);

    let name = names.first().context("no services")?.as_str();
    let mut instances = 0;
    let read_first = timed(|| {
        instances = catalog.service(name).map_or(0, |view| view.instances.len());
        Ok(())
    })?;
    const READS: u32 = 1_000_000;
    let read_kept = timed(|| {
        for _ in 0..READS {
            black_box(catalog.service(black_box(name)));
        }
        Ok(())
    })?;
    // All views are kept, as where there is a DNS server in front.
    for name in &names {
        black_box(catalog.service(name.as_str()));
    }
    let changing = timed(|| take_in(&catalog, &changes))?;
    let bytes = snapshots
        .iter()
        .map(|(_, message)| message.len())
        .sum::<usize>();
    let figures = Figures {
        bytes: bytes as f64,
        resident,
        apply,
        floor,
        hand_out,
        changes: changes.len() as f64,
        changing,
        read_kept: read_kept / f64::from(READS),
        read_first: read_first / instances.max(1) as f64,
        read_instances: instances,
        names: names_took,
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn take_in(catalog: &Catalog, messages: &[(NodeId, &[u8])]) -> Result<()> {
    for (node, message) in messages {
        catalog.set_liveness(*node, Liveness::Alive);
        match catalog.apply(Bytes::copy_from_slice(message)) {
            Outcome::Applied => {}
            other => bail!("a message was not applied: {other:?}"),
        }
    }
    Ok(())
}

/// What nobody can do without: a signature of each message, and one hash of its bytes.
fn floor(messages: &[(NodeId, &[u8])]) -> Result<f64> {
    let failed = |_| anyhow::anyhow!("the signature failed");
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(failed)?;
    let key =
        Ed25519KeyPair::from_pkcs8(key.as_ref()).map_err(|error| anyhow::anyhow!("{error}"))?;
    let signed: Vec<_> = messages
        .iter()
        .map(|(_, message)| (*message, key.sign(message)))
        .collect();
    let public = UnparsedPublicKey::new(&ED25519, key.public_key().as_ref());
    timed(|| {
        for (message, signature) in &signed {
            public.verify(message, signature.as_ref()).map_err(failed)?;
            black_box(digest::digest(&digest::SHA256, message));
        }
        Ok(())
    })
}

/// Processor time of this thread, in seconds, that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = processor_time()?;
    work()?;
    Ok(processor_time()? - before)
}

fn processor_time() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let nanos = text
        .split_whitespace()
        .next()
        .and_then(|field| field.parse::<f64>().ok());
    Ok(nanos.with_context(|| format!("{path} has no number"))? / 1e9)
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<f64> {
    const PAGE: f64 = 4096.0;
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages = text
        .split_whitespace()
        .nth(1)
        .and_then(|field| field.parse::<f64>().ok());
    Ok(pages.context("/proc/self/statm has no number")? * PAGE)
}
