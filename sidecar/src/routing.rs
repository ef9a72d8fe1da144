//! Where the calls to a service go: what config entries (`service-resolver`, `service-splitter`, `service-defaults`,
//! `proxy-defaults`) say, as one table.
//!
//! The server keeps the entries and puts them into the config bundle ([`into_bundle`]), so every agent has them, also while no
//! server is there. A table compiles the entries of one service into a [`Chain`]: the branches that its calls are split into,
//! and for each the instances that may take them, and which stand in when there are none. Agents give the endpoints of a
//! service to its callers' sidecars by that ([`crate::attach`]).
//!
//! Behaviour after Consul's discovery chain: <https://developer.hashicorp.com/consul/docs/manage-traffic/discovery-chain>.

mod chain;
mod entry;
mod followed;

use std::collections::BTreeMap;

use libmesh::{bundle::ConfigBundle, model::ServiceName};

pub use chain::{Branch, Chain, DEFAULT_CONNECT_TIMEOUT, Resolved, WHOLE};
pub use entry::{
    Entry, Failover, ProxyConfig, ProxyDefaults, ServiceDefaults, ServiceResolver, ServiceSplitter,
    Split, Subset, Target,
};
pub use followed::{Followed, Published};

/// The entry of the config bundle that holds them.
const ENTRY: &str = "config-entries";
/// What a service speaks unless an entry says so.
const TCP: &str = "tcp";

/// Config entries, by what they are about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    global: Option<ProxyDefaults>,
    defaults: BTreeMap<String, ServiceDefaults>,
    resolvers: BTreeMap<String, ServiceResolver>,
    splitters: BTreeMap<String, ServiceSplitter>,
}

impl FromIterator<Entry> for Routing {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Routing {
        let mut routing = Routing::default();
        for entry in entries {
            routing.put(entry);
        }
        routing
    }
}

impl Routing {
    /// Adds an entry, in place of the one of its kind and name.
    pub fn put(&mut self, entry: Entry) {
        match entry {
            Entry::ProxyDefaults(entry) => self.global = Some(entry),
            Entry::ServiceDefaults(entry) => {
                self.defaults.insert(entry.name.clone(), entry);
            }
            Entry::ServiceResolver(entry) => {
                self.resolvers.insert(entry.name.clone(), entry);
            }
            Entry::ServiceSplitter(entry) => {
                self.splitters.insert(entry.name.clone(), entry);
            }
        }
    }

    /// Takes away what is of a kind and name.
    pub fn remove(&mut self, kind: &str, name: &str) {
        match kind {
            entry::PROXY_DEFAULTS => self.global = None,
            entry::SERVICE_DEFAULTS => drop(self.defaults.remove(name)),
            entry::SERVICE_RESOLVER => drop(self.resolvers.remove(name)),
            entry::SERVICE_SPLITTER => drop(self.splitters.remove(name)),
            _ => {}
        }
    }

    /// What a service speaks.
    pub fn protocol(&self, service: &str) -> &str {
        let own = self.defaults.get(service).map(|it| it.protocol.as_str());
        let own = own.filter(|protocol| !protocol.is_empty());
        let global = self.global.as_ref();
        own.or(global.and_then(|it| it.config.protocol.as_deref()))
            .unwrap_or(TCP)
    }

    /// Whether every service's entries fit together.
    ///
    /// # Errors
    /// In Consul's words, of the first that do not.
    pub fn check(&self) -> Result<(), String> {
        let named = self.splitters.keys().chain(self.resolvers.keys());
        for service in named {
            self.chain(service)?;
        }
        Ok(())
    }

    /// Whether nothing is said about a service's calls.
    pub fn is_plain(&self, service: &ServiceName) -> bool {
        !self.resolvers.contains_key(service.as_str())
            && !self.splitters.contains_key(service.as_str())
    }
}

/// Puts entries into a config bundle.
pub fn into_bundle(entries: &[Entry], bundle: &mut ConfigBundle) {
    if entries.is_empty() {
        bundle.entries.remove(ENTRY);
        return;
    }
    let entry = serde_json::to_vec(entries).expect("plain data always encodes");
    bundle.entries.insert(ENTRY.to_owned(), entry);
}

/// The entries of a config bundle. What this version cannot read counts as none.
pub fn of_bundle(bundle: &ConfigBundle) -> Routing {
    let Some(entry) = bundle.entries.get(ENTRY) else {
        return Routing::default();
    };
    let entries: Vec<Entry> = serde_json::from_slice(entry).unwrap_or_else(|error| {
        tracing::error!(%error, "the config entries of the config bundle are not readable");
        Vec::new()
    });
    entries.into_iter().collect()
}

#[cfg(test)]
mod tests;
