//! Certificates for both kinds of proxies: the same ones, so that handshakes and records cost both alike.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use libmesh::bundle::{Action, BundleStore, ConfigBundle, Intention, ServiceMatch, SignedBundle};
use libmesh::identity::{Identity, ServiceKey, SpiffeId, Trust, TrustBundle, TrustDomain};
use libmesh::model::{Datacenter, ServiceName};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};

/// What haproxy verifies; ours goes by the SPIFFE ID.
pub const DNS_NAME: &str = "mesh.test";
const DOMAIN: &str = "bench.mesh";

/// What a sidecar of ours needs.
pub struct Credentials {
    pub identity: Identity,
    pub bundles: BundleStore,
}

/// Writes `root.{der,pem}`, and for `web`, `db` and the signer of the configuration `<name>.{der,key,pem}`.
pub fn write(folder: &Path) -> Result<()> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "bench root");
    let root = params.self_signed(&key)?;
    std::fs::write(folder.join("root.der"), root.der())?;
    std::fs::write(folder.join("root.pem"), root.pem())?;
    let issuer = Issuer::new(params, key);
    let (domain, datacenter) = (TrustDomain::parse(DOMAIN)?, Datacenter::default());
    let service = |name| {
        Ok::<_, anyhow::Error>(SpiffeId::service(
            &domain,
            &datacenter,
            &ServiceName::parse(name)?,
        ))
    };
    let signer = SpiffeId::config_signer(&domain, &datacenter);
    for (name, spiffe) in [
        ("web", service("web")?),
        ("db", service("db")?),
        ("signer", signer),
    ] {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName(DNS_NAME.try_into()?),
            SanType::URI(spiffe.to_string().try_into()?),
        ];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(24 * 3600)).into();
        let leaf = params.signed_by(&key, &issuer)?;
        std::fs::write(folder.join(format!("{name}.der")), leaf.der())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_der())?;
        std::fs::write(
            folder.join(format!("{name}.pem")),
            leaf.pem() + &key.serialize_pem(),
        )?;
    }
    Ok(())
}

/// Reads what `service` needs, with a configuration in which `web` may call `db`.
pub async fn read(folder: &Path, service: &str) -> Result<Credentials> {
    let file = |name: String| {
        std::fs::read(folder.join(&name)).with_context(|| format!("cannot read {name}"))
    };
    let of = |name: &str| -> Result<(Vec<Vec<u8>>, ServiceKey)> {
        let key = ServiceKey::from_pkcs8(file(format!("{name}.key"))?.into())?;
        Ok((vec![file(format!("{name}.der"))?], key))
    };
    let (domain, datacenter) = (TrustDomain::parse(DOMAIN)?, Datacenter::default());
    let trust = Trust::new(
        domain.clone(),
        TrustBundle {
            roots: vec![file("root.der".to_owned())?],
        },
    )?;
    let (chain, key) = of(service)?;
    let identity = Identity::new(trust.clone(), chain, &key)?;
    let bundles = BundleStore::open(trust, datacenter.clone(), None)?;
    let bundle = ConfigBundle {
        index: 1,
        head: [0; 32],
        issued_at: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        trust_domain: domain,
        datacenter,
        roots: Vec::new(),
        intentions: vec![Intention {
            source: ServiceMatch::Name(ServiceName::parse("web")?),
            destination: ServiceMatch::Name(ServiceName::parse("db")?),
            action: Action::Allow,
        }],
        default_action: Action::Deny,
        revoked: Vec::new(),
        entries: Default::default(),
    };
    let (chain, key) = of("signer")?;
    bundles
        .offer(SignedBundle::sign(&bundle, &key, chain)?)
        .await?;
    Ok(Credentials { identity, bundles })
}
