//! `[[service]]`: what a host offers, written down instead of registered over HTTP.

use std::{collections::BTreeMap, path::PathBuf};

use libmesh::model::{Host, InstanceId, ServiceName, Weights};

use super::{ExecChecks, check::CheckConfig, reader::Reader, tree::Place};

/// One `[[service]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Unique on the node; the service's name unless set.
    pub id: InstanceId,
    /// The service.
    pub name: ServiceName,
    /// Where it listens.
    pub port: u16,
    /// Its address, if not the node's.
    pub address: Option<Host>,
    /// Labels.
    pub tags: Vec<String>,
    /// Free-form pairs.
    pub meta: BTreeMap<String, String>,
    /// Version, for subsets and traffic splits.
    pub version: Option<String>,
    /// DNS and balancing weights.
    pub weights: Weights,
    /// Port of its sidecar's mTLS listener, when that is fixed.
    pub mesh_port: Option<u16>,
    /// What decides whether it is healthy.
    pub checks: Vec<CheckConfig>,
    /// Which local callers are this service.
    pub attach: Attach,
    /// Where it was written, for messages.
    pub place: Place,
}

/// Which callers of the agent's Unix socket are this service. Without either, none is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attach {
    /// Processes of this user.
    pub uid: Option<u32>,
    /// Processes that show the token in this file (0600).
    pub token_file: Option<PathBuf>,
}

impl ServiceConfig {
    pub(super) fn read(mut reader: Reader<'_>, exec: ExecChecks) -> Option<ServiceConfig> {
        let place = reader.place().clone();
        if !reader.has("name") {
            reader.report(&place, "a [[service]] needs a `name`");
        }
        let name = reader.parsed("name", "a service name", ServiceName::parse);
        let id = reader.parsed("id", "an instance id", InstanceId::parse);
        let port = reader.integer("port", 0, i64::from(u16::MAX)).unwrap_or(0);
        let mesh_port = reader.integer("mesh_port", 1, i64::from(u16::MAX));
        let address = reader.parsed("address", "an address or host name", Host::parse);
        let tags = reader.list("tags", "a string", |tag| Ok::<_, String>(tag.to_owned()));
        let meta = reader.pairs("meta");
        let version = reader.text("version");
        let weights = reader.section("weights").map(read_weights);
        let attach = reader.section("attach").map(Attach::read);
        let checks = reader
            .sections("check")
            .into_iter()
            .filter_map(|reader| CheckConfig::read(reader, exec))
            .collect();
        reader.finish();
        let name = name?;
        let id = match id {
            Some(id) => id,
            None => InstanceId::parse(name.as_str()).ok()?,
        };
        Some(ServiceConfig {
            id,
            name,
            port: u16::try_from(port).ok()?,
            address,
            tags: tags.unwrap_or_default(),
            meta: meta.unwrap_or_default(),
            version,
            weights: weights.unwrap_or_default(),
            mesh_port: mesh_port.and_then(|port| u16::try_from(port).ok()),
            checks,
            attach: attach.unwrap_or_default(),
            place,
        })
    }
}

fn read_weights(mut reader: Reader<'_>) -> Weights {
    let max = i64::from(u16::MAX);
    let mut weights = Weights::default();
    let mut take = |key, low, own: &mut u16| {
        let given = reader.integer(key, low, max);
        *own = given.and_then(|w| u16::try_from(w).ok()).unwrap_or(*own);
    };
    take("passing", 1, &mut weights.passing);
    take("warning", 0, &mut weights.warning);
    reader.finish();
    weights
}

impl Attach {
    fn read(mut reader: Reader<'_>) -> Attach {
        let token_file = reader.path("token_file");
        let uid = reader.user("uid");
        reader.finish();
        Attach { uid, token_file }
    }
}
