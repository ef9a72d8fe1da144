//! Logins of those whom others vouch for: issuers of web tokens, certificate authorities, trust domains.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::*;

const LATER: i64 = 4_000_000_000;

/// Somebody who signs web tokens.
struct Issuer {
    key: EncodingKey,
    pem: String,
}

impl Issuer {
    fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = KeyPair::try_from(pkcs8.as_ref()).unwrap();
        Self {
            key: EncodingKey::from_ec_der(pkcs8.as_ref()),
            pem: pair.public_key_pem(),
        }
    }

    fn sign(&self, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.key).unwrap()
    }

    /// Its key as a key set.
    fn key_set(&self) -> Value {
        use base64::Engine as _;
        let pem = pem_body(&self.pem);
        let point = &pem[pem.len() - 64..];
        let encode = |part| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(part);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "x": encode(&point[..32]), "y": encode(&point[32..]), "use": "jwt-svid",
            "kid": "one",
        }]})
    }
}

fn pem_body(pem: &str) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD
        .decode(body)
        .unwrap()
}

/// An authority, or somebody's own.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn client(common_name: &str, uri: Option<&str>, by: &CertifiedIssuer<'_, KeyPair>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !common_name.is_empty() {
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
    }
    let uri = uri.map(|uri| SanType::URI(uri.try_into().unwrap()));
    params.subject_alt_names.extend(uri);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    params.signed_by(&key, by).unwrap().der().to_vec()
}

impl Server {
    async fn with_jwt(issuer: &Issuer, role: Value) -> Self {
        let server = Self::start().await;
        server
            .root("POST", "sys/auth/jwt", json!({"type": "jwt"}))
            .await;
        let config =
            json!({"jwt_validation_pubkeys": [issuer.pem], "bound_issuer": "https://ci.test"});
        server.root("POST", "auth/jwt/config", config).await;
        server.root("POST", "auth/jwt/role/build", role).await;
        server
    }

    async fn show(&self, jwt: &str) -> (u16, Value) {
        let body = json!({"role": "build", "jwt": jwt});
        self.send("POST", "auth/jwt/login", "", None, body).await
    }

    async fn over(&self, certificates: &[Vec<u8>], path: &str, token: &str) -> (u16, Value) {
        let caller = Caller {
            certificates: certificates.to_vec(),
            ..Caller::anonymous(Remote::Ip([192, 0, 2, 1].into()), Via::Http)
        };
        let method = if path.ends_with("lookup-self") {
            "GET"
        } else {
            "POST"
        };
        self.send_as(caller, method, path, &[("x-vault-token", token)], json!({}))
            .await
    }
}

fn role() -> Value {
    json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": "mesh", "bound_claims_type": "glob",
        "bound_claims": {"/repo/name": ["team/*"], "protected": true}, "claim_mappings": {"ref": "git_ref"},
        "token_policies": "ci", "token_ttl": "10m",
    })
}

fn claims() -> Value {
    json!({
        "iss": "https://ci.test", "aud": ["other", "mesh"], "sub": "job-7", "iat": 1_700_000_000, "exp": LATER, "ref": "main",
        "repo": {"name": "team/app"}, "protected": true,
    })
}

#[tokio::test]
async fn a_web_token_of_a_trusted_issuer_logs_in() {
    let issuer = Issuer::new();
    let server = Server::with_jwt(&issuer, role()).await;
    let (status, answer) = server.show(&issuer.sign(&claims())).await;
    assert_eq!(status, 200, "{answer}");
    let auth = &answer["auth"];
    assert_eq!(auth["token_policies"], json!(["ci", "default"]));
    assert_eq!(auth["lease_duration"], 600);
    assert_eq!(
        auth["metadata"],
        json!({"role": "build", "git_ref": "main"})
    );
    let read = server.root("GET", "auth/jwt/role/build", Value::Null).await;
    assert_eq!(read["data"]["bound_claims_type"], "glob");
    let body = issuer.sign(&claims());
    let (header, _) = body.split_once('.').unwrap();
    assert!(!server.log().contains(header), "the log has it hashed");
}

#[tokio::test]
async fn what_a_role_does_not_take_is_refused() {
    let issuer = Issuer::new();
    let server = Server::with_jwt(&issuer, role()).await;
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        claims
    };
    let mut timeless = claims();
    for name in ["iat", "exp"] {
        timeless.as_object_mut().unwrap().remove(name);
    }
    for (wrong, why) in [
        (with("iss", json!("https://evil.test")), "issuer"),
        (with("iss", json!(["https://ci.test"])), "issuer"),
        (with("aud", json!("other")), "audience"),
        (with("aud", Value::Null), "audience"),
        (with("exp", json!(1_000_000)), "expired"),
        (with("exp", json!("4000000000")), "not a time"),
        (with("nbf", json!(LATER)), "not yet valid"),
        (with("nbf", json!("soon")), "not a time"),
        (with("repo", json!({"name": "other/app"})), "bound claim"),
        (with("repo", Value::Null), "missing"),
        (with("protected", json!(false)), "bound claim"),
        (with("sub", Value::Null), "not found"),
        (with("ref", json!({"a": 1})), "not a text"),
        (timeless, "no issue time"),
    ] {
        let (status, answer) = server.show(&issuer.sign(&wrong)).await;
        let text = answer["errors"][0].as_str().unwrap();
        assert!(status == 400 && text.contains(why), "{wrong}: {text}");
        assert!(!text.contains("job-7"), "{text}");
    }
    let (status, _) = server.show(&Issuer::new().sign(&claims())).await;
    assert_eq!(status, 400, "somebody else's key");
    let good = issuer.sign(&claims());
    let (header, rest) = good.split_once('.').unwrap();
    for bent in [
        String::new(),
        "x".into(),
        "a.b.c".into(),
        format!("{header}.{}", &rest[1..]),
        "A".repeat(100_000),
    ] {
        assert_eq!(server.show(&bent).await.0, 400);
    }
}

/// A public key must never be taken for a shared one, and no signature is none.
#[tokio::test]
async fn a_public_key_is_no_shared_key() {
    use base64::Engine as _;
    let issuer = Issuer::new();
    let server = Server::with_jwt(&issuer, role()).await;
    let shared = EncodingKey::from_secret(issuer.pem.as_bytes());
    let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &shared).unwrap();
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let unsigned = format!(
        "{}.{}.",
        encode(r#"{"alg":"none"}"#),
        encode(&claims().to_string())
    );
    for forged in [forged, unsigned] {
        assert_eq!(server.show(&forged).await.0, 400);
    }
}

/// CVE-2024-5798: a role that names no audience takes no token that is for somebody.
#[tokio::test]
async fn cve_2024_5798_a_token_for_somebody_else_is_not_taken() {
    let issuer = Issuer::new();
    let mut role = role();
    role.as_object_mut().unwrap().remove("bound_audiences");
    let server = Server::with_jwt(&issuer, role).await;
    assert_eq!(server.show(&issuer.sign(&claims())).await.0, 400);
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove("aud");
    assert_eq!(server.show(&issuer.sign(&claims)).await.0, 200);
}

#[tokio::test]
async fn the_groups_of_a_token_are_those_of_its_holder() {
    let issuer = Issuer::new();
    let mut with_groups = role();
    with_groups["groups_claim"] = json!("/realm/groups");
    let server = Server::with_jwt(&issuer, with_groups).await;
    let mounts = server.root("GET", "sys/auth", Value::Null).await;
    let accessor = mounts["data"]["jwt/"]["accessor"].as_str().unwrap();
    let mut ids = Vec::new();
    for name in ["dev", "ops"] {
        let group = json!({"name": name, "type": "external", "policies": [format!("of-{name}")]});
        let made = server.root("POST", "identity/group", group).await;
        let id = made["data"]["id"].as_str().unwrap().to_owned();
        let alias =
            json!({"name": format!("/{name}"), "mount_accessor": accessor, "canonical_id": id});
        let made = server.root("POST", "identity/group-alias", alias).await;
        assert_eq!(made["data"]["canonical_id"], *id);
        ids.push((id, made["data"]["id"].as_str().unwrap().to_owned()));
    }
    let show = async |groups: Value| {
        let mut claims = claims();
        claims["realm"] = json!({ "groups": groups });
        server.show(&issuer.sign(&claims)).await
    };
    let policies = async |groups: Value| {
        let (status, answer) = show(groups).await;
        assert_eq!(status, 200, "{answer}");
        answer["auth"]["identity_policies"].clone()
    };
    assert_eq!(policies(json!(["/dev", "/other"])).await, json!(["of-dev"]));
    assert_eq!(
        policies(json!(["/dev", "/ops"])).await,
        json!(["of-dev", "of-ops"])
    );
    // What the next token does not say is over, also for those that were given before.
    let (_, answer) = show(json!(["/dev"])).await;
    let token = answer["auth"]["client_token"].as_str().unwrap();
    assert_eq!(policies(json!("/ops")).await, json!(["of-ops"]));
    let (_, looked) = server
        .send("GET", "auth/token/lookup-self", token, None, Value::Null)
        .await;
    assert_eq!(looked["data"]["identity_policies"], json!(["of-ops"]));
    for wrong in [json!([1]), json!({"a": "b"}), Value::Null] {
        assert_eq!(show(wrong.clone()).await.0, 400, "{wrong}");
    }

    // Nobody else says who is a member, and a group has one name per method.
    let (ops, alias) = &ids[1];
    let path = format!("identity/group/id/{ops}");
    let read = server.root("GET", &path, Value::Null).await;
    assert_eq!(read["data"]["type"], "external");
    assert_eq!(read["data"]["alias"]["name"], "/ops");
    let entity = read["data"]["member_entity_ids"][0].clone();
    for (path, wrong) in [
        (path.clone(), json!({"member_entity_ids": [entity]})),
        (path, json!({"type": "internal"})),
        (
            "identity/group-alias".into(),
            json!({"name": "/dev", "mount_accessor": accessor, "canonical_id": ops}),
        ),
        (
            "identity/group-alias".into(),
            json!({"name": "/x", "mount_accessor": "none", "canonical_id": ops}),
        ),
    ] {
        let text = wrong.to_string();
        let (status, _) = server.send("POST", &path, &server.root, None, wrong).await;
        assert_eq!(status, 400, "{text}");
    }
    let named = json!({"alias_name": "/ops", "alias_mount_accessor": accessor});
    let found = server.root("POST", "identity/lookup/group", named).await;
    assert_eq!(found["data"]["id"], **ops);
    let listed = server
        .root("LIST", "identity/group-alias/id", Value::Null)
        .await;
    assert_eq!(listed["data"]["keys"].as_array().unwrap().len(), 2);
    let path = format!("identity/group-alias/id/{alias}");
    server.root("DELETE", &path, Value::Null).await;
    let (status, _) = server
        .send("GET", &path, &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
    assert_eq!(policies(json!(["/ops"])).await, Value::Null);
}

#[tokio::test]
async fn settings_of_web_tokens_are_checked() {
    let issuer = Issuer::new();
    let server = Server::with_jwt(&issuer, role()).await;
    for (path, wrong) in [
        ("config", json!({})),
        ("config", json!({"jwks_url": "http://example.org/keys"})),
        ("config", json!({"jwks_url": "https://example.org/keys"})),
        ("config", json!({"jwt_validation_pubkeys": ["no key"]})),
        ("config", json!({"jwks": "{\"keys\": []}"})),
        (
            "config",
            json!({"jwks": issuer.key_set().to_string(), "jwt_supported_algs": "HS256"}),
        ),
        ("role/x", json!({"user_claim": "sub"})),
        ("role/x", json!({"bound_subject": "a"})),
        (
            "role/x",
            json!({"user_claim": "sub", "bound_subject": "a", "role_type": "oidc"}),
        ),
        (
            "role/x",
            json!({"user_claim": "sub", "bound_claims": {"a": {"b": 1}}}),
        ),
    ] {
        let text = wrong.to_string();
        let path = format!("auth/jwt/{path}");
        let (status, _) = server.send("POST", &path, &server.root, None, wrong).await;
        assert_eq!(status, 400, "{text}");
    }
    // The same keys as a set.
    let config = json!({"jwks": issuer.key_set().to_string(), "default_role": "build"});
    server.root("POST", "auth/jwt/config", config).await;
    let body = json!({"jwt": issuer.sign(&claims())});
    let (status, answer) = server.send("POST", "auth/jwt/login", "", None, body).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_certificate_of_a_trusted_authority_logs_in() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/cert", json!({"type": "cert"}))
        .await;
    let (own, other) = (authority("own"), authority("other"));
    let role = json!({"certificate": own.pem(), "allowed_common_names": "*.test", "token_policies": "web"});
    server.root("POST", "auth/cert/certs/web", role).await;
    let good = client("a.test", None, &own);
    let (status, answer) = server
        .over(std::slice::from_ref(&good), "auth/cert/login", "")
        .await;
    assert_eq!(status, 200, "{answer}");
    let auth = &answer["auth"];
    assert_eq!(auth["metadata"]["common_name"], "a.test");
    assert_eq!(auth["token_policies"], json!(["default", "web"]));
    for (shown, why) in [
        (vec![], "none"),
        (vec![client("a.example", None, &own)], "another name"),
        (vec![client("a.test", None, &other)], "another authority"),
        (vec![vec![1, 2, 3]], "no certificate"),
        (
            vec![client("a.test", None, &other), good.clone()],
            "only the first counts",
        ),
    ] {
        let (status, _) = server.over(&shown, "auth/cert/login", "").await;
        assert_eq!(status, 400, "{why}");
    }
}

/// CVE-2026-39388: renewing takes the certificate of the login, the whole of it.
#[tokio::test]
async fn cve_2026_39388_a_token_renews_over_its_own_certificate_only() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/cert", json!({"type": "cert"}))
        .await;
    let own = authority("own");
    let role = json!({"certificate": own.pem(), "token_ttl": "1h"});
    server.root("POST", "auth/cert/certs/web", role).await;
    let (first, second) = (client("a", None, &own), client("a", None, &own));
    let (_, answer) = server
        .over(std::slice::from_ref(&first), "auth/cert/login", "")
        .await;
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let renew = "auth/token/renew-self";
    assert_eq!(server.over(&[], renew, token).await.0, 400);
    assert_eq!(server.over(&[second], renew, token).await.0, 400);
    assert_eq!(server.over(&[first], renew, token).await.0, 200);
    let accessor = json!({"accessor": answer["auth"]["accessor"]});
    let (status, _) = server
        .send(
            "POST",
            "auth/token/renew-accessor",
            &server.root,
            None,
            accessor,
        )
        .await;
    assert_eq!(status, 400, "nor does anybody else renew it");
    server
        .root("POST", "auth/cert/config", json!({"disable_binding": true}))
        .await;
    let (_, answer) = server
        .over(&[client("b", None, &own)], "auth/cert/login", "")
        .await;
    let token = answer["auth"]["client_token"].as_str().unwrap();
    assert_eq!(server.over(&[], renew, token).await.0, 200);
}

/// CVE-2025-6037: where one certificate is trusted, another with the same names is not.
#[tokio::test]
async fn cve_2025_6037_a_pinned_certificate_is_compared_as_a_whole() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/cert", json!({"type": "cert"}))
        .await;
    let own = authority("own");
    let pinned = client("a", None, &own);
    let pem = {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(&pinned);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    server
        .root("POST", "auth/cert/certs/one", json!({"certificate": pem}))
        .await;
    let (status, _) = server
        .over(std::slice::from_ref(&pinned), "auth/cert/login", "")
        .await;
    assert_eq!(status, 200);
    let forged = client("a", None, &own);
    for shown in [vec![forged.clone()], vec![forged, pinned]] {
        assert_eq!(server.over(&shown, "auth/cert/login", "").await.0, 400);
    }
}

#[tokio::test]
async fn a_certificate_on_a_revocation_list_does_not_log_in() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/cert", json!({"type": "cert"}))
        .await;
    let (own, other) = (authority("own"), authority("other"));
    server
        .root(
            "POST",
            "auth/cert/certs/web",
            json!({"certificate": own.pem()}),
        )
        .await;
    let shown = client("a", None, &own);
    let serial = x509_serial(&shown);
    // Another authority's list says nothing about it.
    for (by, status) in [(&other, 200), (&own, 400)] {
        let now = time::OffsetDateTime::now_utc();
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: serial.clone().into(),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let crl = list.signed_by(by).unwrap().pem().unwrap();
        server
            .root("POST", "auth/cert/crls/list", json!({"crl": crl}))
            .await;
        let (got, answer) = server
            .over(std::slice::from_ref(&shown), "auth/cert/login", "")
            .await;
        assert_eq!(got, status, "{answer}");
    }
    server
        .root("DELETE", "auth/cert/crls/list", Value::Null)
        .await;
    assert_eq!(server.over(&[shown], "auth/cert/login", "").await.0, 200);
}

fn x509_serial(der: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::FromDer as _;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).unwrap();
    certificate.raw_serial().to_vec()
}

#[tokio::test]
async fn a_spiffe_id_of_the_mesh_logs_in_and_the_token_stays_with_its_certificate() {
    let server = Server::start().await;
    let role = json!({"workload_id_patterns": "/ns/default/dc/*/svc/web", "token_policies": "web", "token_ttl": "5m"});
    server.root("POST", "auth/spiffe/role/web", role).await;
    let certificate = client("", Some(WEB), &authority("mesh"));
    let caller = Caller {
        spiffe: Some(WEB.into()),
        certificates: vec![certificate.clone()],
        ..Caller::anonymous(Remote::Ip([192, 0, 2, 1].into()), Via::Http)
    };
    let (status, answer) = server
        .send_as(
            caller,
            "POST",
            "auth/spiffe/login",
            &[],
            json!({"role": "web"}),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    let auth = &answer["auth"];
    assert_eq!(auth["lease_duration"], 300);
    assert_eq!(auth["metadata"]["spiffe_id"], WEB);
    let token = auth["client_token"].as_str().unwrap();
    let look = "auth/token/lookup-self";
    assert_eq!(server.over(&[certificate], look, token).await.0, 200);
    let other = client("", Some(WEB), &authority("mesh"));
    assert_eq!(server.over(&[other], look, token).await.0, 403);
    assert_eq!(server.over(&[], look, token).await.0, 403);
    let nobody = server
        .send("POST", "auth/spiffe/login", "", None, json!({}))
        .await;
    assert_eq!(nobody.0, 400);
    let elsewhere = WEB.replace("/web", "/db");
    let refused = server
        .send("POST", "auth/spiffe/login", "", Some(&elsewhere), json!({}))
        .await;
    assert_eq!(refused.0, 403);
}

#[tokio::test]
async fn another_trust_domain_logs_in_as_itself_only() {
    let server = Server::start().await;
    let (issuer, spire) = (Issuer::new(), authority("spire"));
    let mut bundle = issuer.key_set();
    let x5c = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(spire.der())
    };
    bundle["keys"]
        .as_array_mut()
        .unwrap()
        .push(json!({"kty": "EC", "use": "x509-svid", "x5c": [x5c]}));
    let config = json!({"trust_domain": "spiffe://example.org", "profile": "static", "bundle": bundle, "audience": "mesh"});
    server.root("POST", "auth/spiffe/config", config).await;
    // Of the mesh's own, whatever another domain calls its workloads.
    let own = json!({"workload_id_patterns": "/web", "token_policies": "own"});
    server.root("POST", "auth/spiffe/role/own", own).await;
    let theirs =
        json!({"workload_id_patterns": "spiffe://example.org/web", "token_policies": "theirs"});
    server.root("POST", "auth/spiffe/role/theirs", theirs).await;
    let claims = json!({"sub": "spiffe://example.org/web", "aud": "mesh", "exp": LATER});
    let login = |claims: Value| {
        let body = json!({"jwt": issuer.sign(&claims)});
        server.send("POST", "auth/spiffe/login", "", None, body)
    };
    let (status, answer) = login(claims.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["auth"]["token_policies"],
        json!(["default", "theirs"])
    );
    for (name, value) in [
        ("aud", json!("other")),
        ("sub", json!("spiffe://mesh.test/web")),
        ("sub", json!("spiffe://example.org.evil/web")),
        ("exp", json!(1)),
        ("exp", Value::Null),
    ] {
        let mut wrong = claims.clone();
        wrong[name] = value;
        let text = wrong.to_string();
        assert_eq!(login(wrong).await.0, 400, "{text}");
    }
    // As a bearer, as the Vault agent sends it.
    let bearer = format!("Bearer {}", issuer.sign(&claims));
    let (status, _) = server
        .send_from(
            "192.0.2.1",
            "POST",
            "auth/spiffe/login",
            &[("authorization", &bearer)],
            json!({"role": "theirs"}),
        )
        .await;
    assert_eq!(status, 200);
    // With certificates.
    let good = client("", Some("spiffe://example.org/web"), &spire);
    let (status, answer) = server.over(&[good], "auth/spiffe/login", "").await;
    assert_eq!(status, 200, "{answer}");
    for (uri, by) in [
        ("spiffe://example.org/web", &authority("spire")),
        ("spiffe://mesh.test/web", &spire),
    ] {
        let shown = client("", Some(uri), by);
        assert_eq!(server.over(&[shown], "auth/spiffe/login", "").await.0, 400);
    }
}
