//! A configuration from texts.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use super::{Config, Credentials, unreachable};
use crate::{
    join::Seed,
    member::Preset,
    mesh::{Mesh, MeshError},
    model::{Datacenter, InvalidField, Locality, NodeName, check_meta},
};

/// The port of an address that names none.
const PORT: u16 = 8301;

/// Everything that cannot be used in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<InvalidField>,
}

impl ConfigError {
    /// Each setting that cannot be used, in the order in which they were given.
    pub fn problems(&self) -> &[InvalidField] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.problems[..] {
            return fmt::Display::fmt(only, f);
        }
        write!(f, "{} settings cannot be used", self.problems.len())?;
        for (separator, problem) in [": "]
            .into_iter()
            .chain(std::iter::repeat("; "))
            .zip(&self.problems)
        {
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A configuration in the making. Every method takes the text that a user wrote, or a value of the type that it means;
/// nothing fails before [`build`](Self::build) or [`start`](Self::start), which report all problems at once.
///
/// ```
/// use libmesh::mesh::Config;
///
/// let error = Config::builder("node 1")
///     .bind("10.0.0.7:http")
///     .seed("http://10.0.0.1")
///     .directory("/var/lib/my-app/node")
///     .build()
///     .err()
///     .expect("three of these are wrong");
/// let fields: Vec<_> = error.problems().iter().map(|problem| problem.field).collect();
/// assert_eq!(fields, ["node", "bind", "seeds"]);
/// ```
#[must_use = "a builder does nothing before build() or start()"]
pub struct Builder {
    node: Option<NodeName>,
    credentials: Credentials,
    /// All but the name and the credentials; under a name that is not used.
    config: Config,
    problems: Vec<InvalidField>,
}

impl Builder {
    pub(super) fn new(node: &str) -> Self {
        let nobody = NodeName::parse("node").expect("a well-formed name");
        let mut builder = Self {
            node: None,
            credentials: Credentials::Kept,
            config: Config::new(nobody, Credentials::Kept),
            problems: Vec::new(),
        };
        builder.node = builder.parsed("node", node);
        builder
    }

    /// Where to listen, UDP and TCP: `address:port`, or an address alone (port 8301). Port 0 takes a free one. Default
    /// `0.0.0.0:8301`.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a text and an address are given alike"
    )]
    pub fn bind(mut self, addr: impl ToString) -> Self {
        if let Some(addr) = self.addr("bind", &addr.to_string()) {
            self.config.bind = addr;
        }
        self
    }

    /// Where others reach the node: `address:port`, or an address alone (the port of `bind`). Default: see
    /// [`Config::advertise`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a text and an address are given alike"
    )]
    pub fn advertise(mut self, addr: impl ToString) -> Self {
        let text = addr.to_string();
        let addr = match text.trim().parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, 0)),
            Err(_) => self.addr("advertise", &text),
        };
        if let Some(addr) = addr {
            match unreachable(addr.ip()) {
                Some(reason) => self.problem("advertise", format!("{}: {reason}", addr.ip())),
                None => self.config.advertise = Some(addr),
            }
        }
        self
    }

    /// A node to join through and to announce to, one more: `host:port`, or a host alone (port 8301). A DNS name may
    /// stand for many nodes.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a text and an address are given alike"
    )]
    pub fn seed(mut self, seed: impl ToString) -> Self {
        let seed: Option<Seed> = self.parsed("seeds", &seed.to_string());
        self.config.seeds.extend(seed);
        self
    }

    /// Several of them.
    pub fn seeds(self, seeds: impl IntoIterator<Item = impl ToString>) -> Self {
        seeds.into_iter().fold(self, Self::seed)
    }

    /// Where the node's key, certificate and caches are kept (made with mode 0700). Needed, unless
    /// [`credentials`](Self::credentials) are given.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.directory = Some(path.into());
        self
    }

    /// The token to join with, where the directory holds no membership yet.
    pub fn join_token(mut self, token: &str) -> Self {
        // The error never quotes the token.
        if let Some(token) = self.parsed("join_token", token) {
            self.credentials = Credentials::Join(token);
        }
        self
    }

    /// Where the credentials come from, for those who have them already.
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// For how long a join that fails for a temporary reason is tried again. Default 60 s.
    pub fn join_patience(mut self, patience: Duration) -> Self {
        self.config.join_patience = patience;
        self
    }

    /// The datacenter that the credentials must be for.
    pub fn datacenter(mut self, name: &str) -> Self {
        self.config.datacenter = self.parsed::<Datacenter>("datacenter", name);
        self
    }

    /// Where the node stands: its zone is what fails together and is near, its region what is near beyond that. Default:
    /// not known, so that the whole datacenter is one zone.
    pub fn locality(mut self, region: &str, zone: &str) -> Self {
        match Locality::new(region, zone) {
            Ok(Locality { region, zone }) => {
                let known = [("region".into(), region), ("zone".into(), zone)];
                self.config.meta.extend(known);
            }
            Err(problem) => self.problems.push(problem),
        }
        self
    }

    /// Something that the node says of itself.
    pub fn meta(mut self, key: &str, value: &str) -> Self {
        let pair: BTreeMap<Arc<str>, Arc<str>> = [(key.into(), value.into())].into();
        match check_meta(pair.iter()) {
            Ok(()) => self.config.meta.extend(pair),
            Err(problem) => self.problems.push(problem),
        }
        self
    }

    /// The version of the embedding program.
    pub fn version(mut self, version: &str) -> Self {
        self.config.version = version.into();
        self
    }

    /// Timings of membership. Default [`Preset::lan`].
    pub fn preset(mut self, preset: Preset) -> Self {
        self.config.preset = preset;
        self
    }

    /// Keeps the instances and checks of the node's last life until they are settled; see [`Config::resume`].
    pub fn resume(mut self) -> Self {
        (self.config.resume, self.config.settle) = (true, None);
        self
    }

    /// The life of service certificates to ask for. Default: the authority's (24 h).
    pub fn service_ttl(mut self, ttl: Duration) -> Self {
        self.config.service_ttl = Some(ttl);
        self
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`ConfigError`] with every setting that cannot be used.
    pub fn build(mut self) -> Result<Config, ConfigError> {
        if self.config.directory.is_none() && !matches!(self.credentials, Credentials::Given(_)) {
            let reason = "is needed to keep the node's key and certificate in";
            self.problem("directory", reason.to_owned());
        }
        match self.node {
            Some(node) if self.problems.is_empty() => Ok(Config {
                node,
                credentials: self.credentials,
                ..self.config
            }),
            _ => Err(ConfigError {
                problems: self.problems,
            }),
        }
    }

    /// Builds, and starts the node.
    ///
    /// # Errors
    /// [`MeshError::Config`] with every setting that cannot be used, or why the node does not start.
    pub async fn start(self) -> Result<Mesh, MeshError> {
        Mesh::start(self.build()?).await
    }

    fn addr(&mut self, field: &'static str, text: &str) -> Option<SocketAddr> {
        let text = text.trim();
        let addr = text
            .parse()
            .or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT)));
        if addr.is_err() {
            let reason = format!("{text:?} is no address: use address:port, like 10.0.0.7:8301");
            self.problem(field, reason);
        }
        addr.ok()
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(
        &mut self,
        field: &'static str,
        text: &str,
    ) -> Option<T> {
        text.parse()
            .map_err(|error: T::Err| {
                // The error of a model type names its own field.
                let text = error.to_string();
                let reason = text
                    .strip_prefix(field)
                    .and_then(|rest| rest.strip_prefix(": "));
                self.problem(field, reason.unwrap_or(&text).to_owned());
            })
            .ok()
    }

    fn problem(&mut self, field: &'static str, reason: String) {
        self.problems.push(InvalidField::new(field, reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::JoinToken;

    fn problems(builder: Builder) -> Vec<String> {
        match builder.build() {
            Ok(_) => Vec::new(),
            Err(error) => error.problems().iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn texts_become_what_they_mean() {
        let token = JoinToken::generate([7; 32]).unwrap();
        let config = Config::builder("Node-1")
            .bind("10.0.0.7")
            .advertise("203.0.113.9")
            .seed("10.0.0.1")
            .seeds(["seed.example.com:99", "[::1]:7"])
            .directory("/tmp/x")
            .join_token(&token.reveal())
            .datacenter("DC2")
            .locality("north", "north-a")
            .meta("rack", "7")
            .version("1.2")
            .resume()
            .build()
            .unwrap();
        assert_eq!(config.node, "node-1");
        assert_eq!(config.bind, "10.0.0.7:8301".parse().unwrap());
        assert_eq!(config.advertise, Some("203.0.113.9:0".parse().unwrap()));
        let seeds: Vec<String> = config.seeds.iter().map(ToString::to_string).collect();
        assert_eq!(seeds, ["10.0.0.1:8301", "seed.example.com:99", "[::1]:7"]);
        assert!(matches!(config.credentials, Credentials::Join(given) if given.id() == token.id()));
        assert_eq!(config.datacenter.unwrap(), "dc2");
        let meta: Vec<&str> = config.meta.values().map(|value| &**value).collect();
        assert_eq!(meta, ["7", "north", "north-a"]);
        assert!(config.resume && &*config.version == "1.2");
        // Typed values do as well.
        let typed = Config::builder("a")
            .bind(config.bind)
            .seed(config.bind)
            .directory("/tmp/x");
        assert_eq!(typed.build().unwrap().bind, config.bind);
    }

    #[test]
    fn all_problems_are_reported_at_once_each_with_its_field() {
        let builder = Config::builder("-")
            .bind("nowhere")
            .advertise("0.0.0.0:8301")
            .seed("a b")
            .seed("10.0.0.1:0")
            .join_token("mjt1.secret")
            .datacenter("a.b")
            .locality("", "a")
            .meta("no spaces", "x");
        let found = problems(builder);
        let fields: Vec<&str> = found
            .iter()
            .map(|text| text.split(':').next().unwrap())
            .collect();
        assert_eq!(
            fields,
            [
                "node",
                "bind",
                "advertise",
                "seeds",
                "seeds",
                "join_token",
                "datacenter",
                "locality",
                "meta",
                "directory"
            ]
        );
        assert!(
            !found.iter().any(|text| text.contains("secret")),
            "{found:?}"
        );
        assert!(
            found
                .iter()
                .all(|text| text.matches("datacenter:").count() <= 1),
            "{found:?}"
        );
    }

    #[test]
    fn addresses_that_nobody_can_reach_are_refused() {
        for addr in [
            "0.0.0.0",
            "::",
            "224.0.0.1:8301",
            "ff02::1",
            "255.255.255.255:1",
            "fe80::1",
        ] {
            let found = problems(Config::builder("a").advertise(addr).directory("/tmp/x"));
            assert!(
                found.len() == 1 && found[0].starts_with("advertise: "),
                "{addr}: {found:?}"
            );
        }
    }

    #[test]
    fn one_problem_reads_as_a_sentence_and_several_as_a_list() {
        let one = Config::builder("a").build().err().unwrap().to_string();
        assert_eq!(
            one,
            "directory: is needed to keep the node's key and certificate in"
        );
        let two = Config::builder("").build().err().unwrap().to_string();
        assert!(
            two.starts_with("2 settings cannot be used: node: is empty; directory: "),
            "{two}"
        );
    }
}
