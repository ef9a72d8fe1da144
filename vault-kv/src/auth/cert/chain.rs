//! Certificates that clients show: what they say, and whether somebody trusted signed them.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::http::{ApiError, hex};

/// Most certificates of a chain that are looked at.
const LONGEST: usize = 10;

/// What is read of a leaf.
#[derive(Default)]
pub(crate) struct Shown {
    pub der: Vec<u8>,
    pub common_name: String,
    pub units: Vec<String>,
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub uris: Vec<String>,
    /// Object identifier and value, as text if it is one, else in hex.
    pub extensions: Vec<(String, String)>,
    pub serial: Vec<u8>,
    /// In decimal, as Vault shows it.
    pub serial_decimal: String,
    pub issuer: Vec<u8>,
    pub subject_key_id: String,
    pub authority_key_id: String,
    begins: i64,
    ends: i64,
}

impl Shown {
    /// `None`: no certificate, or not just one.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let mut shown = Self {
            der: der.to_vec(),
            serial: certificate.raw_serial().to_vec(),
            serial_decimal: certificate.serial.to_string(),
            issuer: certificate.issuer().as_raw().to_vec(),
            begins: certificate.validity().not_before.timestamp(),
            ends: certificate.validity().not_after.timestamp(),
            ..Self::default()
        };
        let subject = certificate.subject();
        let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            part.as_str().unwrap_or_default().to_owned()
        };
        shown.common_name = subject
            .iter_common_name()
            .next()
            .map(text)
            .unwrap_or_default();
        shown.units = subject.iter_organizational_unit().map(text).collect();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::DNSName(name) => shown.dns.push(name.to_ascii_lowercase()),
                            GeneralName::RFC822Name(name) => shown.emails.push((*name).to_owned()),
                            GeneralName::URI(name) => shown.uris.push((*name).to_owned()),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    shown.subject_key_id = colons(id.0);
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    let id = id.key_identifier.as_ref();
                    shown.authority_key_id = id.map(|id| colons(id.0)).unwrap_or_default();
                }
                _ => {}
            }
            let value = string_of(extension.value).unwrap_or_else(|| hex(extension.value));
            shown.extensions.push((extension.oid.to_id_string(), value));
        }
        Some(shown)
    }

    /// Whether its time has begun and is not over.
    pub fn is_current(&self, now: i64) -> bool {
        self.begins <= now && now <= self.ends
    }
}

/// A text in DER: UTF8String, PrintableString or IA5String.
fn string_of(der: &[u8]) -> Option<String> {
    let (tag, length, text) = match der {
        [tag, length, text @ ..] if *length < 0x80 => (tag, usize::from(*length), text),
        [tag, 0x81, length, text @ ..] => (tag, usize::from(*length), text),
        _ => return None,
    };
    let fits = matches!(tag, 0x0c | 0x13 | 0x16) && text.len() == length;
    let text = fits.then(|| std::str::from_utf8(text).ok())??;
    Some(text.to_owned())
}

fn colons(bytes: &[u8]) -> String {
    let parts: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// Certificates that a role trusts.
pub(crate) struct Trusted {
    authorities: Vec<CertificateDer<'static>>,
    /// Those that sign nothing are trusted as themselves only.
    pinned: Vec<CertificateDer<'static>>,
}

impl Trusted {
    /// # Errors
    /// 400: not certificates in PEM.
    pub fn parse(pem: &str) -> Result<Self, ApiError> {
        let unreadable = || ApiError::bad("failed to parse certificate");
        let mut trusted = Self {
            authorities: Vec::new(),
            pinned: Vec::new(),
        };
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|_| unreadable())?;
            let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| unreadable())?;
            let list = match certificate.is_ca() {
                true => &mut trusted.authorities,
                false => &mut trusted.pinned,
            };
            list.push(der.clone());
        }
        match trusted.authorities.is_empty() && trusted.pinned.is_empty() {
            true => Err(unreadable()),
            false => Ok(trusted),
        }
    }

    /// Authorities alone, as DER.
    pub fn authorities(authorities: Vec<CertificateDer<'static>>) -> Self {
        Self {
            authorities,
            pinned: Vec::new(),
        }
    }

    /// Whether the first of these certificates is one of them, or signed by one for clients, directly or through the others.
    pub fn vouch_for(&self, chain: &[Vec<u8>], leaf: &Shown, now: OffsetDateTime) -> bool {
        // The whole certificate must be the same, not its key or number (CVE-2025-6037).
        if self.pinned.iter().any(|own| **own == *leaf.der) {
            return leaf.is_current(now.unix_timestamp());
        }
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            if roots.add(authority.clone()).is_err() {
                return false;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let Ok(verifier) =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()
        else {
            return false;
        };
        let others: Vec<_> = chain
            .iter()
            .skip(1)
            .take(LONGEST)
            .map(|der| CertificateDer::from(der.as_slice()))
            .collect();
        let since = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(since));
        let leaf = CertificateDer::from(leaf.der.as_slice());
        verifier.verify_client_cert(&leaf, &others, now).is_ok()
    }
}
