//! What a node may publish: name patterns in an extension of its certificate.
//!
//! The extension is not marked critical, because webpki (and many foreign TLS stacks) refuse a
//! certificate with a critical extension they do not know. Whoever applies a node's records reads it;
//! a certificate without it publishes nothing.

use std::fmt;

use crate::model::ServiceName;

/// The patterns' object identifier, in the arc of UUID-derived OIDs.
pub(crate) const OID: &[u64] = &[2, 25, 6_713_394_071_526_491_837, 1];

/// A word that no service name can match: the node runs the mesh's store and authority.
const SERVER: &str = "+server";

/// The most patterns a certificate may carry.
const MAX_PATTERNS: usize = 256;

/// A pattern that is neither a service name, a prefix with `*`, nor `*`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// The pattern has a character that service names do not have, or `*` before its end.
    #[error(
        "{0:?} is not a pattern of service names: use a name, a prefix like \"api-*\", or \"*\""
    )]
    Pattern(String),
    /// More patterns than a certificate may carry.
    #[error("{0} patterns are too many for one certificate, which carries at most {MAX_PATTERNS}")]
    TooMany(usize),
    /// The certificate's extension does not hold what it should.
    #[error("the certificate's publish-rights extension is malformed")]
    Malformed,
}

/// Which services a node may publish and get certificates for, and whether it is a server.
///
/// Patterns are a service name (`web`), a prefix (`api-*`) or everything (`*`).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PublishRights {
    patterns: Vec<String>,
    server: bool,
}

impl PublishRights {
    /// The right to publish names that match one of `patterns`; none gives no right.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, RightsError> {
        let mut rights = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref().to_ascii_lowercase();
            let name = pattern.strip_suffix('*').unwrap_or(&pattern);
            let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
            if pattern.is_empty() || pattern.len() > 128 || !name.bytes().all(allowed) {
                return Err(RightsError::Pattern(pattern.chars().take(140).collect()));
            }
            rights.patterns.push(pattern);
        }
        if rights.patterns.len() > MAX_PATTERNS {
            return Err(RightsError::TooMany(rights.patterns.len()));
        }
        Ok(rights)
    }

    /// The right to publish every name.
    pub fn all() -> Self {
        Self {
            patterns: vec!["*".to_owned()],
            server: false,
        }
    }

    /// The same rights with the mark of a server: others hand it tokens, secrets and certificate
    /// requests. Only the authority's own operator sets it; no join token can carry it.
    #[must_use]
    pub fn with_server(mut self) -> Self {
        self.server = true;
        self
    }

    /// Whether the certificate is a server's.
    pub fn is_server(&self) -> bool {
        self.server
    }

    /// Whether a service of this name may be published.
    pub fn allows(&self, service: &ServiceName) -> bool {
        let name = service.as_str();
        self.patterns
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
    }

    /// The patterns, as given.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// The X.509 extension: its object identifier and the DER of a UTF8String with the patterns
    /// joined by one space. To be added as *not* critical.
    pub fn to_extension(&self) -> (Vec<u64>, Vec<u8>) {
        let mut words: Vec<&str> = self.patterns.iter().map(String::as_str).collect();
        if self.server {
            words.push(SERVER);
        }
        let text = words.join(" ");
        let mut der = vec![0x0c];
        match u8::try_from(text.len()) {
            Ok(short @ 0..=0x7f) => der.push(short),
            Ok(byte) => der.extend([0x81, byte]),
            Err(_) => {
                let [high, low] = u16::try_from(text.len())
                    .expect("256 patterns of 128 bytes fit")
                    .to_be_bytes();
                der.extend([0x82, high, low]);
            }
        }
        der.extend(text.as_bytes());
        (OID.to_vec(), der)
    }

    /// The rights in an extension's value (see [`PublishRights::to_extension`]).
    pub fn from_extension(der: &[u8]) -> Result<Self, RightsError> {
        let (header, length) = match *der {
            [0x0c, short @ 0..=0x7f, ..] => (2, usize::from(short)),
            [0x0c, 0x81, byte @ 0x80..=0xff, ..] => (3, usize::from(byte)),
            [0x0c, 0x82, high @ 1..=0xff, low, ..] => {
                (4, usize::from(u16::from_be_bytes([high, low])))
            }
            _ => return Err(RightsError::Malformed),
        };
        let text = der
            .get(header..)
            .filter(|text| text.len() == length)
            .ok_or(RightsError::Malformed)?;
        let text = std::str::from_utf8(text).map_err(|_| RightsError::Malformed)?;
        let server = text.split(' ').any(|word| word == SERVER);
        let rights = Self::new(
            text.split(' ')
                .filter(|word| !word.is_empty() && *word != SERVER),
        )?;
        Ok(Self { server, ..rights })
    }

    /// The rights of a certificate (DER); none if it has no such extension.
    pub fn from_certificate(der: &[u8]) -> Result<Self, super::LeafError> {
        Ok(super::Leaf::parse(der)?.rights)
    }
}

impl fmt::Debug for PublishRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}{}",
            self.patterns,
            if self.server { " server" } else { "" }
        )
    }
}
