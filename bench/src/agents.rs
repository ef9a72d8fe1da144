//! Real agents as processes: each is this same program, with sockets, certificates and a catalog of its own.
//!
//! Each offers the service `web` and prints a line whenever the set of nodes changes that it shows with it: the time in
//! µs since 1970 (one machine, one clock) and the names. What is *shown* is what a user would get: instances of nodes
//! that are present and not merely kept as stale.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use libmesh::identity::{
    NodeKey, PublishRights, SigningKeyPair, SpiffeId, TrustBundle, TrustDomain,
};
use libmesh::join::NodeCredentials;
use libmesh::member::Keyring;
use libmesh::mesh::{Config, Credentials, Mesh};
use libmesh::model::{Datacenter, Instance, NodeName, ServiceName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

const DOMAIN: &str = "bench.mesh";
const SERVICE: &str = "web";
/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Writes what agents make their credentials from.
fn write_authority(folder: &Path) -> Result<()> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root = authority().self_signed(&key)?;
    std::fs::write(folder.join("root.der"), root.der())?;
    std::fs::write(folder.join("root.key"), key.serialize_der())?;
    let secret: [u8; 32] = std::array::from_fn(|i| i as u8);
    std::fs::write(folder.join("keyring"), [&[1, 1][..], &secret].concat())?;
    Ok(())
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn credentials(folder: &Path, name: &NodeName) -> Result<NodeCredentials> {
    let file = |name: &str| {
        std::fs::read(folder.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let domain = TrustDomain::parse(DOMAIN)?;
    let authority_key = KeyPair::try_from(file("root.key")?)?;
    let issuer = Issuer::new(authority(), authority_key);
    let key = NodeKey::generate()?;
    let mut request = CertificateSigningRequestParams::from_der(&key.csr_der()?.into())?;
    let spiffe = SpiffeId::node(&domain, name).to_string();
    request.params.subject_alt_names = vec![SanType::URI(spiffe.try_into()?)];
    let (oid, value) = PublishRights::all().to_extension();
    request.params.custom_extensions = vec![CustomExtension::from_oid_content(&oid, value)];
    let now = SystemTime::now();
    request.params.not_before = (now - Duration::from_secs(60)).into();
    request.params.not_after = (now + Duration::from_secs(24 * 3600)).into();
    Ok(NodeCredentials {
        key,
        name: name.clone(),
        datacenter: Datacenter::default(),
        trust_domain: domain,
        chain: vec![request.signed_by(&issuer)?.der().to_vec()],
        bundle: TrustBundle {
            roots: vec![file("root.der")?],
        },
        keyring: Keyring::from_bytes(&file("keyring")?)?,
        seeds: Vec::new(),
        config: None,
    })
}

/// The child: arguments are folder, name, address to bind, and seeds.
pub fn child(arguments: &[String]) -> Result<()> {
    let [folder, name, bind, seeds @ ..] = arguments else {
        bail!("expected: folder, name, address, seeds");
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(Path::new(folder), name, bind, seeds))
}

async fn serve(folder: &Path, name: &str, bind: &str, seeds: &[String]) -> Result<()> {
    let name = NodeName::parse(name)?;
    let mut config = Config::new(
        name.clone(),
        Credentials::Given(Box::new(credentials(folder, &name)?)),
    );
    config.bind = bind.parse().context("the address to bind")?;
    for seed in seeds {
        config.seeds.push(seed.parse().context("a seed")?);
    }
    let mesh = Mesh::start(config).await?;
    mesh.register(Instance::new(ServiceName::parse(SERVICE)?, 80)?)?;
    println!("{}", mesh.addr());
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // Until the parent closes it, or is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(end);
    });
    let mut changes = mesh.catalog().watch_all();
    let mut last = BTreeSet::new();
    loop {
        let shown = shown(&mesh);
        if shown != last {
            let names: Vec<&str> = shown.iter().map(String::as_str).collect();
            println!("{} {}", now(), names.join(" "));
            last = shown;
        }
        tokio::select! {
            _ = &mut ended => return Ok(()),
            changed = changes.changed() => changed.context("the catalog ended")?,
        }
    }
}

fn shown(mesh: &Mesh) -> BTreeSet<String> {
    let view = mesh.catalog().service(SERVICE);
    let instances = view.iter().flat_map(|view| &view.instances);
    instances
        .filter(|instance| !instance.stale)
        .map(|instance| instance.node.record.name.to_string())
        .collect()
}

/// µs since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

/// A set of nodes that an agent showed.
pub struct View {
    /// Which agent.
    pub by: String,
    /// When, in µs since 1970.
    pub at: u64,
    /// Whom it showed.
    pub shows: BTreeSet<String>,
}

struct Agent {
    process: Child,
    shows: BTreeSet<String>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has ended already. A stopped process is killed too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Agents that run, and what they show.
pub struct Fleet {
    folder: tempfile::TempDir,
    agents: BTreeMap<String, Agent>,
    seed: Option<SocketAddr>,
    views: (Sender<View>, Receiver<View>),
}

impl Fleet {
    /// None yet.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        write_authority(folder.path())?;
        Ok(Self {
            folder,
            agents: BTreeMap::new(),
            seed: None,
            views: channel(),
        })
    }

    /// Starts an agent on a free port of loopback. The first is the seed of all others.
    pub fn start(&mut self, name: &str) -> Result<()> {
        self.start_in(name, IpAddr::V4(Ipv4Addr::LOCALHOST), &[])
    }

    /// Starts an agent at `ip` (on loopback on a free port) through `wrapper`, a command that runs another.
    pub fn start_in(&mut self, name: &str, ip: IpAddr, wrapper: &[String]) -> Result<()> {
        let program: PathBuf = std::env::current_exe().context("cannot find this program")?;
        let port = if ip.is_loopback() { 0 } else { 8301 };
        let mut command = match wrapper {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command
            .args(["--child", "agent"])
            .arg(self.folder.path())
            .arg(name)
            .arg(SocketAddr::new(ip, port).to_string())
            .args(self.seed.iter().map(SocketAddr::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start an agent")?;
        let out = process.stdout.take().context("no output")?;
        let mut agent = Agent {
            process,
            shows: BTreeSet::new(),
        };
        let mut out = BufReader::new(out);
        let mut first = String::new();
        out.read_line(&mut first)?;
        let Ok(addr) = first.trim().parse() else {
            let _ = agent.process.kill();
            bail!("{name} said {first:?} instead of its address");
        };
        self.seed.get_or_insert(addr);
        self.agents.insert(name.to_owned(), agent);
        let (views, by) = (self.views.0.clone(), name.to_owned());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let mut words = line.split(' ');
                let Some(at) = words.next().and_then(|at| at.parse().ok()) else {
                    continue;
                };
                let view = View {
                    by: by.clone(),
                    at,
                    shows: words.map(str::to_owned).collect(),
                };
                if views.send(view).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Those that run.
    pub fn names(&self) -> BTreeSet<String> {
        self.agents.keys().cloned().collect()
    }

    /// The process of an agent.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.agents.get(name).map(|agent| agent.process.id())
    }

    /// Kills an agent's process with SIGKILL; the time just before.
    pub fn kill(&mut self, name: &str) -> u64 {
        let at = now();
        drop(self.agents.remove(name));
        at
    }

    /// The next view, taken over; `None` at the deadline.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<View>> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.views.1.recv_timeout(left) {
            Ok(view) => {
                if let Some(agent) = self.agents.get_mut(&view.by) {
                    agent.shows.clone_from(&view.shows);
                }
                Ok(Some(view))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("nobody reports any more"),
        }
    }

    /// Whether each agent shows exactly those that `wanted` says for it.
    pub fn show(&self, wanted: impl Fn(&str) -> BTreeSet<String>) -> bool {
        self.agents
            .iter()
            .all(|(name, agent)| agent.shows == wanted(name))
    }

    /// Waits until each agent shows exactly those that `wanted` says for it; when the last one came to it, in µs since
    /// 1970.
    pub fn until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&str) -> BTreeSet<String>,
    ) -> Result<u64> {
        let deadline = Instant::now() + patience;
        let mut last = now();
        while !self.show(&wanted) {
            match self.next(deadline)? {
                Some(view) => last = view.at,
                None => bail!("after {} s still not: {what}", patience.as_secs()),
            }
        }
        Ok(last)
    }

    /// Waits until all show all.
    pub fn agree(&mut self) -> Result<u64> {
        let all = self.names();
        self.until("all agents show all", PATIENCE, |_| all.clone())
    }
}
