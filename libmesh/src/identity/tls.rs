//! The rustls side of an identity: TLS 1.3, both ends authenticated, nothing resumed.

use std::{fmt, io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use super::{
    Leaf, Trust, TrustBundle, TrustError,
    trust::{Usage, sha256},
};

/// Judges peers by [`Trust`]: server names are ignored, the caller compares the SPIFFE ID it wanted.
#[derive(Clone)]
struct MeshVerifier(Trust);

/// Verifies a server of a mesh we are not in yet: its chain must hold the root that the token pins.
#[derive(Debug)]
struct PinnedVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

/// Where the newest certificate comes from at each handshake.
pub(super) trait Newest: Send + Sync + 'static {
    fn newest(&self) -> Arc<CertifiedKey>;
    fn with_roots(&self) -> Arc<CertifiedKey>;
}

struct Resolver<N>(N);
struct RootedResolver<N>(N);

pub(super) fn server_config(trust: &Trust, newest: impl Newest, alpn: &[u8]) -> Arc<ServerConfig> {
    let verifier = Arc::new(MeshVerifier(trust.clone()));
    let config = ServerConfig::builder_with_provider(trust.provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver(newest)));
    Arc::new(unresumed(config, alpn))
}

/// For callers that have no certificate yet: they are not asked for one, and see our roots.
pub(super) fn join_server_config(
    trust: &Trust,
    newest: impl Newest,
    alpn: &[u8],
) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(trust.provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(RootedResolver(newest)));
    Arc::new(unresumed(config, alpn))
}

pub(super) fn client_config(trust: &Trust, newest: impl Newest, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(trust.provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(MeshVerifier(trust.clone())))
        .with_client_cert_resolver(Arc::new(Resolver(newest)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// For a joiner: no certificate of its own, and a server whose chain holds the root with hash `pin`.
pub(crate) fn join_client_config(pin: [u8; 32], alpn: &[u8]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = PinnedVerifier {
        pin,
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// What a failed handshake says, without the layers that wrap it.
pub(crate) fn explain(error: &io::Error) -> String {
    let mut cause = error
        .get_ref()
        .map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(inner) = cause {
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(ours)))) =
            inner.downcast_ref()
        {
            return ours.to_string();
        }
        cause = inner.source();
    }
    error.to_string()
}

fn unresumed(mut config: ServerConfig, alpn: &[u8]) -> ServerConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

impl MeshVerifier {
    fn judge(
        &self,
        usage: Usage,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.0
            .verify_for(usage, leaf, intermediates, now)
            .map(|_| ())
            .map_err(refuse)
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(Usage::Server, end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(self.0.provider(), message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(Usage::Client, end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(self.0.provider(), message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = Leaf::parse(end_entity).map_err(|e| refuse(e.into()))?;
        let pinned = intermediates.iter().find(|der| sha256(der) == self.pin);
        let root = pinned.ok_or_else(|| refuse(TrustError::Pin))?;
        let bundle = TrustBundle {
            roots: vec![root.to_vec()],
        };
        let trust = Trust::new(leaf.spiffe.trust_domain().clone(), bundle).map_err(refuse)?;
        let leaf = trust
            .verify_for(Usage::Server, end_entity, intermediates, now)
            .map_err(refuse)?;
        match leaf.spiffe.as_node() {
            Some(_) => Ok(ServerCertVerified::assertion()),
            None => Err(refuse(TrustError::NoNode(leaf.spiffe.to_string()))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl<N: Newest> ResolvesServerCert for Resolver<N> {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.newest())
    }
}

impl<N: Newest> ResolvesClientCert for Resolver<N> {
    fn resolve(
        &self,
        _root_hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.newest())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl<N: Newest> ResolvesServerCert for RootedResolver<N> {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.with_roots())
    }
}

impl fmt::Debug for MeshVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshVerifier({})", self.0.domain())
    }
}

impl<N> fmt::Debug for Resolver<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl<N> fmt::Debug for RootedResolver<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootedResolver")
    }
}

fn verify_signature(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(
        message,
        certificate,
        signature,
        &provider.signature_verification_algorithms,
    )
}

fn refuse(error: TrustError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
