//! What a name below one of our domains means.
//!
//! The grammar is Consul's: the right-most of its words (`service`, `node`, `addr`, …) decides what the labels before it
//! say, and what is behind it may name the datacenter (`dc1` or `dc1.dc`). Names *above* existing ones (`service.mesh`,
//! `dc1.mesh`) exist without records, because NXDOMAIN for them would tell resolvers that nothing is below either
//! (RFC 8020).

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
    /// `[subset.]web.service` or `_web._subset[.service]`: the labels before the word, of which the last are the
    /// service's name. Never empty.
    Service(Way, &'n [&'n str]),
    /// `_web._subset`, taken apart.
    Located {
        /// Instances or their sidecars.
        way: Way,
        /// Name of the service.
        name: &'n str,
        /// A tag or a version.
        subset: Option<&'n str>,
    },
    /// `http.port.web.service`.
    Port {
        /// Name of the port.
        port: &'n str,
        /// Name of the service.
        name: &'n str,
    },
    /// `web.virtual`.
    Virtual(Cow<'n, str>),
    /// `pq.query` or `_pq._tcp.query`.
    Query(Cow<'n, str>),
    /// `node1.node`; the name may hold dots.
    Node(Cow<'n, str>),
    /// `<hex>.addr`.
    Address(IpAddr),
    /// Nothing that can exist.
    Nothing,
}

/// What of a service is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `.service`: the instances themselves.
    Direct,
    /// `.connect`: where their sidecars take mTLS connections.
    Connect,
}

/// Reads the labels left of the domain, in lower case, from left to right.
pub fn meaning<'n>(labels: &'n [&'n str], datacenter: &str) -> Meaning<'n> {
    match labels {
        [] => return Meaning::Apex,
        ["ns"] => return Meaning::Nameserver,
        _ => {}
    }
    let Some(at) = labels.iter().rposition(|label| is_word(label)) else {
        return without_word(labels, datacenter);
    };
    let (rest, word) = (&labels[..at], labels[at]);
    match &labels[at + 1..] {
        [] => {}
        [dc] | [dc, "dc"] if *dc == datacenter => {}
        _ => return Meaning::Nothing,
    }
    if rest.is_empty() {
        return Meaning::Branch;
    }
    match word {
        "service" => service(Way::Direct, rest),
        "connect" => service(Way::Connect, rest),
        "node" => Meaning::Node(joined(rest)),
        "virtual" => Meaning::Virtual(joined(rest)),
        "addr" => match rest {
            [hex] => address(hex).map_or(Meaning::Nothing, Meaning::Address),
            _ => Meaning::Nothing,
        },
        "query" => match rest {
            [name, protocol] if is_underscored(name) && is_underscored(protocol) => {
                Meaning::Query(Cow::Borrowed(&name[1..]))
            }
            _ => Meaning::Query(joined(rest)),
        },
        // Nothing in the catalog is an ingress gateway's service.
        _ => Meaning::Nothing,
    }
}

/// RFC 2782 names need no word in front of the domain.
fn without_word<'n>(labels: &'n [&'n str], datacenter: &str) -> Meaning<'n> {
    let labels = match labels {
        [rest @ .., dc, "dc"] | [rest @ .., dc] if *dc == datacenter => rest,
        _ => labels,
    };
    match labels {
        [] => Meaning::Branch,
        [subset] if is_underscored(subset) => Meaning::Branch,
        [service, subset] => located(Way::Direct, service, subset).unwrap_or(Meaning::Nothing),
        _ => Meaning::Nothing,
    }
}

fn is_word(label: &str) -> bool {
    matches!(
        label,
        "service" | "connect" | "virtual" | "ingress" | "node" | "query" | "addr"
    )
}

fn is_underscored(label: &str) -> bool {
    label.len() > 1 && label.starts_with('_')
}

fn service<'n>(way: Way, labels: &'n [&'n str]) -> Meaning<'n> {
    match labels {
        // `_tcp.service`, which `_web._tcp.service` is below of.
        [subset] if is_underscored(subset) => Meaning::Branch,
        [port, "port", name] => Meaning::Port { port, name },
        [service, subset] => located(way, service, subset).unwrap_or(Meaning::Service(way, labels)),
        _ => Meaning::Service(way, labels),
    }
}

fn located<'n>(way: Way, service: &'n str, subset: &'n str) -> Option<Meaning<'n>> {
    if !is_underscored(service) || !is_underscored(subset) {
        return None;
    }
    let subset = &subset[1..];
    Some(Meaning::Located {
        way,
        name: &service[1..],
        // The protocol is no filter: a service has one port, and a tag named `tcp` would be a strange one.
        subset: (!matches!(subset, "tcp" | "udp")).then_some(subset),
    })
}

/// What the labels of `a.b.web` before the word can mean, best first: service `web` with subset `a.b`, service `b.web`
/// with subset `a`, service `a.b.web`. Service names may hold dots.
pub fn readings<'n>(labels: &'n [&'n str]) -> impl Iterator<Item = Reading<'n>> {
    (1..=labels.len()).map(move |of_name| {
        let (subset, name) = labels.split_at(labels.len() - of_name);
        (joined(name), (!subset.is_empty()).then(|| joined(subset)))
    })
}

/// A service's name, and a tag or a version.
pub type Reading<'n> = (Cow<'n, str>, Option<Cow<'n, str>>);

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
        let shown = |way: Way| match way {
            Way::Direct => "",
            Way::Connect => "connect ",
        };
        match meaning(&labels, "dc1") {
            Meaning::Service(way, labels) => {
                let readings = readings(labels).map(|(name, subset)| {
                    format!("{}{name}/{}", shown(way), subset.as_deref().unwrap_or("-"))
                });
                readings.collect::<Vec<_>>().join(" ")
            }
            Meaning::Located { way, name, subset } => {
                format!("{}{name}/{}", shown(way), subset.unwrap_or("-"))
            }
            Meaning::Port { port, name } => format!("port {port} of {name}"),
            Meaning::Virtual(name) => format!("virtual {name}"),
            Meaning::Query(name) => format!("query {name}"),
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
            ("web.service.dc1.dc", "web/-"),
            ("web.service.dc2", "Nothing"),
            ("web.service.dc2.dc", "Nothing"),
            ("web.service.east.peer", "Nothing"),
            ("v2.web.service", "web/v2 v2.web/-"),
            ("a.b.web.service.dc1", "web/a.b b.web/a a.b.web/-"),
            ("service.service", "service/-"),
            ("node.service", "node/-"),
            ("http.port.web.service", "port http of web"),
            ("http.port.web.service.dc1", "port http of web"),
            (
                "x.http.port.web.service",
                "web/x.http.port port.web/x.http http.port.web/x x.http.port.web/-",
            ),
            ("web.connect", "connect web/-"),
            ("v2.web.connect.dc1", "connect web/v2 connect v2.web/-"),
            ("web.virtual", "virtual web"),
            ("my.web.virtual.dc1", "virtual my.web"),
            ("web.ingress", "Nothing"),
            ("pq.query", "query pq"),
            ("a.b.query.dc1", "query a.b"),
            ("_pq._tcp.query.dc1", "query pq"),
            ("_web._tcp.service", "web/-"),
            ("_web._tcp", "web/-"),
            ("_web._tcp.dc1", "web/-"),
            ("_web._tcp.dc1.dc", "web/-"),
            ("_web._v2.service.dc1", "web/v2"),
            ("_web._v2", "web/v2"),
            ("_web._v2.connect", "connect web/v2"),
            ("node1.node", "node node1"),
            ("a.b.node.dc1", "node a.b"),
            ("7f000001.addr", "127.0.0.1"),
            ("20010db8000000000000000000000001.addr.dc1", "2001:db8::1"),
            ("zz.addr", "Nothing"),
            ("+f000001.addr", "Nothing"),
            ("x.7f000001.addr", "Nothing"),
            ("service", "Branch"),
            ("service.dc1", "Branch"),
            ("service.dc1.dc", "Branch"),
            ("query", "Branch"),
            ("node", "Branch"),
            ("dc1", "Branch"),
            ("dc1.dc", "Branch"),
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
