//! What a name below one of our domains means.
//!
//! The grammar is Consul's: the right-most of the words `service`, `node` and `addr` decides, one label behind it
//! may name the datacenter. Names *above* existing ones (`service.mesh`, `dc1.mesh`) exist without records, because
//! NXDOMAIN for them would tell resolvers that nothing is below either (RFC 8020).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The meaning of a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'n> {
    /// The domain itself.
    Apex,
    /// `ns`, the name in SOA and NS.
    Nameserver,
    /// A name that exists only because others are below it.
    Branch,
    /// `[subset.]web.service` or `_web._subset[.service]`.
    Service {
        /// Name of the service.
        name: &'n str,
        /// A tag or a version; may hold dots.
        subset: Option<Cow<'n, str>>,
    },
    /// `node1.node`; the name may hold dots.
    Node(Cow<'n, str>),
    /// `<hex>.addr`.
    Address(IpAddr),
    /// Nothing that can exist.
    Nothing,
}

/// Reads the labels left of the domain, in lower case, from left to right.
pub fn meaning<'n>(labels: &[&'n str], datacenter: &str) -> Meaning<'n> {
    let (rest, kind) = match labels {
        [] => return Meaning::Apex,
        ["ns"] => return Meaning::Nameserver,
        [rest @ .., last] if is_kind(last) => (rest, *last),
        [rest @ .., kind, dc] if is_kind(kind) => {
            if *dc != datacenter {
                return Meaning::Nothing;
            }
            (rest, *kind)
        }
        // RFC 2782 names need no word in front of the domain.
        [service, subset] if is_underscored(service) && is_underscored(subset) => {
            (labels, "service")
        }
        [rest @ .., dc] if *dc == datacenter => match rest {
            [] => return Meaning::Branch,
            [service, subset] if is_underscored(service) && is_underscored(subset) => {
                (rest, "service")
            }
            [subset] if is_underscored(subset) => return Meaning::Branch,
            _ => return Meaning::Nothing,
        },
        [subset] if is_underscored(subset) => return Meaning::Branch,
        _ => return Meaning::Nothing,
    };
    if rest.is_empty() {
        return Meaning::Branch;
    }
    match kind {
        "service" => service(rest),
        "node" => Meaning::Node(joined(rest)),
        _ => match rest {
            [hex] => address(hex).map_or(Meaning::Nothing, Meaning::Address),
            _ => Meaning::Nothing,
        },
    }
}

fn is_kind(label: &str) -> bool {
    matches!(label, "service" | "node" | "addr")
}

fn is_underscored(label: &str) -> bool {
    label.len() > 1 && label.starts_with('_')
}

fn service<'n>(labels: &[&'n str]) -> Meaning<'n> {
    match labels {
        [service, subset] if is_underscored(service) && is_underscored(subset) => {
            let subset = &subset[1..];
            // The protocol is no filter: a service has one port, and a tag named `tcp` would be a strange one.
            let subset = (!matches!(subset, "tcp" | "udp")).then_some(Cow::Borrowed(subset));
            Meaning::Service {
                name: &service[1..],
                subset,
            }
        }
        // `_tcp.service`, which `_web._tcp.service` is below of.
        [subset] if is_underscored(subset) => Meaning::Branch,
        [name] => Meaning::Service { name, subset: None },
        [subset @ .., name] => Meaning::Service {
            name,
            subset: Some(joined(subset)),
        },
        [] => Meaning::Branch,
    }
}

fn joined<'n>(labels: &[&'n str]) -> Cow<'n, str> {
    match labels {
        [one] => Cow::Borrowed(one),
        many => Cow::Owned(many.join(".")),
    }
}

/// `7f000001` or 32 hex digits.
fn address(hex: &str) -> Option<IpAddr> {
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    match hex.len() {
        8 => Some(Ipv4Addr::from_bits(u32::from_str_radix(hex, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from_bits(u128::from_str_radix(hex, 16).ok()?).into()),
        _ => None,
    }
}

/// The label that stands for an address in `<hex>.addr`.
pub fn hex(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:032x}", ip.to_bits()),
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` asks for; labels in lower case, from left to right.
pub fn reverse(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, "in-addr", "arpa"] => {
            let mut octets = [0; 4];
            for (octet, label) in octets.iter_mut().zip([a, b, c, d]) {
                *octet = label.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let mut bits = 0u128;
            for label in nibbles.iter().rev() {
                let &[digit] = label.as_bytes() else {
                    return None;
                };
                bits = bits << 4 | u128::from(char::from(digit).to_digit(16)?);
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> String {
        let labels: Vec<_> = name.split('.').filter(|l| !l.is_empty()).collect();
        match meaning(&labels, "dc1") {
            Meaning::Service { name, subset } => {
                format!("{name}/{}", subset.as_deref().unwrap_or("-"))
            }
            Meaning::Node(name) => format!("node {name}"),
            Meaning::Address(ip) => ip.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn names_mean_what_consul_says() {
        for (name, expected) in [
            ("", "Apex"),
            ("ns", "Nameserver"),
            ("web.service", "web/-"),
            ("web.service.dc1", "web/-"),
            ("web.service.dc2", "Nothing"),
            ("v2.web.service", "web/v2"),
            ("a.b.c.web.service.dc1", "web/a.b.c"),
            ("service.service", "service/-"),
            ("node.service", "node/-"),
            ("_web._tcp.service", "web/-"),
            ("_web._tcp", "web/-"),
            ("_web._tcp.dc1", "web/-"),
            ("_web._v2.service.dc1", "web/v2"),
            ("_web._v2", "web/v2"),
            ("node1.node", "node node1"),
            ("a.b.node.dc1", "node a.b"),
            ("7f000001.addr", "127.0.0.1"),
            ("20010db8000000000000000000000001.addr.dc1", "2001:db8::1"),
            ("zz.addr", "Nothing"),
            ("+f000001.addr", "Nothing"),
            ("x.7f000001.addr", "Nothing"),
            ("service", "Branch"),
            ("service.dc1", "Branch"),
            ("node", "Branch"),
            ("dc1", "Branch"),
            ("_tcp", "Branch"),
            ("_tcp.service", "Branch"),
            ("_tcp.dc1", "Branch"),
            ("web", "Nothing"),
            ("web.dc1", "Nothing"),
            ("web.frob", "Nothing"),
            ("node1.dc1", "Nothing"),
        ] {
            assert_eq!(of(name), expected, "{name}");
        }
    }

    #[test]
    fn reverse_names() {
        let ask =
            |name: &str| reverse(&name.split('.').collect::<Vec<_>>()).map(|ip| ip.to_string());
        assert_eq!(ask("1.7.0.127.in-addr.arpa").as_deref(), Some("127.0.7.1"));
        let v6 = "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(ask(v6).as_deref(), Some("2001:db8::6"));
        for name in [
            "7.0.127.in-addr.arpa",
            "x.7.0.127.in-addr.arpa",
            "256.7.0.127.in-addr.arpa",
            "1.ip6.arpa",
            "arpa",
        ] {
            assert_eq!(ask(name), None, "{name}");
        }
    }

    #[test]
    fn hex_goes_both_ways() {
        for ip in ["127.0.0.1", "0.0.0.0", "2001:db8::1", "::"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(address(&hex(ip)), Some(ip));
        }
    }
}
