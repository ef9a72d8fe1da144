//! What the server decides for everybody, through an agent that has no store: config entries, the authority's roots, leaves.

use std::path::Path;

use http::Method;
use libmesh::{
    identity::{Identity, ServiceKey, Trust, TrustBundle, TrustDomain},
    model::ServiceName,
};
use serde_json::{Value, json};
use sidecar::attach::pem;
use zeroize::Zeroizing;

use crate::{
    host::{Host, Server},
    node::Agent,
};

const CONFIG: &str = "/v1/config";

struct Asking<'a> {
    agent: &'a Agent,
    root: &'a str,
}

impl Asking<'_> {
    async fn with_root(&self, method: Method, path: &str, body: &Value) -> (u16, String) {
        let sign = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{sign}token={}", self.root);
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.agent.ask(method, &path, &body).await
    }

    async fn put(&self, path: &str, body: Value) -> (u16, String) {
        self.with_root(Method::PUT, path, &body).await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.with_root(Method::GET, path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// A server with its store open, and an agent that joined it.
async fn start(dir: &Path) -> (Server, Host<'_>, Agent) {
    let server = Server::start(dir);
    let (host, _) = Host::open(&server, dir).await;
    let token = host.new_token("token", "1h");
    let agent = Agent::spawn(host.agent("a1", &token));
    (server, host, agent)
}

fn targets(chain: &Value) -> Vec<&str> {
    let targets = chain["Chain"]["Targets"].as_object().unwrap();
    targets.keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn config_entries_are_kept_by_the_server_and_known_to_agents() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, host, agent) = start(dir.path()).await;
    let asking = Asking {
        agent: &agent,
        root: &host.root,
    };
    let yes = |answer: (u16, String)| assert_eq!((answer.0, answer.1.trim()), (200, "true"));

    let defaults = json!({"Kind": "service-defaults", "Name": "Web", "Protocol": "http"});
    agent
        .until_put(CONFIG, &host.root, &defaults.to_string())
        .await;
    let resolver = json!({
        "Kind": "service-resolver", "Name": "web", "connect_timeout": "3s",
        "Subsets": {"v1": {"Filter": "Service.Meta.version == 1"}},
    });
    yes(asking.put(CONFIG, resolver).await);
    let splitter = json!({"Kind": "service-splitter", "Name": "web", "Splits": [
        {"Weight": 99.5, "ServiceSubset": "v1"}, {"Weight": 0.5, "ServiceSubset": ""}]});
    yes(asking.put(CONFIG, splitter.clone()).await);

    // Who changed it sees it at once, at the agent that was asked.
    let chain = asking.get("/v1/discovery-chain/web").await;
    let (whole, part) = ("web.default.default.dc1", "v1.web.default.default.dc1");
    assert_eq!(targets(&chain), [part, whole]);
    let start = chain["Chain"]["StartNode"].as_str().unwrap();
    assert_eq!(
        chain["Chain"]["Nodes"][start]["Splits"][0]["Weight"],
        json!(99.5)
    );

    let kept = asking.get("/v1/config/service-resolver/web").await;
    assert_eq!(kept["ConnectTimeout"], "3s");
    let index = kept["ModifyIndex"].as_u64().unwrap();
    let change = json!({"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {}}});
    let cas = |index: u64| format!("{CONFIG}?cas={index}");
    let (_, stale) = asking.put(&cas(index - 1), change.clone()).await;
    assert_eq!(stale.trim(), "false");
    yes(asking.put(&cas(index), change).await);

    // What does not fit, or is not followed, is refused and changes nothing.
    for (entry, status, reason) in [
        (
            json!({"Kind": "service-resolver", "Name": "web"}),
            500,
            "does not have a subset named \"v1\"",
        ),
        (
            json!({"Kind": "service-router", "Name": "web"}),
            400,
            "\"service-router\" are not supported",
        ),
        (
            json!({"Kind": "service-defaults", "Name": "web", "Protocol": "tcp"}),
            500,
            "does not permit advanced routing",
        ),
        (
            json!({"Kind": "service-defaults", "Name": "x", "MaxInboundConnections": 3}),
            400,
            "MaxInboundConnections is not supported",
        ),
        (
            json!({"Kind": "service-resolver", "Name": "x", "Subsets": {"a": {"Filter": "Service =="}}}),
            500,
            "Filter for subset \"a\"",
        ),
        (
            json!({"Kind": "proxy-defaults", "Name": "local"}),
            500,
            "only \"global\"",
        ),
        (
            json!({"Kind": "service-resolver", "Name": "x", "Frob": 1, "Zap": 2}),
            400,
            "2 errors occurred:\n\t* invalid config key \"Frob\"\n\t* invalid config key \"Zap\"\n",
        ),
    ] {
        let (answered, body) = asking.put(CONFIG, entry.clone()).await;
        assert_eq!(answered, status, "{entry}: {body}");
        assert!(body.contains(reason), "{entry}: {body}");
    }
    let (status, body) = asking
        .with_root(
            Method::DELETE,
            "/v1/config/service-resolver/web",
            &Value::Null,
        )
        .await;
    assert_eq!(status, 500, "the splitter needs it: {body}");
    assert_eq!(
        asking.get("/v1/config/service-splitter").await[0]["Splits"],
        json!([{"Weight": 99.5, "ServiceSubset": "v1"}, {"Weight": 0.5}])
    );
    let (status, _) = agent.ask(Method::PUT, CONFIG, &splitter.to_string()).await;
    assert_eq!(status, 403, "without a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn intentions_are_config_entries_too() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, host, agent) = start(dir.path()).await;
    let asking = Asking {
        agent: &agent,
        root: &host.root,
    };
    let entry =
        |sources: Value| json!({"Kind": "service-intentions", "Name": "db", "Sources": sources});
    let sources = json!([{"Name": "*", "Action": "deny"}, {"Name": "web", "Action": "allow", "Description": "d"}]);
    let body = entry(sources).to_string();
    agent.until_put(CONFIG, &host.root, &body).await;

    let check =
        |source: &str| format!("/v1/connect/intentions/check?source={source}&destination=db");
    assert_eq!(asking.get(&check("web")).await["Allowed"], true);
    assert_eq!(asking.get(&check("other")).await["Allowed"], false);
    let shown = asking.get("/v1/config/service-intentions/db").await;
    let sources: Vec<_> = shown["Sources"].as_array().unwrap().iter().collect();
    assert_eq!(
        (&sources[0]["Name"], &sources[0]["Precedence"]),
        (&json!("web"), &json!(9))
    );
    assert_eq!(sources[1]["Name"], "*");
    let index = shown["ModifyIndex"].as_u64().unwrap();

    // The entry is the whole truth: what it does not name any more is gone, in the same moment.
    let only = entry(json!([{"Name": "api", "Action": "allow"}]));
    let (_, stale) = asking
        .put(&format!("{CONFIG}?cas={}", index + 9), only.clone())
        .await;
    assert_eq!(stale.trim(), "false");
    let (_, done) = asking.put(&format!("{CONFIG}?cas={index}"), only).await;
    assert_eq!(done.trim(), "true");
    assert_eq!(asking.get(&check("web")).await["Allowed"], false);
    assert_eq!(asking.get(&check("api")).await["Allowed"], true);
    let all = asking.get("/v1/connect/intentions").await;
    assert_eq!(all.as_array().unwrap().len(), 1);

    let path = "/v1/config/service-intentions/db";
    let (status, _) = asking.with_root(Method::DELETE, path, &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(asking.get("/v1/connect/intentions").await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_fits_the_roots_and_needs_a_right() {
    let dir = tempfile::tempdir().unwrap();
    let (server, host, agent) = start(dir.path()).await;
    let asking = Asking {
        agent: &agent,
        root: &host.root,
    };
    let leaf = "/v1/agent/connect/ca/leaf/web";
    let other = json!({"Kind": "service-defaults", "Name": "other"});
    agent
        .until_put(CONFIG, &host.root, &other.to_string())
        .await;

    let roots = agent.get("/v1/agent/connect/ca/roots").await;
    // As py-consul asks.
    let shown = agent.get("/v1/connect/ca/roots?pem=0").await;
    assert_eq!(shown["ActiveRootID"], roots["ActiveRootID"]);
    let pem_of = |root: &Value| pem::read_certificates(root["RootCert"].as_str().unwrap());
    let ders = roots["Roots"].as_array().unwrap().iter();
    let ders = ders.flat_map(|root| pem_of(root).unwrap()).collect();
    let domain = TrustDomain::parse(roots["TrustDomain"].as_str().unwrap()).unwrap();
    let trust = Trust::new(domain, TrustBundle { roots: ders }).unwrap();
    let issued = asking.get(leaf).await;
    let chain = pem::read_certificates(issued["CertPEM"].as_str().unwrap()).unwrap();
    let key = rcgen::KeyPair::from_pem(issued["PrivateKeyPEM"].as_str().unwrap()).unwrap();
    let key = ServiceKey::from_pkcs8(Zeroizing::new(key.serialize_der())).unwrap();
    // Path, validity and key: all of it, or there is no identity.
    let identity = Identity::new(trust, chain, &key).unwrap();
    let uri = identity.spiffe_id();
    assert_eq!(uri.as_service(), Some(&ServiceName::parse("web").unwrap()));
    assert_eq!(issued["ServiceURI"], uri.to_string());
    assert_eq!(
        issued["SerialNumber"].as_str().unwrap().replace(':', ""),
        identity.serial()
    );
    let again = asking.get(leaf).await;
    assert_eq!(again["SerialNumber"], issued["SerialNumber"]);

    let long = "x".repeat(30_000);
    for (path, token, status, reason) in [
        (leaf, long.as_str(), 403, "ACL not found"),
        (leaf, "", 403, "consul/service/web needs a token"),
        (leaf, "hvs.nobody", 403, "ACL not found"),
        // This node may publish web only.
        (
            "/v1/agent/connect/ca/leaf/db",
            host.root.as_str(),
            403,
            "refused",
        ),
        (
            "/v1/agent/connect/ca/leaf/a%20b",
            &host.root,
            400,
            "Invalid service",
        ),
    ] {
        let path = format!("{path}?token={token}");
        let (answered, body) = agent.ask(Method::GET, &path, "").await;
        assert_eq!(answered, status, "{path}: {body}");
        assert!(body.contains(reason), "{body}");
        assert!(!body.contains("PRIVATE"), "{path}");
    }

    let ask = json!({"Target": "db", "ClientCertURI": uri.to_string(), "ClientCertSerial": "01"});
    let authorize = "/v1/agent/connect/authorize";
    let (_, said) = agent.ask(Method::POST, authorize, &ask.to_string()).await;
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said["Authorized"], false,
        "nothing is allowed unless somebody says so"
    );
    let allow = "/v1/connect/intentions/exact?source=web&destination=db";
    asking.put(allow, json!({"Action": "allow"})).await;
    for (uri, authorized) in [
        (uri.to_string(), true),
        (
            uri.to_string().replacen("spiffe://", "spiffe://x", 1),
            false,
        ),
    ] {
        let ask = json!({"Target": "db", "ClientCertURI": uri});
        let (_, said) = agent.ask(Method::POST, authorize, &ask.to_string()).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["Authorized"], authorized, "{uri}: {said}");
    }

    // With the store sealed, decisions and roots are still there; a new leaf is not.
    let sealed = server.operator(&["seal"], &host.root, "");
    assert_eq!(sealed.code, Some(0), "{}", sealed.err);
    agent.get("/v1/connect/ca/roots").await;
    let path = format!("{leaf}?token={}", host.root);
    let (status, body) = agent.ask(Method::GET, &path, "").await;
    assert_eq!(status, 503, "{body}");
}
