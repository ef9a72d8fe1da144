//! Putting a node together, in the order in which the parts need each other.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Config, Credentials, Inner, Mesh, MeshError, advertise,
    authority::{NodeSigner, NodeVerifier, RemoteSource, Servers},
    keys,
    outbound::Outbound,
    problem::{self, Problems},
    sockets,
    transport::{self, Transport},
    upkeep,
};
use crate::{
    bundle::{self, BundleError, BundleStore, Peers},
    catalog::{Catalog, Options},
    health::{Scheduler, kept_in_maintenance},
    identity::{CertificateSource, Identity, IdentityError, Subject, Trust},
    join::{self, JoinToken, NodeCredentials, NodeDirectory},
    member::{self, Driver, NodeMeta, decode_candidates},
    model::{Locality, NodeRecord},
    rpc::{Client, Server},
    sync::{Members, Plane},
};

pub(super) async fn start(config: Config) -> Result<Mesh, MeshError> {
    let directory = config
        .directory
        .as_deref()
        .map(NodeDirectory::open)
        .transpose()?;
    let lock = match &directory {
        Some(directory) => Some(directory.lock().await?),
        None => None,
    };
    let (udp, tcp, bound) = sockets::bind(config.bind).await?;
    let advertise = advertise::choose(&config, bound).await?;
    let credentials = credentials(&config, directory.as_ref(), advertise).await?;
    if let Some(wanted) = &config.datacenter
        && *wanted != credentials.datacenter
    {
        return Err(MeshError::OtherDatacenter {
            kept: credentials.datacenter,
            wanted: wanted.clone(),
        });
    }
    if let Some(directory) = &directory {
        directory.save(&credentials)?;
    }

    let trust = Trust::new(credentials.trust_domain.clone(), credentials.bundle.clone())?;
    let identity = own_identity(&trust, &credentials, directory.as_ref())?;
    let cache = directory.as_ref().map(NodeDirectory::bundle_path);
    let bundles = BundleStore::open(trust.clone(), credentials.datacenter.clone(), cache)?;
    if let Some(newest) = credentials.config.clone() {
        match bundles.offer(newest).await {
            // The directory may remember a newer one than the joined node had.
            Ok(_) | Err(BundleError::Older { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }

    let catalog = catalog(
        &config,
        &credentials,
        &trust,
        &identity,
        advertise,
        directory.as_ref(),
    )?;
    if let Some(directory) = &directory {
        // Takes back the "clean" of the last stop before anything is told to others.
        directory.save_log(&catalog.save(false))?;
    }
    let client = Client::new(identity.clone());
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let seeds = seeds(&config, &credentials).await;
    let servers = Servers {
        catalog: catalog.clone(),
        seeds: seeds.clone().into(),
    };

    let transport = Arc::new(Transport(client.clone()));
    let candidates = directory
        .as_ref()
        .map(NodeDirectory::candidates)
        .transpose()?
        .unwrap_or_default();
    let generation = generation(directory.as_ref())?;
    let member = member::Config {
        preset: config.preset.clone(),
        seeds,
        candidates: decode_candidates(&candidates),
        pool: credentials.datacenter.as_str().into(),
        meta: NodeMeta {
            roles: config.roles,
            zone: config.meta.get("zone").cloned().unwrap_or_default(),
            version: config.version.clone(),
            ..NodeMeta::default()
        },
        pool_limit: config.pool_limit,
        ..member::Config::lan(credentials.key.node_id(), advertise, generation)
    };
    let label = credentials.trust_domain.as_str().as_bytes();
    let membership = Driver::spawn(
        &member,
        credentials.keyring.clone(),
        label,
        udp,
        transport.clone(),
    )
    .map_err(|error| MeshError::Membership(error.to_string()))?;
    let plane = Plane::new(catalog.clone(), transport, config.sync);
    let certificates: Arc<dyn CertificateSource> = match &config.certificates {
        Some(own) => own.clone(),
        None => Arc::new(RemoteSource {
            client: client.clone(),
            servers: servers.clone(),
        }),
    };

    let router = transport::routes(&membership, &plane)
        .merge(keys::routes(&credentials.keyring, directory.clone()))
        .merge(bundle::routes(bundles.clone(), stop.clone()))
        .merge(join::route(
            config.routes.clone(),
            identity.clone(),
            client.clone(),
            {
                let servers = servers.clone();
                move || servers.targets()
            },
        ))
        .merge(config.routes.clone());
    let server = Server::new(identity.clone(), router, config.limits.clone());
    tasks.spawn(server.run(tcp, stop.clone()));
    tasks.spawn(plane.clone().run(Members::from(&membership), stop.clone()));
    tasks.spawn(bundle::follow(
        bundles.clone(),
        client.clone(),
        peers(servers.clone()),
        stop.clone(),
    ));
    tasks.spawn(upkeep::follow_broken(
        client.broken(),
        membership.clone(),
        stop.clone(),
    ));
    let problems = Problems::default();
    let keyring = directory.as_ref().map(NodeDirectory::keyring_path);
    tasks.spawn(problem::follow_keys(
        membership.clone(),
        keyring,
        problems.clone(),
        stop.clone(),
    ));
    tasks.spawn(upkeep::follow_trust(
        trust,
        catalog.clone(),
        membership.clone(),
        stop.clone(),
    ));
    if !identity.leaf().rights.is_server() {
        // A server changes the keyring; it asks nobody.
        tasks.spawn(keys::follow(
            membership.clone(),
            client.clone(),
            servers.clone(),
            directory.clone(),
            stop.clone(),
        ));
    }
    let subject = Subject::Node(credentials.key.clone());
    tasks.spawn(
        identity
            .clone()
            .keep_renewed(certificates.clone(), subject, stop.clone()),
    );
    if let Some(directory) = directory.clone() {
        let (log, kept) = (catalog.clone(), directory.clone());
        tasks.spawn(upkeep::follow_log(log, kept, stop.clone()));
        tasks.spawn(upkeep::follow_members(
            membership.clone(),
            directory,
            stop.clone(),
        ));
    }
    if let Some(settle) = config.settle.filter(|_| config.resume) {
        tasks.spawn(upkeep::settle(catalog.clone(), settle, stop.clone()));
    }
    let (name, datacenter) = (credentials.name.clone(), credentials.datacenter.clone());
    let (own, own_catalog) = (identity.clone(), catalog.clone());
    tasks.spawn(upkeep::follow_certificate(
        own,
        own_catalog,
        credentials,
        directory.clone(),
        stop.clone(),
    ));

    let inner = Inner {
        name,
        datacenter,
        advertise,
        identity,
        servers,
        problems,
        checks: Scheduler::new(catalog.local()),
        outbound: Outbound::new(catalog.clone(), bundles.clone(), stop.clone()),
        catalog,
        directory,
        lock: Mutex::new(lock),
        membership,
        plane,
        bundles,
        client,
        certificates,
        service_ttl: config.service_ttl,
        services: Mutex::new(HashMap::new()),
        tasks,
        _end_with_last_handle: stop.clone().drop_guard(),
        stop,
    };
    tracing::info!(node = %inner.name, %advertise, "mesh node started");
    Ok(Mesh {
        inner: Arc::new(inner),
    })
}

async fn credentials(
    config: &Config,
    directory: Option<&NodeDirectory>,
    advertise: SocketAddr,
) -> Result<NodeCredentials, MeshError> {
    if let Credentials::Given(given) = &config.credentials {
        return Ok(NodeCredentials::clone(given));
    }
    let not_joined = || MeshError::NotJoined(config.node.clone());
    let directory = directory.ok_or_else(|| MeshError::NoDirectory(config.node.clone()))?;
    if let Some(kept) = directory.load()? {
        if kept.name != config.node {
            return Err(MeshError::OtherNode {
                kept: kept.name,
                wanted: config.node.clone(),
            });
        }
        let expired = Trust::new(kept.trust_domain.clone(), kept.bundle.clone())
            .is_ok_and(|trust| trust.verify(&kept.chain, SystemTime::now()).is_err());
        if let Credentials::Join(token) = &config.credentials {
            same_mesh(directory, &kept, token)?;
        }
        // A token given with the start mends what a long absence has let expire.
        if !(expired && matches!(config.credentials, Credentials::Join(_))) {
            return Ok(kept);
        }
    }
    let Credentials::Join(token) = &config.credentials else {
        return Err(not_joined());
    };
    let key = directory.key()?;
    let joined = join::join(
        token,
        &config.seeds,
        &config.node,
        &key,
        advertise,
        config.join_patience,
    )
    .await?;
    directory.save_pin(&token.ca_hash())?;
    Ok(joined)
}

/// A token that stays in the configuration after its join is fine, also when the roots were changed since; one of
/// another mesh is a mistake that would otherwise go unnoticed until this node looks for the others.
fn same_mesh(
    directory: &NodeDirectory,
    kept: &NodeCredentials,
    token: &JoinToken,
) -> Result<(), MeshError> {
    let pinned = directory.pin()?;
    let known = kept.bundle.hashes().any(|hash| hash == token.ca_hash())
        || pinned.is_none_or(|hash| hash == token.ca_hash());
    if known {
        return Ok(());
    }
    Err(MeshError::OtherMesh {
        directory: directory.path().to_owned(),
        domain: kept.trust_domain.to_string(),
    })
}

fn own_identity(
    trust: &Trust,
    credentials: &NodeCredentials,
    directory: Option<&NodeDirectory>,
) -> Result<Identity, MeshError> {
    Identity::new(trust.clone(), credentials.chain.clone(), &credentials.key).map_err(|error| {
        match error {
            IdentityError::Trust(reason) => MeshError::Certificate {
                node: credentials.name.clone(),
                reason: reason.to_string(),
            },
            IdentityError::KeyMismatch(_) => MeshError::OtherKey {
                path: directory.map_or_else(|| "given".into(), NodeDirectory::key_path),
                node: credentials.name.clone(),
            },
            other => other.into(),
        }
    })
}

fn catalog(
    config: &Config,
    credentials: &NodeCredentials,
    trust: &Trust,
    identity: &Identity,
    advertise: SocketAddr,
    directory: Option<&NodeDirectory>,
) -> Result<Catalog, MeshError> {
    let options = Options {
        verifier: Some(Arc::new(NodeVerifier(trust.clone()))),
        signer: Some(Arc::new(NodeSigner(credentials.key.clone()))),
        ..Options::default()
    };
    let id = credentials.key.node_id();
    let saved = directory.map(NodeDirectory::log).transpose()?.flatten();
    let restored = saved.map(|saved| Catalog::restore(id, options.clone(), &saved));
    let catalog = match restored {
        Some(Ok(catalog)) => catalog,
        Some(Err(error)) => {
            tracing::warn!(%error, "beginning without the records of the last life");
            Catalog::open(id, options)
        }
        None => Catalog::open(id, options),
    };
    let local = catalog.local();
    if !config.resume {
        local.settle(kept_in_maintenance(&local));
    }
    local.set_certificate(&identity.chain())?;
    local.put_node(NodeRecord {
        id,
        name: credentials.name.clone(),
        datacenter: credentials.datacenter.clone(),
        address: advertise.ip(),
        port: advertise.port(),
        roles: config.roles,
        locality: locality(config),
        meta: config.meta.clone(),
        version: config.version.clone(),
        external: None,
    })?;
    Ok(catalog)
}

/// Where the node stands, by its own words. A zone alone is only metadata.
fn locality(config: &Config) -> Locality {
    let named = |key: &str| config.meta.get(key).cloned().unwrap_or_default();
    let region = named("region");
    match region.is_empty() {
        true => Locality::default(),
        false => Locality {
            region,
            zone: named("zone"),
        },
    }
}

/// Where to announce to at first: the seeds of the configuration and those that came with the join. A
/// seed that does not resolve now is no reason not to start: kept candidates may do.
async fn seeds(config: &Config, credentials: &NodeCredentials) -> Vec<SocketAddr> {
    let mut seeds = credentials.seeds.clone();
    for seed in &config.seeds {
        match seed.resolve().await {
            Ok(found) => seeds.extend(found),
            Err(error) => tracing::warn!(%seed, %error, "a seed cannot be resolved"),
        }
    }
    seeds.sort_unstable();
    seeds.dedup();
    seeds
}

/// This life of the node: later than the last one, also when the clock was set back.
fn generation(directory: Option<&NodeDirectory>) -> Result<u64, MeshError> {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros();
    let now = u64::try_from(micros).unwrap_or(u64::MAX);
    let Some(directory) = directory else {
        return Ok(now);
    };
    let generation = now.max(directory.generation()?.saturating_add(1));
    directory.save_generation(generation)?;
    Ok(generation)
}

fn peers(servers: Servers) -> impl Fn() -> Peers + Send + 'static {
    move || Peers {
        servers: servers.targets(),
        others: servers.others(),
    }
}
