//! Who is at the other end of the Vault port.

use std::time::SystemTime;

use libmesh::identity::Trust;
use vault_kv::{Caller, Via};

use crate::http::{ConnInfo, Proof, Remote};

/// Whom a connection's address and certificate speak for. Once per connection, and again when roots or revocations change, the certificate is
/// checked against the mesh's `trust`; no mesh yet, or a certificate of somebody else: a caller without SPIFFE ID.
pub fn caller(conn: &ConnInfo, trust: Option<&Trust>) -> Caller {
    let remote = match &conn.remote {
        Remote::Tcp(addr) => vault_kv::Remote::Ip(addr.ip()),
        Remote::Unix { .. } => vault_kv::Remote::Unix,
    };
    let mut caller = Caller::anonymous(remote, Via::Http);
    if !conn.certificates.is_empty() {
        caller.certificates.clone_from(&conn.certificates);
        caller.spiffe = trust.and_then(|trust| identity(conn, trust));
    }
    caller
}

fn identity(conn: &ConnInfo, trust: &Trust) -> Option<String> {
    let now = SystemTime::now();
    let generation = *trust.watch().borrow();
    let mut known = conn.proof.lock();
    let proof = match known.take() {
        Some(proof) if proof.generation == generation => proof,
        _ => {
            let leaf = trust.verify(&conn.certificates, now).ok();
            Proof {
                generation,
                identity: leaf.map(|leaf| (leaf.spiffe.to_string(), leaf.not_after)),
            }
        }
    };
    let proof = known.insert(proof);
    let (spiffe, not_after) = proof.identity.as_ref()?;
    (now < *not_after).then(|| spiffe.clone())
}
