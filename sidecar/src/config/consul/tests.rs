use std::{fs, path::Path, time::Duration};

use libmesh::model::Health;
use proptest::prelude::*;
use vault_kv::hcl;

use super::*;
use crate::config::{Config, ExecChecks, OnTerm, Sources, TlsVersion};

/// Loads files of Consul's, and TOML over them. The directory's name is not in what is returned.
fn load(consul: &[(&str, &str)], toml: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, ours) = (dir.path().join("consul.d"), dir.path().join("mesh.toml"));
    fs::create_dir(&theirs).unwrap();
    for (name, text) in consul {
        fs::write(theirs.join(name), text).unwrap();
    }
    fs::write(&ours, toml).unwrap();
    let sources = Sources::new(&[ours]).over_consul(std::slice::from_ref(&theirs));
    let prefix = format!("{}/", theirs.display());
    Config::load(&sources).map_err(|errors| errors.to_string().replace(&prefix, ""))
}

fn loaded(consul: &[(&str, &str)], toml: &str) -> Config {
    load(consul, toml).unwrap_or_else(|errors| panic!("{errors}"))
}

const AGENT: &str = r#"
datacenter = "East"
node_name = "Web-1"
node_meta { "instance_type" = "m1", rack = "r7" }
locality = { region = "eu" zone = "a" }
data_dir = "/opt/consul"
bind_addr = "127.0.0.1"
advertise_addr = "10.0.0.7"
client_addr = "127.0.0.1 10.0.0.7"
addresses { dns = "0.0.0.0", http = "unix:///run/consul.sock 127.0.0.1" }
unix_sockets { mode = "0660" group = "0" }
ports { https = 8501 dns = -1 serf_lan = 7301 server = 8300 grpc = 8502 }
retry_join = ["10.0.0.1", "10.0.0.2:7301"]
encrypt = "the gossip key"
tls {
  defaults { ca_file = "/etc/ca.pem" cert_file = "/etc/c.pem" verify_incoming = true verify_outgoing = true }
  https { key_file = "/etc/k.pem" tls_min_version = "TLSv1_3" }
  internal_rpc { verify_server_hostname = true }
}
domain = "example."
recursors = ["9.9.9.9"]
dns_config {
  allow_stale = true
  node_ttl = "1m30s"
  service_ttl { "*" = "0s", web = "1.5s" }
  only_passing = true
  udp_answer_limit = 3
  a_record_limit = 0
  recursor_timeout = "5s"
  recursor_strategy = "random"
  soa { min_ttl = 7 }
}
limits { http_max_conns_per_client = 17 rpc_rate = 100.5 }
log_level = "ERR"
enable_local_script_checks = true
leave_on_terminate = false
telemetry { prometheus_retention_time = "1h" "disable_compat_1.9" = true }
connect { enabled = true }
acl { enabled = true token_ttl = "1m30s" tokens { agent = "a secret" } }
"#;

#[test]
fn an_agent_is_taken_over() {
    let config = loaded(&[("agent.hcl", AGENT)], "");
    let node = &config.node;
    assert_eq!(
        (node.name.as_str(), node.datacenter.as_str()),
        ("web-1", "east")
    );
    assert_eq!(node.data_dir, Path::new("/opt/consul"));
    assert_eq!(node.advertise.to_string(), "10.0.0.7");
    let meta: Vec<_> = node.meta.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(meta, ["instance_type=m1", "rack=r7", "region=eu", "zone=a"]);
    assert_eq!(node.on_term, OnTerm::Restart);
    assert_eq!(config.join.seeds, ["10.0.0.1:8301", "10.0.0.2:7301"]);
    let ports = &config.ports;
    assert_eq!(
        (ports.gossip, ports.http, ports.https),
        (7301, Some(8500), Some(8501))
    );
    assert_eq!(ports.dns, None);
    let shown = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let addresses = &config.addresses;
    assert_eq!(shown(&addresses.http), ["127.0.0.1"]);
    assert_eq!(shown(&addresses.https), ["127.0.0.1", "10.0.0.7"]);
    assert_eq!(shown(&addresses.dns), ["0.0.0.0"]);
    assert_eq!(addresses.socket, Path::new("/run/consul.sock"));
    assert_eq!(
        (addresses.socket_file.mode, addresses.socket_file.group),
        (0o660, Some(0))
    );
    let tls = config.tls.unwrap();
    assert_eq!(tls.cert_file, Path::new("/etc/c.pem"));
    assert_eq!(tls.key_file, Path::new("/etc/k.pem"));
    assert_eq!(
        tls.client_ca_file.as_deref(),
        Some(Path::new("/etc/ca.pem"))
    );
    assert_eq!(tls.min_version, TlsVersion::V13);
    let dns = &config.dns;
    let domains: Vec<_> = dns.domains.iter().map(ToString::to_string).collect();
    assert_eq!(domains, ["example.", "mesh."]);
    assert_eq!(dns.ttl.node, Duration::from_secs(90));
    assert_eq!(dns.ttl.negative, Duration::from_secs(7));
    assert_eq!(dns.ttl.service.of("web"), Duration::from_millis(1500));
    assert_eq!(dns.ttl.service.of("other"), Duration::ZERO);
    assert_eq!(dns.udp_answer_limit.map(|limit| limit.get()), Some(3));
    assert_eq!(dns.max_addresses, None);
    assert_eq!(dns.recursor_timeout, Duration::from_secs(5));
    assert!(dns.only_passing);
    let most = config.limits.http_max_conns_per_client.unwrap();
    assert_eq!(most.get(), 17);
    assert_eq!(config.log.level, tracing::Level::ERROR);
    assert_eq!(config.health.exec_checks, ExecChecks::Config);
    assert!(config.acl.enabled && !config.acl.default_allow);
    assert_eq!(config.acl.token_ttl, Duration::from_secs(90));
    assert_eq!(
        config.consul.meaningless,
        [
            "acl.tokens",
            "connect",
            "dns_config.allow_stale",
            "dns_config.recursor_strategy",
            "encrypt",
            "limits.rpc_rate",
            "ports.grpc",
            "ports.server",
            "telemetry",
            "tls.defaults.verify_outgoing",
            "tls.internal_rpc",
        ]
    );
}

#[test]
fn our_own_files_win_and_consuls_are_merged_as_consul_does() {
    let files = [
        (
            "10.json",
            r#"{"node_name": "a", "retry_join": ["10.0.0.1"], "ports": {"http": 1, "dns": 2},
          "service": {"name": "one", "port": 1}, "enable_script_checks": true}"#,
        ),
        (
            "20.hcl",
            "node_name = \"b\" retry_join = [\"10.0.0.2\"] ports { dns = 3 } service { name = \"two\" port = 2 }",
        ),
        ("30.json", ""),
        ("README.md", "no configuration"),
    ];
    let config = loaded(&files, "");
    assert_eq!(config.node.name.as_str(), "b");
    assert_eq!(config.join.seeds, ["10.0.0.1:8301", "10.0.0.2:8301"]);
    assert_eq!((config.ports.http, config.ports.dns), (Some(1), Some(3)));
    let ids: Vec<_> = config.consul.services.iter().map(|it| &*it.id).collect();
    assert_eq!(ids, ["one", "two"]);
    assert_eq!(config.health.exec_checks, ExecChecks::Api);

    let ours = "[node]\nname = \"c\"\n[join]\nseeds = []\n[ports]\nhttp = 0\n[health]\nexec_checks = \"off\"\n";
    let config = loaded(&files, ours);
    assert_eq!(config.node.name.as_str(), "c");
    assert!(config.join.seeds.is_empty());
    assert_eq!((config.ports.http, config.ports.dns), (Some(0), Some(3)));
    assert_eq!(config.health.exec_checks, ExecChecks::Off);
}

#[test]
fn definitions_of_every_kind_are_read_as_registrations() {
    let text = r#"{
      "services": [
        {"id": "web-1", "name": "web", "tags": ["a", "b"], "address": "10.1.2.3", "port": 80, "token": "secret",
         "meta": {"version": "2"}, "enableTagOverride": true, "weights": {"passing": 5, "warning": 2},
         "tagged_addresses": {"lan": {"address": "10.1.2.3", "port": 81}},
         "checks": [
           {"http": "https://localhost:80/health", "method": "POST", "header": {"X-A": ["1", "2"]}, "body": "x",
            "interval": "10s", "timeout": "1s", "tls_skip_verify": true, "disable_redirects": true,
            "deregister_critical_service_after": "90m", "success_before_passing": 2},
           {"tcp": "localhost:80", "interval": "1s", "failures_before_critical": 3},
           {"udp": "localhost:80", "interval": "1s"},
           {"grpc": "localhost:80/web", "grpc_use_tls": true, "interval": "1s"},
           {"h2ping": "localhost:80", "interval": "1s"},
           {"args": ["/bin/true"], "interval": "1s"},
           {"ttl": "30s", "status": "passing", "notes": "n"}
         ],
         "connect": {"native": true, "sidecar_service": {"proxy": {"upstreams": [{"destination_name": "db"}]}}}},
        {"name": "db", "check": {"alias_service": "web-1"}}
      ],
      "check": {"id": "mem", "name": "memory", "args": ["/bin/true"], "interval": "5s", "service_id": "web-1"},
      "checks": [{"name": "node alias", "alias_node": "n2"}]
    }"#;
    let config = loaded(&[("a.json", text)], "[health]\nexec_checks = \"config\"\n");
    assert_eq!(
        config.consul.meaningless,
        ["services.connect.sidecar_service", "services.token"]
    );
    let exec = config.health.exec_checks;
    let (web, checks) = config.consul.services[0].service(exec).unwrap();
    assert_eq!(
        (web.id.as_str(), web.service.as_str(), web.port),
        ("web-1", "web", 80)
    );
    assert!(web.enable_tag_override);
    assert_eq!(web.mesh_port, Some(80), "it is native");
    assert_eq!((web.weights.passing, web.weights.warning), (5, 2));
    assert_eq!(
        (&*web.tagged_addresses[0].tag, web.tagged_addresses[0].port),
        ("lan", 81)
    );
    assert_eq!(checks.len(), 7);
    assert_eq!(&*checks[6].id, "service:web-1:7");
    assert_eq!(checks[6].initial, Some(Health::Passing));
    assert_eq!(checks[0].deregister_after, Some(Duration::from_secs(5400)));
    let (check, of) = config.consul.checks[0].check(exec).unwrap();
    assert_eq!((&*check.id, of.unwrap().as_str()), ("mem", "web-1"));
    assert_eq!(config.consul.checks[1].id, "node alias");
    // The same in HCL.
    let hcl = "services { id = \"web-1\" name = \"web\" check { tcp = \"localhost:1\" interval = \"1s\" } }\n\
        services { name = \"db\" meta = { a = \"b\" } checks = [{ ttl = \"1s\" }, { alias_service = \"web-1\" }] }";
    assert_eq!(loaded(&[("a.hcl", hcl)], "").consul.services.len(), 2);
}

#[test]
fn everything_wrong_is_named_at_once_and_no_secret_is_shown() {
    let wrong = r#"{
      "nodename": "A",
      "node_nam": "x",
      "ports": {"http": "8500", "htp": 1, "dns": 70000},
      "bind_addr": "{{ GetPrivateIP }}",
      "retry_join": ["provider=aws secret_access_key=hidden"],
      "encrypt": 7,
      "acl": {"tokens": {"agent": ["hidden"], "agnt": "hidden"}},
      "http_config": {"block_endpoints": ["/v1/acl"], "allow_write_http_from": []},
      "telemetry": {"statsd": "x"},
      "tls": {"https": {"tls_min_version": "9"}},
      "service": {"name": "web", "prot": 1, "token": 5, "checks": [{"http": "x", "intervall": "1s"}]},
      "services": [
        {"name": "a b", "check": {"http": "http://u:hidden@x y/", "interval": "1s"}},
        {"name": "ok", "checks": [{"tcp": "localhost:1"}, {"ttl": "1s"}, {"args": ["x"], "interval": "1s"}]},
        {"name": "ok"},
        {"port": 1},
        {"name": "p", "proxy": {"upstreams": [{"destination_name": "hidden"}]}},
        7
      ],
      "checks": [{"name": "c", "docker_container_id": "x", "interval": "1s", "args": ["x"]}]
    }"#;
    let found = load(
        &[
            ("a.json", wrong),
            ("b.hcl", "a = {\n  b = \"hidden\n"),
            ("c.json", "{\"encrypt\": \"hidden\" 1}"),
        ],
        "[[service]]\nname = \"ok\"\n",
    )
    .unwrap_err();
    assert!(!found.contains("hidden"), "{found}");
    for line in [
        "a.json: node_nam: unknown key; did you mean `node_name`?",
        "a.json: ports.http: must be a whole number, this is another string",
        "a.json: ports.htp: unknown key; did you mean `http`?",
        "a.json: ports.dns: `ports.dns` must be a whole number from 0 to 65535, this is 70000",
        "a.json: bind_addr: is a template; write the address",
        "a.json: retry_join[0]: finding nodes through a cloud's API is not built; write addresses",
        "a.json: encrypt: must be a string, this is a number",
        "a.json: acl.tokens.agent: must be a string, this is a list",
        "a.json: acl.tokens.agnt: unknown key; did you mean `agent`?",
        "a.json: http_config.block_endpoints: is refused: endpoints cannot be closed here, and would be open",
        "a.json: telemetry.statsd: unknown key",
        "a.json: service.prot: unknown key; did you mean `port`?",
        "a.json: service.token: must be a string, this is a number",
        "a.json: service.checks[0].intervall: unknown key; did you mean `interval`?",
        "a.json: services[0]: Invalid service",
        "a.json: services[0]: check: Invalid check: http",
        "a.json: services[1]: checks[0]: Invalid check: Interval must be > 0",
        "a.json: services[1]: checks[2]: Invalid check: Scripts are disabled on this agent",
        "a.json: services[2]: the id \"ok\" is already used at a.json: services[1]",
        "a.json: services[3]: needs a `name`",
        "a.json: services[4]: Upstreams is not supported",
        "a.json: services[5]: must be a table, this is a number",
        "a.json: checks[0]: DockerContainerID is not supported",
        "b.hcl: line 2, column 14: a string ends with its line",
        "c.json: line 1, column 22: not valid JSON",
        "service id \"ok\" is already used at a.json: services[1]",
    ] {
        assert!(found.contains(line), "no {line:?} in\n{found}");
    }
    assert!(!found.contains("services[1]: checks[1]"), "{found}");
    assert!(!found.contains("a.json: service: "), "said twice: {found}");
}

#[test]
fn what_would_be_less_safe_than_it_was_is_refused() {
    let https =
        r#"{"ports": {"https": 1}, "cert_file": "c", "key_file": "k", "verify_incoming": true"#;
    let found = load(&[("a.json", &format!("{https}}}"))], "").unwrap_err();
    assert_eq!(found, "a.json: verify_incoming: needs a `ca_file`");
    let found = load(&[("a.json", &format!("{https}, \"ca_path\": \"d\"}}"))], "").unwrap_err();
    assert_eq!(
        found,
        "a.json: ca_path: clients are checked against one file; write `ca_file`"
    );
    let found = load(&[("a.json", r#"{"ports": {"https": 1}}"#)], "").unwrap_err();
    assert!(found.contains("needs [tls]"), "{found}");
    // Without the port, certificates are for what the mesh does with its own.
    let text = r#"{"cert_file": "c", "key_file": "k", "verify_incoming": true, "ca_path": "d"}"#;
    let config = loaded(&[("a.json", text)], "");
    assert_eq!(config.tls, None);
    assert_eq!(config.consul.meaningless, ["tls (there is no ports.https)"]);
    let found = load(&[("a.yaml", ""), ("b.json", "[1]")], "").unwrap_err();
    assert_eq!(found, "b.json: must be one JSON object");
    let found = load(
        &[(
            "a.json",
            r#"{"addresses": {"https": "unix:///x", "dns": "unix:///y"}}"#,
        )],
        "",
    );
    assert_eq!(
        found.unwrap_err(),
        "a.json: addresses.dns: a Unix socket is served for `http` only\n\
         a.json: addresses.https: a Unix socket is served for `http` only"
    );
}

/// Reads a text as a file of that name; how much is wrong with it.
fn problems(name: &str, text: &str) -> usize {
    let mut problems = Vec::new();
    let (mut found, mut document) = (schema::Found::default(), Table::default());
    match source::parse(Path::new(name), text) {
        Ok(fields) => found.document(name, fields, &mut document, &mut problems),
        Err(_) => return 1,
    }
    translate::sections(document, &mut found.meaningless, &mut problems);
    let read = definitions::sort(found.definitions, &mut problems);
    read.check(ExecChecks::Api, &mut problems);
    problems.len()
}

proptest! {
    #[test]
    fn whatever_a_file_holds_is_read_or_refused(text in any::<String>(), words in pieces()) {
        for name in ["a.json", "a.hcl"] {
            problems(name, &text);
            problems(name, &words);
        }
        // Any value under any key that is taken is understood or named.
        problems("a.json", &format!("{{{words}}}"));
    }

    #[test]
    fn what_is_written_as_json_reads_the_same_as_hcl(fields in fields()) {
        let text = serde_json::to_string(&fields).unwrap();
        let inside = &text[1..text.len() - 1];
        prop_assert_eq!(hcl::parse(inside).unwrap(), fields);
    }
}

/// Pieces of configuration in any order.
fn pieces() -> impl Strategy<Value = String> {
    let words = [
        "service",
        "services",
        "check",
        "checks",
        "ports",
        "addresses",
        "tls",
        "dns_config",
        "retry_join",
        "bind_addr",
        "\"name\"",
        "\"web\"",
        "\"interval\"",
        "\"1s\"",
        "\"unix://\"",
        "\"{{ x }}\"",
        "\"${\"",
        "\"provider=\"",
        "http",
        "proxy",
        "{",
        "}",
        "[",
        "]",
        "=",
        ":",
        ",",
        "\n",
        " ",
        "-1",
        "8500",
        "1.5",
        "true",
        "null",
        "<<E\n",
        "E\n",
        "#",
        "/*",
        "*/",
        "é",
        "\\",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..40)
        .prop_map(|words| words.concat())
}

fn fields() -> impl Strategy<Value = serde_json::Map<String, serde_json::Value>> {
    use serde_json::Value;
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i64>()
            .prop_filter("hexadecimal has no such", |n| *n != i64::MIN)
            .prop_map(Value::from),
        "[ -~é]{0,12}"
            .prop_filter("a template is text in HCL", |text| !text.contains("${"))
            .prop_map(Value::String),
    ];
    let value = leaf.prop_recursive(4, 32, 4, |inner| {
        let list = proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array);
        let table = proptest::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()));
        prop_oneof![list, table]
    });
    proptest::collection::btree_map("[a-z_]{1,8}", value, 0..6)
        .prop_map(|fields| fields.into_iter().collect())
}

#[test]
fn the_manual_has_every_key() {
    let manual = include_str!("../../../../docs/consul.md");
    let words: Vec<&str> = manual.split('`').skip(1).step_by(2).collect();
    // `a.{b,c}` stands for both, `x_*` and `*_x` for all such.
    let spelled = words.iter().flat_map(|word| match word.split_once('{') {
        Some((before, rest)) => {
            let (inside, after) = rest.split_once('}').unwrap_or((rest, ""));
            inside
                .split(',')
                .map(|one| format!("{before}{one}{after}"))
                .collect()
        }
        None => vec![(*word).to_owned()],
    });
    let spelled: Vec<String> = spelled.collect();
    let has = |path: &str| {
        spelled.iter().any(|word| match word.split_once('*') {
            Some((before, after)) => {
                path.starts_with(before) && path.ends_with(after) && path.len() > 1
            }
            None => word == path,
        })
    };
    let mut missing = Vec::new();
    for key in keys::TOP {
        let inside = match key.shape {
            schema::Shape::Table(keys) if matches!(key.becomes, schema::Becomes::Taken) => keys,
            _ => &[],
        };
        if !has(key.name) && inside.is_empty() {
            missing.push(key.name.to_owned());
        }
        for inner in inside {
            let path = format!("{}.{}", key.name, inner.name);
            let deeper = spelled
                .iter()
                .any(|word| word.starts_with(&format!("{path}.")));
            if !has(key.name) && !has(&path) && !deeper {
                missing.push(path);
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/consul.md says nothing of {missing:?}"
    );
}
