//! Identities: what is refused, and renewal under use.

use std::time::Duration;

use libmesh::{
    identity::{
        Identity, IdentityError, LeafError, NodeKey, PublishRights, Revoked, RightsError,
        ServiceKey, SigningKeyPair, SpiffeId, Subject, TrustError, verify_signature,
    },
    model::ServiceName,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::ca::{Leaf, TestCa};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn spiffe_ids_have_one_spelling() {
    for text in [
        "spiffe://u.mesh/ns/default/dc/dc1/svc/web",
        "spiffe://u.mesh/node/host-1",
        "spiffe://u.mesh/dc/dc1/config",
    ] {
        assert_eq!(SpiffeId::parse(text).unwrap().to_string(), text);
    }
    for text in [
        "spiffe://U.mesh/node/host-1",
        "spiffe://u.mesh/node/Host-1",
        "spiffe://u.mesh/node/host-1/",
        "spiffe://u.mesh//node/host-1",
        "spiffe://u.mesh:80/node/host-1",
        "spiffe://u.mesh/node/host%2d1",
        "spiffe://u.mesh/node/host-1?x",
        "spiffe://u.mesh/ns/other/dc/dc1/svc/web",
        "spiffe://u.mesh/ns/default/dc/dc1/svc/web/extra",
        "spiffe:///node/host-1",
        "SPIFFE://u.mesh/node/host-1",
        "https://u.mesh/node/host-1",
        "",
    ] {
        assert!(SpiffeId::parse(text).is_err(), "{text}");
    }
}

#[test]
fn rights_match_names_and_prefixes_and_survive_their_extension() {
    let name = |text| ServiceName::parse(text).unwrap();
    let rights = PublishRights::new(["web", "api-*"]).unwrap();
    assert!(rights.allows(&name("web")) && rights.allows(&name("api-v2")));
    assert!(!rights.allows(&name("web2")) && !rights.allows(&name("ap")) && !rights.is_server());
    for rights in [
        PublishRights::default(),
        rights,
        PublishRights::all().with_server(),
        PublishRights::new((0..200).map(|n| format!("some-service-with-a-name-{n}"))).unwrap(),
    ] {
        let (_, der) = rights.to_extension();
        assert_eq!(PublishRights::from_extension(&der).unwrap(), rights);
        assert_eq!(
            PublishRights::from_extension(&der[1..]),
            Err(RightsError::Malformed)
        );
    }
    for pattern in ["+server", "a*b", "", "web db", "ü"] {
        assert!(PublishRights::new([pattern]).is_err(), "{pattern}");
    }
}

#[test]
fn only_a_leaf_with_one_name_of_our_domain_is_an_identity() {
    let ca = TestCa::new("ours.mesh");
    let key = ServiceKey::generate().unwrap();
    let csr = key.csr_der().unwrap();
    let web = ca.service_id("web").to_string();
    let refused = |uris: Vec<String>| {
        let leaf = Leaf {
            uris,
            dns: vec!["web.service.mesh"],
            rights: None,
            life: HOUR,
        };
        Identity::new(ca.trust(), ca.sign(&csr, &leaf).chain, &key).unwrap_err()
    };
    assert!(matches!(
        refused(vec![]),
        IdentityError::Trust(TrustError::Leaf(LeafError::UriNames(0)))
    ));
    let two = vec![web.clone(), ca.service_id("db").to_string()];
    assert!(matches!(
        refused(two),
        IdentityError::Trust(TrustError::Leaf(LeafError::UriNames(2)))
    ));
    let foreign = vec![web.replace("ours.mesh", "theirs.mesh")];
    assert!(matches!(
        refused(foreign),
        IdentityError::Trust(TrustError::Domain(..))
    ));

    let other_ca = TestCa::new("ours.mesh");
    let forged = other_ca.sign_for(&csr, &ca.service_id("web"), None, HOUR);
    let error = Identity::new(ca.trust(), forged.chain, &key).unwrap_err();
    assert!(matches!(
        error,
        IdentityError::Trust(TrustError::Path { .. })
    ));

    let another = ServiceKey::generate().unwrap();
    let issued = ca.sign_for(&csr, &ca.service_id("web"), None, HOUR);
    let error = Identity::new(ca.trust(), issued.chain.clone(), &another).unwrap_err();
    assert!(matches!(error, IdentityError::KeyMismatch(_)));
    Identity::new(ca.trust(), issued.chain, &key).unwrap();
}

#[test]
fn a_signature_is_of_one_key_and_one_message() {
    let ca = TestCa::new("ours.mesh");
    let (node_key, node) = ca.node("n1", PublishRights::all());
    let signature = node_key.sign_bytes(b"message");
    assert!(verify_signature(&node.leaf(), b"message", &signature));
    assert!(!verify_signature(&node.leaf(), b"messagE", &signature));
    let (_, other) = ca.node("n1", PublishRights::all());
    assert!(!verify_signature(&other.leaf(), b"message", &signature));
    assert_eq!(node.leaf().node_id, node_key.node_id());

    let service_key = ServiceKey::generate().unwrap();
    let issued = ca.sign_for(
        &service_key.csr_der().unwrap(),
        &ca.service_id("web"),
        None,
        HOUR,
    );
    let service = Identity::new(ca.trust(), issued.chain, &service_key).unwrap();
    let signature = service_key.sign(b"message").unwrap();
    assert!(verify_signature(&service.leaf(), b"message", &signature));
    assert!(!verify_signature(&service.leaf(), b"other", &signature));
}

#[test]
fn the_node_key_stays_the_same_and_its_file_private() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node/key.p8");
    let first = NodeKey::load_or_create(&path).unwrap();
    assert_eq!(
        NodeKey::load_or_create(&path).unwrap().node_id(),
        first.node_id()
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::metadata(path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(NodeKey::load_or_create(&path).is_err());
    assert!(!format!("{first:?}").contains("pkcs8"));
}

#[tokio::test]
async fn a_short_certificate_is_renewed_also_after_the_authority_was_away() {
    let ca = TestCa::new("ours.mesh");
    let source = ca.source("n1", PublishRights::all(), Duration::from_secs(6));
    let web = ServiceName::parse("web").unwrap();
    let identity = Identity::obtain(ca.trust(), &*source, &web, None)
        .await
        .unwrap();
    let first = identity.serial();
    source.set_away(true);
    let stop = CancellationToken::new();
    let subject = Subject::Service {
        name: web,
        ttl: None,
    };
    let renewal = tokio::spawn(identity.clone().keep_renewed(
        source.clone(),
        subject,
        stop.clone(),
    ));

    let mut serials = identity.watch_serial();
    assert!(
        timeout(Duration::from_secs(4), serials.changed())
            .await
            .is_err(),
        "renewed without an authority"
    );
    assert_eq!(identity.serial(), first);
    source.set_away(false);
    timeout(Duration::from_secs(10), serials.changed())
        .await
        .expect("not renewed")
        .unwrap();
    assert_ne!(identity.serial(), first);
    assert_eq!(*serials.borrow(), identity.serial());
    stop.cancel();
    renewal.await.unwrap();
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_at_once_and_a_backdated_one_not_again_and_again() {
    // Backdated by an hour, as against slow clocks: half of its whole life is long over.
    let ca = TestCa::backdating("ours.mesh", HOUR);
    let web = ServiceName::parse("web").unwrap();
    let source = ca.source("n1", PublishRights::all(), Duration::from_secs(60));
    let trust = ca.trust();
    let identity = Identity::obtain(trust.clone(), &*source, &web, None)
        .await
        .unwrap();
    let first = identity.serial();
    let stop = CancellationToken::new();
    let subject = Subject::Service {
        name: web,
        ttl: None,
    };
    let renewal = tokio::spawn(identity.clone().keep_renewed(source, subject, stop.clone()));
    let mut serials = identity.watch_serial();
    assert!(
        timeout(Duration::from_secs(1), serials.changed())
            .await
            .is_err(),
        "renewed without need"
    );

    trust.set_revoked(Revoked {
        serials: [first.clone()].into(),
        ..Revoked::default()
    });
    timeout(Duration::from_secs(5), serials.changed())
        .await
        .expect("not replaced")
        .unwrap();
    assert_ne!(identity.serial(), first);
    stop.cancel();
    renewal.await.unwrap();
}
