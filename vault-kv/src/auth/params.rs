//! The fields that every login method's roles and users share: what a token is to be.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::http::ApiError;
use crate::policy::assignable;
use crate::request::{Data, Remote};

/// `token_…` of a role or user. Times are seconds, 0 = not set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TokenParams {
    pub ttl: u64,
    pub max_ttl: u64,
    pub explicit_max_ttl: u64,
    pub period: u64,
    pub policies: Vec<String>,
    pub bound_cidrs: Vec<String>,
    pub no_default_policy: bool,
    pub num_uses: i64,
    /// `service`, `batch`, `default-service`, `default-batch`; empty = `default`, the mount's.
    pub kind: String,
    /// Only from the address of the login.
    pub strictly_bind_ip: bool,
}

impl TokenParams {
    /// Takes over the fields that `data` has, also under the names that they had before Vault 1.2.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        let mut new = self.clone();
        for (name, old, seconds) in [
            ("token_ttl", "ttl", &mut new.ttl),
            ("token_max_ttl", "max_ttl", &mut new.max_ttl),
            ("token_explicit_max_ttl", "", &mut new.explicit_max_ttl),
            ("token_period", "period", &mut new.period),
        ] {
            let given = match data.duration(name)? {
                None if !old.is_empty() => data.duration(old)?,
                given => given,
            };
            if let Some(given) = given {
                *seconds = given.as_secs();
            }
        }
        let policies = match data.list("token_policies")? {
            None => data.list("policies")?,
            given => given,
        };
        if let Some(policies) = policies {
            new.policies = assignable(&policies)?;
        }
        let cidrs = match data.list("token_bound_cidrs")? {
            None => data.list("bound_cidrs")?,
            given => given,
        };
        if let Some(cidrs) = cidrs {
            check_cidrs("token_bound_cidrs", &cidrs)?;
            new.bound_cidrs = cidrs;
        }
        for (name, flag) in [
            ("token_no_default_policy", &mut new.no_default_policy),
            ("token_strictly_bind_ip", &mut new.strictly_bind_ip),
        ] {
            if let Some(given) = data.flag(name)? {
                *flag = given;
            }
        }
        if let Some(uses) = data.int("token_num_uses")? {
            if uses < 0 {
                return Err(ApiError::bad("'token_num_uses' cannot be negative"));
            }
            new.num_uses = uses;
        }
        if let Some(kind) = data.text("token_type")? {
            new.kind = match kind.as_str() {
                "" | "default" => String::new(),
                "service" | "batch" | "default-service" | "default-batch" => kind,
                _ => {
                    return Err(ApiError::bad(
                        "'token_type' is one of service, batch, default, default-service, default-batch",
                    ));
                }
            };
        }
        new.check()?;
        *self = new;
        Ok(())
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.max_ttl > 0 && self.ttl > self.max_ttl {
            return Err(ApiError::bad(
                "'token_ttl' cannot be greater than 'token_max_ttl'",
            ));
        }
        if self.kind == "batch" && self.period > 0 {
            return Err(ApiError::bad(
                "'token_type' cannot be 'batch' when set to generate periodic tokens",
            ));
        }
        if self.kind == "batch" && self.num_uses > 0 {
            return Err(ApiError::bad(
                "'token_type' cannot be 'batch' when set to generate tokens with limited use count",
            ));
        }
        Ok(())
    }

    /// As a read of the role shows it.
    pub fn describe(&self, out: &mut Map<String, Value>) {
        let kind = match self.kind.as_str() {
            "" => "default",
            some => some,
        };
        for (name, value) in [
            ("token_ttl", json!(self.ttl)),
            ("token_max_ttl", json!(self.max_ttl)),
            ("token_explicit_max_ttl", json!(self.explicit_max_ttl)),
            ("token_period", json!(self.period)),
            ("token_policies", json!(self.policies)),
            ("token_bound_cidrs", json!(self.bound_cidrs)),
            ("token_no_default_policy", json!(self.no_default_policy)),
            ("token_num_uses", json!(self.num_uses)),
            ("token_type", json!(kind)),
            ("token_strictly_bind_ip", json!(self.strictly_bind_ip)),
        ] {
            out.insert(name.into(), value);
        }
    }
}

/// # Errors
/// 400 with the field when one is neither an address nor a network.
pub(crate) fn check_cidrs(field: &str, cidrs: &[String]) -> Result<(), ApiError> {
    match cidrs.iter().all(|cidr| network(cidr).is_some()) {
        true => Ok(()),
        false => Err(ApiError::bad(format!(
            "field \"{field}\": write addresses or networks, such as 10.1.2.3 or 10.0.0.0/8"
        ))),
    }
}

/// Whether a caller is in one of the networks; none: everybody is. A Unix socket of this machine is in none.
pub(crate) fn is_within(remote: &Remote, cidrs: &[String]) -> bool {
    if cidrs.is_empty() {
        return true;
    }
    let Remote::Ip(ip) = remote else {
        return false;
    };
    contains(cidrs, *ip)
}

/// Whether an address is in one of the networks.
pub(crate) fn contains(cidrs: &[String], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    cidrs
        .iter()
        .filter_map(|cidr| network(cidr))
        .any(|network| network.contains(&ip))
}

/// Whether each of `cidrs` lies in one of `within`; none there: everything does.
pub(crate) fn is_subset(cidrs: &[String], within: &[String]) -> bool {
    let outer: Vec<_> = within.iter().filter_map(|cidr| network(cidr)).collect();
    let inside = |cidr: &String| {
        network(cidr).is_some_and(|inner| outer.iter().any(|outer| outer.contains(&inner)))
    };
    outer.is_empty() || cidrs.iter().all(inside)
}

fn network(text: &str) -> Option<IpNet> {
    match text.parse() {
        Ok(network) => Some(network),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}
