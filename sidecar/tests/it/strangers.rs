//! Certificates and web tokens as logins, over TLS and with keys that are fetched.

use std::{fs, io::Read, io::Write, net::SocketAddr, net::TcpStream, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use libmesh::join::NodeDirectory;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SigningKey,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, Stream,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use sidecar::http::{Limits, Listener, Routes, bind, json as answer, serve};
use tokio_util::sync::CancellationToken;

use crate::host::{Server, ask};

/// Who signs the server's certificate and the clients'.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A chain and its key.
pub type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    fn certificate(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "job");
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// `[tls]` with a certificate for this machine.
    pub fn tls(&self, dir: &Path) -> String {
        let (certificate, key) = self.certificate(&["127.0.0.1", "localhost"]);
        let files = [dir.join("cert.pem"), dir.join("key.pem")];
        fs::write(&files[0], certificate.pem()).unwrap();
        fs::write(&files[1], key.serialize_pem()).unwrap();
        format!(
            "[tls]\ncert_file = {:?}\nkey_file = {:?}\n",
            files[0], files[1]
        )
    }

    pub fn client(&self) -> Shown {
        let (certificate, key) = self.certificate(&[]);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate.der().clone()], key.into())
    }

    /// What is answered over TLS until the end of the connection.
    pub fn exchange(
        &self,
        addr: SocketAddr,
        shown: Option<Shown>,
        versions: &[&'static rustls::SupportedProtocolVersion],
        request: &str,
    ) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let name = "localhost".try_into().unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut tcp = TcpStream::connect(addr)?;
        let mut stream = Stream::new(&mut tls, &mut tcp);
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// One request over TLS; status and body.
    fn ask(
        &self,
        addr: SocketAddr,
        shown: Option<Shown>,
        (method, path): (&str, &str),
        token: &str,
        body: &Value,
    ) -> (u16, Value) {
        let body = body.to_string();
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             x-vault-token: {token}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let versions = rustls::DEFAULT_VERSIONS;
        let answer = self.exchange(addr, shown, versions, &request).unwrap();
        let status = answer[9..12].parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_logins_and_those_of_the_mesh_need_none() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let server = Server::start_with(dir.path(), &authority.tls(dir.path()));
    let addr: SocketAddr = server.vault.trim_start_matches("http://").parse().unwrap();
    let one = json!({"secret_shares": 1, "secret_threshold": 1});
    let (_, made) = authority.ask(addr, None, ("PUT", "sys/init"), "", &one);
    let root = made["root_token"].as_str().unwrap();
    let key = json!({"key": made["keys"][0]});
    authority.ask(addr, None, ("PUT", "sys/unseal"), "", &key);
    server.node();
    let as_root = |what: (&str, &str), body: Value| {
        let (status, answer) = authority.ask(addr, None, what, root, &body);
        assert!(status < 300, "{what:?}: {status} {answer}");
        answer
    };

    as_root(("POST", "sys/auth/cert"), json!({"type": "cert"}));
    let role = json!({"certificate": authority.0.pem(), "allowed_common_names": "job"});
    as_root(("POST", "auth/cert/certs/job"), role);
    let login = ("POST", "auth/cert/login");
    let (status, answer) = authority.ask(addr, Some(authority.client()), login, "", &json!({}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["auth"]["metadata"]["common_name"], "job");
    let (status, _) = authority.ask(addr, None, login, "", &json!({}));
    assert_eq!(status, 400);
    let stranger = Authority::new().client();
    let (status, _) = authority.ask(addr, Some(stranger), login, "", &json!({}));
    assert_eq!(status, 400);

    // A certificate of the mesh itself needs no token.
    let kept = NodeDirectory::open(&dir.path().join("s1/node")).unwrap();
    let node = || {
        let chain = kept.load().unwrap().unwrap().chain;
        let key = PrivatePkcs8KeyDer::from(fs::read(kept.key_path()).unwrap());
        (chain.into_iter().map(Into::into).collect(), key.into())
    };
    let policy = json!({"policy": "path \"secret/data/node\" { capabilities = [\"read\"] }"});
    as_root(("PUT", "sys/policies/acl/node"), policy);
    let role = json!({"workload_id_patterns": "/node/*", "token_policies": "node"});
    as_root(("POST", "auth/spiffe/role/node"), role);
    as_root(
        ("POST", "secret/data/node"),
        json!({"data": {"k": "for nodes"}}),
    );
    let read = ("GET", "secret/data/node");
    let (status, answer) = authority.ask(addr, Some(node()), read, "", &json!({}));
    assert_eq!(
        (status, &answer["data"]["data"]["k"]),
        (200, &json!("for nodes")),
        "{answer}"
    );
    let (status, _) = authority.ask(addr, Some(authority.client()), read, "", &json!({}));
    assert_eq!(status, 403);
    // With a token, for those who need one: it is worth nothing elsewhere.
    let login = ("POST", "auth/spiffe/login");
    let (status, answer) = authority.ask(addr, Some(node()), login, "", &json!({}));
    assert_eq!(status, 200, "{answer}");
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let (status, _) = authority.ask(addr, Some(node()), read, token, &json!({}));
    assert_eq!(status, 200);
    let (status, _) = authority.ask(addr, None, read, token, &json!({}));
    assert_eq!(status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_web_tokens_are_fetched_from_whoever_signs_them() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (shares, root) = server.init(1, 1).await;
    server.unseal(&shares[0]);
    let as_root = async |method, path: &str, body: Value| {
        let (status, answer) = server.vault(method, path, &root, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
    };

    // An issuer with a key set, which it describes.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = key.public_key_raw()[1..].to_vec();
    let set = json!({"keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1",
        "x": URL_SAFE_NO_PAD.encode(&point[..32]), "y": URL_SAFE_NO_PAD.encode(&point[32..]),
    }]});
    let tcp = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let issuer = format!("http://{}", tcp.local_addr().unwrap());
    let about = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
    let ok = http::StatusCode::OK;
    let routes = Routes::new()
        .get("/keys", move |_| std::future::ready(answer(ok, &set)))
        .get("/.well-known/openid-configuration", move |_| {
            std::future::ready(answer(ok, &about))
        });
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(
        Listener::Tcp(tcp),
        Limits::default(),
        stop.clone(),
        move |request, conn| {
            let routes = routes.clone();
            async move { routes.dispatch(request, conn).await }
        },
    ));

    as_root(Method::POST, "/v1/sys/auth/jwt", json!({"type": "jwt"})).await;
    let config = json!({"oidc_discovery_url": issuer});
    as_root(Method::POST, "/v1/auth/jwt/config", config).await;
    let role = json!({"role_type": "jwt", "user_claim": "sub", "bound_audiences": "mesh"});
    as_root(Method::POST, "/v1/auth/jwt/role/ci", role).await;
    let sign = |issuer: &str| {
        let claims = json!({"iss": issuer, "sub": "job", "aud": "mesh", "iat": 1_700_000_000, "exp": 4_000_000_000_u64});
        let head = json!({"alg": "ES256", "kid": "1"});
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", encode(&head), encode(&claims));
        let signature = fixed(&key.sign(text.as_bytes()).unwrap());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    };
    let login = async |issuer: &str| {
        let body = json!({"role": "ci", "jwt": sign(issuer)}).to_string();
        ask(&server.vault, Method::POST, "/v1/auth/jwt/login", "", body).await
    };
    let (status, answer) = login(&issuer).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(login("https://somebody.else").await.0, 400);
    stop.cancel();
    serving.await.unwrap();
    // It is away; its keys are known.
    assert_eq!(login(&issuer).await.0, 200);
}

/// An ECDSA signature in DER as two numbers of 32 bytes.
pub fn fixed(der: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    let mut at = 2;
    for half in out.chunks_exact_mut(32) {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        half[32 - number.len()..].copy_from_slice(number);
        at += 2 + length;
    }
    out
}

/// A cluster that knows three tokens, and lets only one account review them.
fn reviewed(request: &http::Request<bytes::Bytes>) -> (u16, Value) {
    let shown = request.headers().get("authorization");
    if shown.is_none_or(|shown| shown != "Bearer reviewer") {
        return (401, json!({"kind": "Status"}));
    }
    let review: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(
        request.uri().path(),
        "/apis/authentication.k8s.io/v1/tokenreviews"
    );
    let user = match review["spec"]["token"].as_str().unwrap() {
        "of-web" => "system:serviceaccount:shop:web",
        "of-other" => "system:serviceaccount:other:web",
        "of-ann" => "ann",
        _ => return (201, json!({"status": {"authenticated": false}})),
    };
    let status = json!({
        "authenticated": true, "audiences": review["spec"]["audiences"],
        "user": {"username": user, "uid": format!("uid-of-{user}")},
    });
    (201, json!({ "status": status }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_of_a_cluster_logs_in() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (shares, root) = server.init(1, 1).await;
    server.unseal(&shares[0]);
    let tcp = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let cluster = format!("http://{}", tcp.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(
        Listener::Tcp(tcp),
        Limits::default(),
        stop.clone(),
        |request, _| async move {
            let (status, body) = reviewed(&request);
            answer(status.try_into().unwrap(), &body)
        },
    ));
    let send = async |path: &str, token: &str, body: Value| {
        server.vault(Method::POST, path, token, body).await
    };
    let good = async |path: &str, body: Value| {
        let (status, answer) = send(path, &root, body).await;
        assert!((200..300).contains(&status), "{path}: {answer}");
    };
    good("/v1/sys/auth/kubernetes", json!({"type": "kubernetes"})).await;
    for wrong in [
        json!({}),
        json!({"kubernetes_host": "http://example.org"}),
        json!({"kubernetes_host": cluster, "pem_keys": "x"}),
    ] {
        let (status, answer) = send("/v1/auth/kubernetes/config", &root, wrong).await;
        assert_eq!(status, 400, "{answer}");
    }
    let config = json!({"kubernetes_host": cluster, "token_reviewer_jwt": "reviewer"});
    good("/v1/auth/kubernetes/config", config).await;
    let role = json!({
        "bound_service_account_names": "web", "bound_service_account_namespaces": "sh*", "audience": "mesh",
        "token_policies": "web", "token_ttl": "5m",
    });
    good("/v1/auth/kubernetes/role/web", role).await;
    for wrong in [
        json!({"bound_service_account_names": "web"}),
        json!({"bound_service_account_names": "*", "bound_service_account_namespaces": "*"}),
        json!({"bound_service_account_names": "a", "bound_service_account_namespaces": "b", "alias_name_source": "c"}),
    ] {
        let (status, answer) = send("/v1/auth/kubernetes/role/bad", &root, wrong).await;
        assert_eq!(status, 400, "{answer}");
    }
    let login = async |role: &str, token: &str| {
        let body = json!({"role": role, "jwt": token});
        send("/v1/auth/kubernetes/login", "", body).await
    };
    let (status, given) = login("web", "of-web").await;
    assert_eq!(status, 200, "{given}");
    let auth = &given["auth"];
    assert_eq!(auth["token_policies"], json!(["default", "web"]));
    assert_eq!(auth["lease_duration"], 300);
    assert_eq!(auth["metadata"]["service_account_namespace"], "shop");
    assert_eq!(auth["metadata"]["service_account_name"], "web");
    for (token, why) in [
        ("of-other", "namespace not authorized"),
        ("of-ann", "not a service account's"),
        ("unknown", "not valid"),
    ] {
        let (status, given) = login("web", token).await;
        let text = given["errors"][0].as_str().unwrap();
        assert!(status == 403 && text.contains(why), "{token}: {text}");
    }
    assert_eq!(login("none", "of-web").await.0, 400);
    let (_, read) = server
        .vault(
            Method::GET,
            "/v1/auth/kubernetes/config",
            &root,
            Value::Null,
        )
        .await;
    assert_eq!(read["data"]["token_reviewer_jwt_set"], true);
    assert!(!read.to_string().contains("\"reviewer\""), "{read}");

    // Without a reviewer's token the reviewed one is shown, which this cluster does not let review.
    let config = json!({"kubernetes_host": cluster, "disable_local_ca_jwt": true});
    good("/v1/auth/kubernetes/config", config).await;
    assert_eq!(login("web", "of-web").await.0, 403);
    stop.cancel();
    serving.await.unwrap();
    server.stop();
}
