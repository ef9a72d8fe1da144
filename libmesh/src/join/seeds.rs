//! Where a mesh is found: addresses or DNS names, with a port.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// The port of a seed that names none.
const PORT: u16 = 8301;

/// A text that is no seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address of a mesh node: use host:port, like 10.0.0.1:8301 or node1.example.com"
)]
pub struct SeedError(String);

/// A place to ask: `host:port` or `host` (port 8301); a DNS name may stand for many nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    host: String,
    port: u16,
}

impl Seed {
    /// The addresses behind the seed, now.
    ///
    /// # Errors
    /// The name does not resolve.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port))
            .await?
            .collect())
    }
}

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let bad = || SeedError(text.chars().take(120).collect());
        let text = text.trim();
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 {
                Err(bad())
            } else {
                Ok(addr.into())
            };
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, PORT).into());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (
                host,
                port.parse()
                    .ok()
                    .filter(|&port| port != 0)
                    .ok_or_else(bad)?,
            ),
            None => (text, PORT),
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(fits) {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl From<SocketAddr> for Seed {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: addr.ip().to_string(),
            port: addr.port(),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_have_a_host_and_a_port() {
        for (text, shown) in [
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("10.0.0.1", "10.0.0.1:8301"),
            ("[::1]:99", "[::1]:99"),
            ("::1", "[::1]:8301"),
            ("node1.example.com", "node1.example.com:8301"),
            (" node1:7 ", "node1:7"),
        ] {
            assert_eq!(text.parse::<Seed>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            ":99",
            "node1:",
            "node1:0",
            "10.0.0.1:0",
            "node1:99999",
            "a b:1",
            "http://node1:80",
            "[::1",
        ] {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }
}
