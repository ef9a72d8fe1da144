//! Gives every service that can be called over mTLS, or that a config entry is about, an address of its own, for good.
//!
//! An address is where the hash of the name falls in 240.0.0.0/4, or the next free one behind it; it is a plain key of
//! the ledger from then on, also when the service is gone for a while. So a service keeps its address over restarts, and
//! a store that was lost and begun anew gives nearly all services the addresses they had.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use libmesh::{mesh::Mesh, model::ServiceName};
use ring::digest::{SHA256, digest};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vault_kv::{Kv, KvOp};
use zeroize::Zeroizing;

use super::{ServerError, Shared, records, unsealed};
use crate::consul::stored::config;

/// Where the addresses are kept: `virtual/<service>`.
pub const VIRTUAL: &str = "virtual/";

/// 240.0.0.0/4, without its first and its last address (the last is the broadcast address of all networks).
const FIRST: u32 = 0xF000_0001;
const COUNT: u32 = 0x0FFF_FFFE;
/// Addresses given out in one entry of the ledger.
const BATCH: usize = 256;
/// More services than this get none: whoever may register any name could fill the ledger otherwise.
const MOST: usize = 1 << 17;
/// Between two looks at the catalog, and as many times what a look took.
const PAUSE: Duration = Duration::from_secs(1);
const SHARE: u32 = 50;

/// Gives out addresses until `stop`, while the store is unsealed.
pub async fn allocate(shared: Arc<Shared>, mesh: Mesh, stop: CancellationToken) {
    let work = || while_unsealed(&shared, &mesh);
    unsealed::follow(&shared.vault, "giving out virtual IPs", &stop, work).await;
}

async fn while_unsealed(shared: &Shared, mesh: &Mesh) -> Result<(), ServerError> {
    let kv = shared.records.kv();
    let mut given = given(kv)?;
    let mut changes = mesh.catalog().watch_all();
    loop {
        changes.mark_unchanged();
        let begun = Instant::now();
        let mut services = mesh.catalog().meshed_services();
        let took = begun.elapsed();
        let entries = kv.changed_under(config::PREFIX)?;
        services.extend(configured(kv)?);
        give(kv, &mut given, &services).await?;
        let next_look = async {
            sleep(PAUSE.max(took * SHARE)).await;
            changes.changed().await
        };
        tokio::select! {
            changed = next_look => if changed.is_err() {
                return Ok(());
            },
            changed = kv.wait_under(config::PREFIX, entries) => {
                changed?;
            }
        }
    }
}

/// The services that a config entry is about: somebody means to call them over mTLS.
fn configured(kv: &Kv) -> Result<BTreeSet<ServiceName>, ServerError> {
    let keys = kv.keys(config::PREFIX, "")?;
    let names = keys.iter().filter_map(|key| {
        let (kind, name) = key.strip_prefix(config::PREFIX)?.split_once('/')?;
        let name = ServiceName::parse(name).ok();
        name.filter(|_| kind.starts_with("service-"))
    });
    Ok(names.collect())
}

/// The addresses that were given out.
pub fn given(kv: &Kv) -> Result<BTreeMap<ServiceName, Ipv4Addr>, ServerError> {
    let mut given = BTreeMap::new();
    for pair in kv.list(VIRTUAL)? {
        let name = pair.key.strip_prefix(VIRTUAL).unwrap_or_default();
        let text = std::str::from_utf8(&pair.value).unwrap_or_default();
        match (ServiceName::parse(name), text.parse()) {
            (Ok(name), Ok(ip)) => {
                given.insert(name, ip);
            }
            _ => tracing::error!(
                key = pair.key,
                "a virtual IP is not readable and does not count"
            ),
        }
    }
    Ok(given)
}

async fn give(
    kv: &Kv,
    given: &mut BTreeMap<ServiceName, Ipv4Addr>,
    services: &BTreeSet<ServiceName>,
) -> Result<(), ServerError> {
    let room = MOST.saturating_sub(given.len());
    let new = services.iter().filter(|name| !given.contains_key(*name));
    let new: Vec<_> = new.take(room).cloned().collect();
    if new.is_empty() {
        return Ok(());
    }
    let mut taken: BTreeSet<Ipv4Addr> = given.values().copied().collect();
    for batch in new.chunks(BATCH) {
        let mut ops = Vec::with_capacity(batch.len());
        for name in batch {
            let ip = free(name, &taken);
            taken.insert(ip);
            given.insert(name.clone(), ip);
            ops.push(KvOp::Set {
                key: format!("{VIRTUAL}{name}"),
                value: Zeroizing::new(ip.to_string().into_bytes()),
                flags: 0,
                cas: Some(0),
                ttl: None,
            });
        }
        let meta = records::system("virtual IPs given", "");
        if let Err(error) = kv.apply(meta, ops).await {
            return Err(match error {
                vault_kv::NotApplied::Failed(error) => error.into(),
                // Somebody else wrote one: what there is, is read again.
                vault_kv::NotApplied::Refused(_) => {
                    ServerError::Record(VIRTUAL.to_owned(), "it changed meanwhile".to_owned())
                }
            });
        }
    }
    Ok(())
}

/// The first free address from where the name's hash falls.
fn free(name: &ServiceName, taken: &BTreeSet<Ipv4Addr>) -> Ipv4Addr {
    let hash = digest(&SHA256, name.as_str().as_bytes());
    let start = hash.as_ref()[..8]
        .iter()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let mut offset = (start % u64::from(COUNT)) as u32;
    loop {
        let ip = Ipv4Addr::from_bits(FIRST + offset);
        if !taken.contains(&ip) {
            return ip;
        }
        offset = (offset + 1) % COUNT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_names_own_unless_it_is_taken() {
        let web = ServiceName::parse("web").unwrap();
        let ip = free(&web, &BTreeSet::new());
        assert_eq!(ip, free(&web, &BTreeSet::new()), "always the same");
        assert_eq!(ip.to_bits() >> 28, 0xF);
        let next = free(&web, &BTreeSet::from([ip]));
        assert_eq!(next.to_bits(), ip.to_bits() + 1);
        let db = ServiceName::parse("db").unwrap();
        assert_ne!(free(&db, &BTreeSet::new()), ip);
    }
}
