//! The entries of one service, compiled.

use std::time::Duration;

use super::{Routing, Subset, Target};
use crate::consul::decode::go_duration;

/// How long a connection may take to be made unless a resolver says so.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The sum of all weights of a chain: hundredths of a percent.
pub const WHOLE: u32 = 10_000;
/// How many redirects and splits may follow one another.
const DEPTH: usize = 16;

/// Where the calls to a service go.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// The service called.
    pub service: String,
    /// What it speaks.
    pub protocol: String,
    /// Whether a splitter says how its calls are split.
    pub is_split: bool,
    /// The parts; their weights make [`WHOLE`].
    pub branches: Vec<Branch>,
}

/// A part of the calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// Its share of [`WHOLE`].
    pub weight: u32,
    /// Who takes it.
    pub target: Resolved,
}

/// Instances that take calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Their service.
    pub service: String,
    /// The name of the subset; empty: all.
    pub subset_name: String,
    /// Which of them.
    pub subset: Subset,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// Whether no resolver speaks of the service.
    pub is_default: bool,
    /// Who stands in when there is none, in this order.
    pub failover: Vec<Resolved>,
}

impl Resolved {
    /// Consul's name of it: `v1.web.default.default.dc1`.
    pub fn id(&self, datacenter: &str) -> String {
        let dot = if self.subset_name.is_empty() { "" } else { "." };
        format!(
            "{}{dot}{}.default.default.{datacenter}",
            self.subset_name, self.service
        )
    }
}

impl Routing {
    /// The chain of a service.
    ///
    /// # Errors
    /// What does not fit together, in Consul's words.
    pub fn chain(&self, service: &str) -> Result<Chain, String> {
        let mut branches = Vec::new();
        let target = Target {
            service: service.to_owned(),
            ..Target::default()
        };
        self.split(service, target, f64::from(WHOLE), 0, &mut branches)?;
        let protocol = self.protocol(service);
        let is_split = self.splitters.contains_key(service);
        if is_split && !matches!(protocol, "http" | "http2" | "grpc") {
            return Err(format!(
                "discovery chain {service:?} uses a protocol {protocol:?} that does not permit advanced routing or \
                 splitting behavior"
            ));
        }
        for branch in &branches {
            let other = self.protocol(&branch.target.service);
            if is_split && other != protocol {
                return Err(format!(
                    "discovery chain {service:?} uses inconsistent protocols; service {:?} has {other:?} which is not \
                     {protocol:?}",
                    branch.target.service
                ));
            }
        }
        Ok(Chain {
            service: service.to_owned(),
            protocol: protocol.to_owned(),
            is_split,
            branches,
        })
    }

    /// Follows splitters; a call that names a subset is not split again.
    fn split(
        &self,
        chain: &str,
        target: Target,
        weight: f64,
        depth: usize,
        branches: &mut Vec<Branch>,
    ) -> Result<(), String> {
        if depth > DEPTH {
            return Err(circular(chain));
        }
        match self.splitters.get(&target.service) {
            Some(splitter) if target.service_subset.is_empty() => {
                for split in &splitter.splits {
                    let mut next = split.target.clone();
                    let same = next.service.is_empty() || next.service == splitter.name;
                    let share = weight * split.weight / 100.0;
                    if same {
                        next.service.clone_from(&splitter.name);
                        self.leaf(chain, next, share, branches)?;
                    } else {
                        self.split(chain, next, share, depth + 1, branches)?;
                    }
                }
                Ok(())
            }
            _ => self.leaf(chain, target, weight, branches),
        }
    }

    fn leaf(
        &self,
        chain: &str,
        target: Target,
        weight: f64,
        branches: &mut Vec<Branch>,
    ) -> Result<(), String> {
        branches.push(Branch {
            weight: weight.round() as u32,
            target: self.resolve(chain, target, true)?,
        });
        Ok(())
    }

    /// Follows redirects; `failover` of what they end at, unless this is one.
    fn resolve(&self, chain: &str, mut target: Target, failover: bool) -> Result<Resolved, String> {
        for _ in 0..DEPTH {
            let Some(resolver) = self.resolvers.get(&target.service) else {
                if !target.service_subset.is_empty() {
                    return Err(no_subset(&target));
                }
                return Ok(Resolved {
                    service: target.service,
                    subset_name: String::new(),
                    subset: Subset::default(),
                    connect_timeout: DEFAULT_CONNECT_TIMEOUT,
                    is_default: true,
                    failover: Vec::new(),
                });
            };
            if let Some(redirect) = &resolver.redirect {
                let mut next = redirect.clone();
                if next.service.is_empty() {
                    next.service.clone_from(&target.service);
                }
                if next == target {
                    return Err(circular(chain));
                }
                target = next;
                if target.service != resolver.name {
                    continue;
                }
            }
            if target.service_subset.is_empty() {
                target.service_subset.clone_from(&resolver.default_subset);
            }
            let subset = match target.service_subset.as_str() {
                "" => Subset::default(),
                name => {
                    let subset = resolver.subsets.get(name);
                    subset.ok_or_else(|| no_subset(&target))?.clone()
                }
            };
            let stands_in = resolver.failover.get(&target.service_subset);
            let stands_in = stands_in.or(resolver.failover.get("*"));
            let mut others = Vec::new();
            if failover && let Some(stands_in) = stands_in {
                let one = stands_in.targets.is_empty().then_some(&stands_in.one);
                for other in one.into_iter().chain(&stands_in.targets) {
                    let mut other = other.clone();
                    if other.service.is_empty() {
                        other.service.clone_from(&target.service);
                    }
                    others.push(self.resolve(chain, other, false)?);
                }
            }
            let timeout = go_duration(&resolver.connect_timeout).ok();
            return Ok(Resolved {
                service: target.service,
                subset_name: target.service_subset,
                subset,
                connect_timeout: timeout
                    .filter(|timeout| !timeout.is_zero())
                    .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
                is_default: false,
                failover: others,
            });
        }
        Err(circular(chain))
    }
}

fn no_subset(target: &Target) -> String {
    format!(
        "service {:?} does not have a subset named {:?}",
        target.service, target.service_subset
    )
}

fn circular(chain: &str) -> String {
    format!("discovery chain {chain:?} contains a circular reference")
}
