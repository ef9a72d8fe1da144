//! TLS towards what is checked: as any client of the application, not as a node of the mesh.

use std::fs;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::model::InvalidField;

/// Where systems keep the certificate authorities they trust, by distribution.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What is spoken over the connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Alpn {
    /// Nothing is said about it.
    None,
    Http1,
    Http2,
}

/// How a probe speaks TLS: by default it trusts the authorities that the system trusts, and asks for the name it
/// connects to. It shows no certificate of its own.
#[derive(Debug, Clone, Default)]
pub struct ProbeTls {
    server_name: Option<ServerName<'static>>,
    trust: Trusted,
}

#[derive(Debug, Clone, Default)]
enum Trusted {
    #[default]
    System,
    Roots(Arc<RootCertStore>),
    Anybody,
}

impl ProbeTls {
    /// The name to ask for and to find in the certificate, instead of the host that is connected to.
    ///
    /// # Errors
    /// [`InvalidField`] `tls_server_name` when it is neither a DNS name nor an IP address.
    pub fn server_name(mut self, name: &str) -> Result<Self, InvalidField> {
        let parsed = ServerName::try_from(name.to_owned());
        self.server_name = Some(parsed.map_err(|_| {
            InvalidField::new(
                "tls_server_name",
                format!("{name:?} is no DNS name and no IP address"),
            )
        })?);
        Ok(self)
    }

    /// Takes every certificate. The look then says that something answers, not who.
    pub fn skip_verify(mut self) -> Self {
        self.trust = Trusted::Anybody;
        self
    }

    /// Trusts only the authorities in `pem`.
    ///
    /// # Errors
    /// [`InvalidField`] `tls_ca` when there is none in it.
    pub fn roots(mut self, pem: &[u8]) -> Result<Self, InvalidField> {
        let roots = parse_roots(pem).map_err(|reason| InvalidField::new("tls_ca", reason))?;
        self.trust = Trusted::Roots(Arc::new(roots));
        Ok(self)
    }

    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
        alpn: Alpn,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| format!("{host:?} is no name that a certificate can have"))?,
        };
        let config = self.config(alpn)?;
        let connecting = TlsConnector::from(config).connect(name, stream).await;
        connecting.map_err(|error| format!("TLS handshake: {error}"))
    }

    /// Configurations of the system's authorities and of none are made once: the authorities are large.
    fn config(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, String> {
        type Made = OnceLock<Result<Arc<ClientConfig>, String>>;
        static SYSTEM: [Made; 3] = [const { OnceLock::new() }; 3];
        static ANYBODY: [Made; 3] = [const { OnceLock::new() }; 3];
        let made = match &self.trust {
            Trusted::System => &SYSTEM,
            Trusted::Anybody => &ANYBODY,
            Trusted::Roots(roots) => return Ok(trusting(Arc::clone(roots), alpn)),
        };
        let make = || match &self.trust {
            Trusted::Anybody => Ok(trusting_anybody(alpn)),
            Trusted::System | Trusted::Roots(_) => Ok(trusting(Arc::new(system_roots()?), alpn)),
        };
        made[alpn as usize].get_or_init(make).clone()
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut files = SYSTEM_ROOTS.iter();
    let file = files.find(|path| fs::exists(path).unwrap_or(false)).ok_or(
        "the system has no list of certificate authorities; name one, or skip the verification",
    )?;
    let pem = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
    parse_roots(&pem).map_err(|reason| format!("{file}: {reason}"))
}

/// Authorities that cannot be read are left out: one odd certificate shall not stop every check.
fn parse_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_slice_iter(pem).flatten();
    let (added, _) = roots.add_parsable_certificates(found);
    match added {
        0 => Err("no certificate in it".to_owned()),
        _ => Ok(roots),
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn trusting(roots: Arc<RootCertStore>, alpn: Alpn) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    finished(config, alpn)
}

fn trusting_anybody(alpn: Alpn) -> Arc<ClientConfig> {
    let provider = provider();
    let verifier = Anybody(Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finished(config, alpn)
}

fn finished(mut config: ClientConfig, alpn: Alpn) -> Arc<ClientConfig> {
    config.alpn_protocols = match alpn {
        Alpn::None => Vec::new(),
        Alpn::Http1 => vec![b"http/1.1".to_vec()],
        Alpn::Http2 => vec![b"h2".to_vec()],
    };
    // Each look shall show that the whole handshake works.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Believes every certificate whose key signs.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
