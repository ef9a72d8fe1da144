//! `/v1/acl` and what it opens and closes, over a real server and an agent that joined it.

mod external;
mod lists;
mod login;
mod svid;
mod txn;

use std::{
    fs,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Request};
use serde_json::{Value, json};
use sidecar::http::client::Target;

use crate::{
    host::{Host, Server},
    node::{Agent, PATIENCE},
};

const ACL: &str = "[acl]\nenabled = true\ntoken_ttl = \"100ms\"\n";
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
const MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";

struct Client {
    http: Target,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Client {
    fn at(http: &str) -> Self {
        let http = Target::parse(http, 0, None).unwrap();
        Self { http }
    }

    async fn full(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(body.into()).unwrap();
        let (head, body) = self
            .http
            .send(request, PATIENCE)
            .await
            .unwrap()
            .into_parts();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    async fn ask(&self, method: Method, path: &str, token: &str, body: Value) -> (u16, String) {
        let answer = self.full(method, path, token, body).await;
        (answer.status, answer.body)
    }

    async fn ok(&self, method: Method, path: &str, token: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method, path, token, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    async fn put(&self, path: &str, token: &str, body: Value) -> Value {
        self.ok(Method::PUT, path, token, body).await
    }

    async fn get(&self, path: &str, token: &str) -> Value {
        self.ok(Method::GET, path, token, Value::Null).await
    }

    /// The status and words of a refusal.
    async fn no(&self, method: Method, path: &str, token: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.ask(method, path, token, body).await;
        assert!(status >= 400, "{path}: {answer}");
        (status, answer)
    }

    async fn policy(&self, token: &str, name: &str, rules: &str) -> String {
        let made = json!({"Name": name, "Rules": rules});
        text(&self.put("/v1/acl/policy", token, made).await["ID"])
    }

    /// Secret and accessor.
    async fn token(&self, by: &str, spec: Value) -> (String, String) {
        let made = self.put("/v1/acl/token", by, spec).await;
        (text(&made["SecretID"]), text(&made["AccessorID"]))
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}

fn names(list: &Value, of: impl Fn(&Value) -> &Value) -> Vec<String> {
    let mut names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|it| text(of(it)))
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_policies_and_roles_open_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let (root, client) = (host.root.clone(), Client::at(&host.http));
    let (get, put, delete) = (Method::GET, Method::PUT, Method::DELETE);

    // Nobody may do anything yet.
    let (status, words) = client
        .no(get.clone(), "/v1/acl/tokens", "", Value::Null)
        .await;
    assert!(status == 403 && words.contains("consul/acl"), "{words}");
    let unknown = client
        .no(get.clone(), "/v1/acl/tokens", "nobody", Value::Null)
        .await;
    assert_eq!(unknown, (403, "ACL not found".into()));

    // Once.
    let first = client.put("/v1/acl/bootstrap", "", Value::Null).await;
    let boss = text(&first["SecretID"]);
    assert_eq!(
        first["Policies"],
        json!([{"ID": MANAGEMENT, "Name": "global-management"}])
    );
    let (status, words) = client
        .no(put.clone(), "/v1/acl/bootstrap", "", Value::Null)
        .await;
    assert_eq!(status, 403);
    let wanted = "Permission denied: ACL bootstrap no longer allowed (reset index: ";
    assert!(words.starts_with(wanted), "{words}");

    // Mistakes are named.
    let bad = json!({"Name": "bad", "Rules": "key \"a\" { policy = \"read\" }\n servce \"x\" {}"});
    let (status, words) = client.no(put.clone(), "/v1/acl/policy", &boss, bad).await;
    assert!(
        status == 500 && words.contains("2:2") && words.contains("servce"),
        "{words}"
    );
    let bad = json!({"Policies": [{"Name": "nope"}]});
    let (_, words) = client.no(put.clone(), "/v1/acl/token", &boss, bad).await;
    assert!(
        words.contains("No such ACL policy with name \"nope\""),
        "{words}"
    );
    let nobody = "/v1/acl/token/11111111-2222-3333-4444-555555555555";
    let (status, words) = client.no(get.clone(), nobody, &boss, Value::Null).await;
    assert_eq!(
        (status, &*words),
        (404, "Requested token does not exist: ACL not found")
    );
    let (status, words) = client.no(delete.clone(), nobody, &boss, Value::Null).await;
    assert_eq!((status, &*words), (404, "Cannot find token to delete"));
    let (status, words) = client
        .no(put.clone(), "/v1/acl/token", &boss, json!({"Colour": 1}))
        .await;
    assert!(status == 400 && words.contains("Colour"), "{words}");

    // A policy, a token, keys.
    let rules = "key_prefix \"app/\" {\n policy = \"write\"\n}\nkey \"app/secret\" {\n policy = \"deny\"\n}\n\
                 service \"web\" { policy = \"write\" }\nsession_prefix \"\" { policy = \"write\" }";
    let policy = client.policy(&boss, "app", rules).await;
    let read = client.get(&format!("/v1/acl/policy/{policy}"), &boss).await;
    assert_eq!(
        (&read["Name"], &read["Rules"]),
        (&json!("app"), &json!(rules))
    );
    assert_eq!(
        client.get("/v1/acl/policy/name/app", &boss).await["ID"],
        json!(policy)
    );
    let (app, accessor) = client
        .token(
            &boss,
            json!({"Description": "app", "Policies": [{"ID": policy}]}),
        )
        .await;
    client.put("/v1/kv/app/x", &app, json!(1)).await;
    client.put("/v1/kv/app/secret", &root, json!(2)).await;
    client.put("/v1/kv/other", &root, json!(3)).await;
    for (method, path) in [
        (&get, "/v1/kv/other"),
        (&put, "/v1/kv/other"),
        (&get, "/v1/kv/app/secret"),
    ] {
        let (status, words) = client.no(method.clone(), path, &app, json!(1)).await;
        let access = if *method == get { "read" } else { "write" };
        let key = path.trim_start_matches("/v1/kv/");
        let wanted = format!(
            "Permission denied: token with AccessorID '{accessor}' lacks permission 'key:{access}' on \"{key}\""
        );
        assert_eq!((status, words), (403, wanted));
    }
    // A look at many shows what may be seen; nothing that may not be is deleted with the others.
    let keys = client.get("/v1/kv/app/?keys", &app).await;
    assert_eq!(keys, json!(["app/x"]));
    let (status, _) = client
        .no(delete.clone(), "/v1/kv/app/?recurse", &app, Value::Null)
        .await;
    assert_eq!(status, 403);
    // The token of the query and Bearer are the same.
    client.get(&format!("/v1/kv/app/x?token={app}"), "").await;

    // What is known of it.
    let own = client.get("/v1/acl/token/self", &app).await;
    assert_eq!(
        (&own["AccessorID"], &own["SecretID"]),
        (&json!(accessor), &json!(app))
    );
    let shown = client
        .get(&format!("/v1/acl/token/{accessor}?expanded"), &boss)
        .await;
    assert_eq!(shown["SecretID"], json!("<hidden>"));
    assert_eq!(shown["ExpandedPolicies"][0]["Rules"], json!(rules));
    let listed = client
        .get(&format!("/v1/acl/tokens?policy={policy}"), &boss)
        .await;
    assert_eq!(names(&listed, |it| &it["AccessorID"]).concat(), accessor);
    assert!(!listed.to_string().contains(&app));
    let (status, words) = client
        .no(get.clone(), "/v1/acl/tokens", &app, Value::Null)
        .await;
    assert!(status == 403 && words.contains("'acl:read'"), "{words}");
    // The Vault interface knows it too.
    let (status, looked) = server
        .vault(get.clone(), "/v1/auth/token/lookup-self", &app, Value::Null)
        .await;
    assert_eq!(status, 403, "no right to it: {looked}");
    let body = json!({"accessor": accessor});
    let (_, looked) = server
        .vault(Method::POST, "/v1/auth/token/lookup-accessor", &root, body)
        .await;
    assert_eq!(looked["data"]["policies"], json!(["app"]));

    // A role grants what its policies do, as long as it has them.
    let other = client
        .policy(&boss, "other", "key \"other\" { policy = \"read\" }")
        .await;
    let role = json!({"Name": "reader", "Policies": [{"Name": "other"}]});
    let role = text(&client.put("/v1/acl/role", &boss, role).await["ID"]);
    let (reader, its_accessor) = client
        .token(
            &boss,
            json!({"Roles": [{"Name": "reader"}], "ServiceIdentities": [{"ServiceName": "api"}]}),
        )
        .await;
    client.get("/v1/kv/other", &reader).await;
    let listed = client.get("/v1/acl/tokens?servicename=api", &boss).await;
    assert_eq!(names(&listed, |it| &it["AccessorID"]), [its_accessor]);
    client
        .put(
            &format!("/v1/acl/role/{role}"),
            &boss,
            json!({"Name": "reader"}),
        )
        .await;
    client
        .no(get.clone(), "/v1/kv/other", &reader, Value::Null)
        .await;
    client
        .put(
            &format!("/v1/acl/role/{role}"),
            &boss,
            json!({"Name": "reads", "Policies": [{"ID": other}]}),
        )
        .await;
    client.get("/v1/kv/other", &reader).await;
    client
        .ok(
            delete.clone(),
            &format!("/v1/acl/role/{role}"),
            &boss,
            Value::Null,
        )
        .await;
    client
        .no(get.clone(), "/v1/kv/other", &reader, Value::Null)
        .await;

    // What a token grants may change while it lives.
    let path = format!("/v1/acl/token/{accessor}");
    client
        .put(&path, &boss, json!({"Policies": [{"Name": "other"}]}))
        .await;
    client.get("/v1/kv/other", &app).await;
    client
        .no(get.clone(), "/v1/kv/app/x", &app, Value::Null)
        .await;
    let copy = client
        .put(
            &format!("{path}/clone"),
            &boss,
            json!({"Description": "copy"}),
        )
        .await;
    client.get("/v1/kv/other", &text(&copy["SecretID"])).await;
    client.ok(delete.clone(), &path, &boss, Value::Null).await;
    let gone = client
        .no(get.clone(), "/v1/kv/other", &app, Value::Null)
        .await;
    assert_eq!(gone, (403, "ACL not found".into()));

    // One whose time comes.
    let (short, _) = client
        .token(
            &boss,
            json!({"ExpirationTTL": "2s", "Policies": [{"Name": "other"}]}),
        )
        .await;
    client.get("/v1/kv/other", &short).await;
    let deadline = Instant::now() + PATIENCE;
    while client
        .ask(get.clone(), "/v1/kv/other", &short, Value::Null)
        .await
        .0
        == 200
    {
        assert!(Instant::now() < deadline, "it does not expire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Those without a token have what the anonymous one has.
    client
        .no(get.clone(), "/v1/kv/other", "", Value::Null)
        .await;
    let path = format!("/v1/acl/token/{ANONYMOUS}");
    client
        .put(&path, &boss, json!({"Policies": [{"Name": "other"}]}))
        .await;
    client.get("/v1/kv/other", "").await;
    client.no(put.clone(), "/v1/kv/other", "", json!(1)).await;
    client.no(delete.clone(), &path, &boss, Value::Null).await;

    // Every right to Consul's resources is not one to secrets: nor can it make itself one.
    let (status, _) = server
        .vault(get.clone(), "/v1/sys/policies/acl", &boss, Value::Null)
        .await;
    assert_eq!(status, 403);
    let all = json!({"Name": "all", "Rules": "path \"*\" { capabilities = [\"read\"] }"});
    let (status, words) = client
        .no(put.clone(), "/v1/acl/policy", &boss, all.clone())
        .await;
    assert!(
        status == 403 && words.contains("sys/policies/acl/all"),
        "{words}"
    );
    client.put("/v1/acl/policy", &root, all).await;
    for spec in [
        json!({"Policies": [{"Name": "all"}]}),
        json!({"SecretID": "11111111-2222-3333-4444-555555555555"}),
    ] {
        let (status, words) = client
            .no(put.clone(), "/v1/acl/token", &boss, spec.clone())
            .await;
        assert!(
            status == 403 && words.contains("auth/token/create"),
            "{words}"
        );
        client.token(&root, spec).await;
    }
    let chosen = client
        .get("/v1/acl/token/self", "11111111-2222-3333-4444-555555555555")
        .await;
    assert_eq!(chosen["Policies"], Value::Null);
    server.stop();
}

/// What an agent that joined shows to whom.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_asks_for_rights_and_goes_on_while_the_server_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let command = host.agent("a1", &host.new_token("token", "1h"));
    let file = dir.path().join("a1.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap() + ACL).unwrap();
    let _agent = Agent::spawn(command);
    let client = Client::at(&format!(
        "unix://{}",
        dir.path().join("a1/mesh.sock").display()
    ));
    let (get, put) = (Method::GET, Method::PUT);

    let deadline = Instant::now() + PATIENCE;
    while client
        .ask(get.clone(), "/v1/acl/policies", &host.root, Value::Null)
        .await
        .0
        != 200
    {
        assert!(Instant::now() < deadline, "the agent has no server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Whoever is first must be on the server's own machine, and ask it there.
    let (status, words) = client
        .no(put.clone(), "/v1/acl/bootstrap", "", Value::Null)
        .await;
    assert!(status == 403 && words.contains("of a server"), "{words}");
    let root = &host.root;
    client
        .policy(
            root,
            "web",
            "service \"web\" { policy = \"write\" }\nnode_prefix \"\" { policy = \"read\" }",
        )
        .await;
    client
        .policy(
            root,
            "look",
            "service_prefix \"\" { policy = \"read\" }\nnode_prefix \"\" { policy = \"read\" }",
        )
        .await;
    client.policy(root, "blind", "service_prefix \"\" { policy = \"read\" }\nservice \"web\" { policy = \"deny\" }\nnode_prefix \"\" { policy = \"read\" }").await;
    let token = async |policy: &str| {
        client
            .token(root, json!({"Policies": [{"Name": policy}]}))
            .await
    };
    let (web, look, blind) = (
        token("web").await,
        token("look").await,
        token("blind").await,
    );

    let service = json!({"Name": "web", "Port": 80, "Check": {"TTL": "1h", "Status": "passing"}});
    let register = "/v1/agent/service/register";
    let (status, words) = client
        .no(put.clone(), register, &look.0, service.clone())
        .await;
    let wanted = format!(
        "Permission denied: token with AccessorID '{}' lacks permission 'service:write' on \"web\"",
        look.1
    );
    assert_eq!((status, words), (403, wanted));
    let (status, words) = client.no(put.clone(), register, "", service.clone()).await;
    assert!(
        status == 403 && words.contains("anonymous token lacks permission 'service:write'"),
        "{words}"
    );
    let unknown = client
        .no(put.clone(), register, "nobody", service.clone())
        .await;
    assert_eq!(unknown, (403, "ACL not found".into()));
    client.put(register, &web.0, service).await;
    client
        .no(
            put.clone(),
            "/v1/agent/check/fail/service:web",
            &look.0,
            Value::Null,
        )
        .await;
    client
        .put("/v1/agent/check/pass/service:web", &web.0, Value::Null)
        .await;
    client
        .no(
            put.clone(),
            "/v1/agent/service/deregister/web",
            &look.0,
            Value::Null,
        )
        .await;
    client
        .no(
            put.clone(),
            "/v1/agent/maintenance?enable=true",
            &web.0,
            Value::Null,
        )
        .await;
    client
        .no(get.clone(), "/v1/agent/self", &web.0, Value::Null)
        .await;

    // What nobody has thought of yet is closed.
    let (status, words) = client
        .no(get.clone(), "/v1/agent/new-thing", &web.0, Value::Null)
        .await;
    assert!(
        status == 403 && words.contains("'operator:read'"),
        "{words}"
    );

    // Who may see it does; the others are told that something is missing.
    let paths = [
        "/v1/health/service/web",
        "/v1/catalog/service/web",
        "/v1/health/checks/web",
        "/v1/agent/services",
        "/v1/agent/checks",
    ];
    for path in paths {
        let seen = client.full(get.clone(), path, &look.0, Value::Null).await;
        assert!(seen.body.contains("web"), "{path}: {}", seen.body);
        assert!(
            !seen
                .headers
                .contains_key("x-consul-results-filtered-by-acls"),
            "{path}"
        );
        assert_eq!(seen.headers["x-consul-default-acl-policy"], "deny");
        let hidden = client.full(get.clone(), path, &blind.0, Value::Null).await;
        assert!(!hidden.body.contains("web"), "{path}: {}", hidden.body);
        assert_eq!(
            hidden.headers["x-consul-results-filtered-by-acls"], "true",
            "{path}"
        );
        let nobody = client.full(get.clone(), path, "", Value::Null).await;
        assert!(!nobody.body.contains("web"), "{path}: {}", nobody.body);
        assert!(
            !nobody
                .headers
                .contains_key("x-consul-results-filtered-by-acls"),
            "{path}"
        );
    }
    let all = client.get("/v1/catalog/services", &blind.0).await;
    assert!(all.get("web").is_none(), "{all}");
    let nodes = client.get("/v1/catalog/nodes", &look.0).await;
    assert_eq!(names(&nodes, |it| &it["Node"]), ["a1", "s1"]);
    assert_eq!(client.get("/v1/catalog/nodes", "").await, json!([]));

    // The server is away: what was last heard counts, and what was not is not made up.
    server.stop();
    let seen = client.get("/v1/health/service/web", &look.0).await;
    assert_eq!(seen.as_array().map(Vec::len), Some(1));
    let (status, _) = client
        .no(
            put.clone(),
            "/v1/agent/service/deregister/web",
            &look.0,
            Value::Null,
        )
        .await;
    assert_eq!(status, 403);
    let (status, words) = client
        .no(get, "/v1/health/service/web", "never-seen", Value::Null)
        .await;
    assert!(
        status == 500 && words.contains("No cluster leader"),
        "{words}"
    );
    client
        .put("/v1/agent/service/deregister/web", &web.0, Value::Null)
        .await;
}
