use std::{fs, path::Path};

use libmesh::{health::Thresholds, model::Health};

use super::*;
use crate::checks::CheckKind;

fn load(files: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let result = Config::load(&Sources::new(&[dir.path().to_owned()]));
    // Messages without the temporary directory's name.
    result.map_err(|errors| {
        let prefix = format!("{}/", dir.path().display());
        let strip = |problem: Problem| Problem {
            place: Place::named(&problem.place.to_string().replace(&prefix, "")),
            message: problem.message.replace(&prefix, ""),
        };
        ConfigErrors(errors.0.into_iter().map(strip).collect())
    })
}

fn errors(files: &[(&str, &str)]) -> String {
    load(files).unwrap_err().to_string()
}

#[test]
fn defaults_need_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::load(&Sources::new(&[dir.path().to_owned()])).unwrap();
    assert_eq!(config.ports.http, Some(8500));
    assert_eq!(config.ports.https, None);
    assert_eq!(config.node.datacenter.as_str(), "dc1");
    assert_eq!(config.server.service_cert_ttl, Duration::from_secs(86_400));
    assert_eq!(
        config.server.history_retention,
        30 * Duration::from_secs(86_400)
    );
    assert!(!config.intentions.default_allow);
    assert!(!config.acl.enabled && !config.acl.default_allow);
    assert_eq!(
        config.addresses.socket,
        Path::new("/var/lib/mesh/mesh.sock")
    );
}

#[test]
fn documented_example_is_read() {
    let manual = include_str!("../../../docs/config.md");
    let blocks: Vec<&str> = manual
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty());
    for block in &blocks {
        load(&[("example.toml", block)]).unwrap_or_else(|errors| panic!("{errors}"));
    }
    let config = load(&[("example.toml", blocks[0])]).unwrap();
    // Every section occurs in the first block, with something in it.
    assert_eq!(config.node.name.as_str(), "web-1");
    assert_eq!(
        config.join.seeds,
        ["10.0.0.2:8301", "seed.example.net:8301"]
    );
    assert_eq!(config.ports.https, Some(8501));
    assert_eq!(
        config.dns.recursors,
        ::dns::Upstreams::List(vec!["9.9.9.9:53".parse().unwrap()])
    );
    assert!(matches!(config.server.seal, Seal::Static { .. }));
    let service = &config.services[0];
    assert_eq!(service.attach.uid, Some(0));
    assert_eq!(service.checks.len(), 3);
    assert!(matches!(service.checks[2].kind, CheckKind::Ttl(_)));
    assert_eq!(config.checks.len(), 1);
    assert_eq!(config.health.exec_checks, ExecChecks::Config);
    assert!(config.acl.enabled && config.acl.default_allow);
    assert_eq!(config.acl.token_ttl, Duration::from_secs(10));
}

#[test]
fn all_errors_at_once_with_place_and_nearest_key() {
    let text = "[node]\nnam = \"a\"\nbind = \"nowhere\"\n\n[ports]\nhttp = \"x\"\ndns = 70000\n\n\
        [dns]\nttl = 5\n\n[serivce]\n\n[[service]]\nname = \"web\"\ncolour = 1\n";
    let found = errors(&[("a.toml", text)]);
    let lines: Vec<&str> = found.lines().collect();
    for wanted in [
        "a.toml:2:1: unknown key `nam` in [node]; did you mean `name`?",
        "a.toml:3:8: `node.bind` must be an IP address; \"nowhere\": invalid IP address syntax",
        "a.toml:6:8: `ports.http` must be a whole number from 0 to 65535, this is a string",
        "a.toml:7:7: `ports.dns` must be a whole number from 0 to 65535, this is 70000",
        "a.toml:10:7: `dns.ttl` must be a duration such as \"10s\", this is a number",
        "a.toml:12:2: unknown key `serivce`; did you mean `service`?",
    ] {
        assert!(lines.contains(&wanted), "{wanted}\nis not in\n{found}");
    }
    assert!(found.contains("a.toml:16:1: unknown key `colour` in [service]; known keys: "));
    assert_eq!(lines.len(), 7, "{found}");
}

#[test]
fn durations_need_a_unit_and_a_length() {
    assert!(errors(&[("a.toml", "dns.ttl = \"5\"")]).contains("write \"5s\" for seconds"));
    assert!(errors(&[("a.toml", "dns.tcp_idle = \"0s\"")]).contains("longer than nothing"));
    assert_eq!(
        load(&[("a.toml", "dns.ttl = \"1m 30s\"")])
            .unwrap()
            .dns
            .ttl
            .service
            .of("web"),
        Duration::from_secs(90)
    );
}

#[test]
fn syntax_errors_have_their_place_and_do_not_hide_others() {
    let found = errors(&[("a.toml", "[node]\nname = \n"), ("b.toml", "[nodde]\n")]);
    assert!(found.contains("a.toml:2:"), "{found}");
    assert!(found.contains("b.toml:1:2: unknown key `nodde`; did you mean `node`?"));
}

#[test]
fn later_files_then_variables_then_flags_win_and_services_join() {
    let dir = tempfile::tempdir().unwrap();
    let first = "[node]\nname = \"one\"\ndata_dir = \"/a\"\n[[service]]\nname = \"web\"\n";
    let second = "[node]\nname = \"two\"\n[[service]]\nname = \"db\"\n";
    fs::write(dir.path().join("10.toml"), first).unwrap();
    fs::write(dir.path().join("20.toml"), second).unwrap();
    fs::write(dir.path().join("notes.txt"), "not read").unwrap();
    let sources = Sources::new(&[dir.path().to_owned()]);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.node.name.as_str(), "two");
    assert_eq!(config.node.data_dir, Path::new("/a"));
    assert_eq!(config.services.len(), 2);
    let var = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let sources = sources.with_env([
        var("MESH_NODE_NAME", "three"),
        var("MESH_PORTS_HTTP", "0"),
        var("MESH_PORTS_DNS", "false"),
        var("MESH_JOIN_SEEDS", "a, b:1"),
        var("MESH_HTTP_ADDR", "http://other"),
    ]);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.node.name.as_str(), "three");
    assert_eq!((config.ports.http, config.ports.dns), (Some(0), None));
    assert_eq!(config.join.seeds, ["a:8301", "b:1"]);
    let sources = sources.with_flag("--node-name", "node", "name", "four");
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.node.name.as_str(), "four");
    let sources = sources.with_env([var("MESH_NODE_NMAE", "x")]);
    let found = Config::load(&sources).unwrap_err().to_string();
    assert_eq!(
        found,
        "MESH_NODE_NMAE: unknown variable; did you mean MESH_NODE_NAME?"
    );
    let sources = sources
        .with_env([])
        .with_flag("--node-name", "node", "name", "a b");
    let found = Config::load(&sources).unwrap_err().to_string();
    assert!(found.starts_with("--node-name: `node.name`"), "{found}");
}

#[test]
fn services_checks_and_seals_are_checked() {
    let found = errors(&[(
        "a.toml",
        "[[service]]\nname = \"web\"\n[[service]]\nname = \"web\"\n\
         [[service.check]]\nhttp = \"http://x/\"\ntcp = \"x:1\"\n\
         [[service]]\nport = 1\n[server.seal]\ntype = \"static\"\n\
         [ports]\nhttps = 1\n",
    )]);
    assert!(found.contains("service id \"web\" is already used at a.toml:1:1"));
    assert!(found.contains("a check needs exactly one of"), "{found}");
    assert!(found.contains("a [[service]] needs a `name`"), "{found}");
    assert!(
        found.contains("`ports.https` is 1, which needs [tls]"),
        "{found}"
    );
    assert!(found.contains("a static seal needs `key_file`"), "{found}");
}

#[test]
fn a_missing_file_is_named() {
    let sources = Sources::new(&["/nonexistent/mesh.toml".into()]);
    let found = Config::load(&sources).unwrap_err().to_string();
    assert!(found.starts_with("/nonexistent/mesh.toml: cannot be read: "));
}

/// One `[[check]]` per block of lines; the first has an id of its own.
fn checks(lines: &str) -> Result<Vec<CheckConfig>, ConfigErrors> {
    let exec = "[health]\nexec_checks = \"config\"\n";
    let checks = lines.split("\n\n").enumerate();
    let checks: String = checks
        .map(|(at, lines)| format!("[[check]]\nid = \"c{at}\"\n{lines}\n"))
        .collect();
    load(&[("a.toml", &format!("{exec}{checks}"))]).map(|config| config.checks)
}

#[test]
fn every_kind_of_check_is_read_and_can_be_made() {
    let read = checks(
        "http = \"https://127.0.0.1/\"\nmethod = \"PUT\"\nheaders = { X-A = \"b\" }\nbody = \"x\"\n\
         follow_redirects = false\ntls_server_name = \"a.test\"\ntls_skip_verify = true\n\
         interval = \"20s\"\ntimeout = \"3s\"\noutput_max_size = 100\n\n\
         tcp = \"db:5432\"\ntls = true\n\n\
         udp = \"127.0.0.1:53\"\n\n\
         grpc = \"127.0.0.1:1/shop\"\ntls = true\ntls_skip_verify = true\n\n\
         h2ping = \"[::1]:1\"\n\n\
         exec = [\"/bin/true\", \"-x\"]\nsuccess_before_passing = 1\nfailures_before_warning = 2\n\
         failures_before_critical = 3\nsettle = \"1s\"\nflap_damping = false\n\n\
         systemd = \"nginx\"\nstatus = \"passing\"\nnotes = \"n\"\nname = \"proxy\"\n\n\
         ttl = \"30s\"\n\n\
         alias_service = \"web-1\"\nalias_node = \"n2\"\n\n\
         alias_node = \"n2\"",
    );
    let read = read.unwrap_or_else(|errors| panic!("{errors}"));
    let made: Vec<_> = read.iter().map(|check| check.make("c").unwrap()).collect();
    let kinds: Vec<_> = made.iter().map(|check| check.kind()).collect();
    let wanted = [
        "http", "tcp", "udp", "grpc", "h2ping", "script", "systemd", "ttl", "alias", "alias",
    ];
    assert_eq!(kinds, wanted);
    let CheckKind::Http(http) = &read[0].kind else {
        panic!("{:?}", read[0].kind);
    };
    assert_eq!(http.headers["X-A"], ["b"]);
    assert_eq!((http.follow_redirects, http.tls.skip_verify), (false, true));
    assert_eq!((made[0].output_max, made[1].output_max), (100, 4096));
    assert!(matches!(&read[1].kind, CheckKind::Tcp { tls: Some(tls), .. } if !tls.skip_verify));
    assert!(matches!(&read[4].kind, CheckKind::H2Ping { tls: None, .. }));
    let thresholds = Thresholds {
        success_before_passing: 1,
        failures_before_warning: Some(2),
        failures_before_critical: 3,
        settle: Duration::from_secs(1),
    };
    assert_eq!(made[5].thresholds, thresholds);
    assert_eq!(made[1].thresholds, Thresholds::default());
    assert_eq!((made[5].damping, made[1].damping), (false, true));
    let proxy = &made[6];
    assert_eq!(
        (&*proxy.name, &*proxy.notes, proxy.initial),
        ("proxy", "n", Some(Health::Passing))
    );
}

#[test]
fn wrong_checks_are_named_with_field_and_nearest_key() {
    for (lines, wanted) in [
        (
            "htpp = \"http://a/\"",
            "unknown key `htpp` in [check]; did you mean `http`?",
        ),
        (
            "tcp = \"a:1\"\nintervall = \"1s\"",
            "did you mean `interval`?",
        ),
        ("tcp = \"a\"", "`check.tcp`: \"a\" is not host:port"),
        (
            "http = \"ftp://a/\"",
            "`check.http`: not an http:// or https:// URL",
        ),
        (
            "http = \"http://a/\"\nmethod = \"A B\"",
            "`check.method`: \"A B\" is no method",
        ),
        (
            "tcp = \"a:1\"\nmethod = \"GET\"",
            "`method` is for checks with `http` only",
        ),
        (
            "ttl = \"1s\"\ninterval = \"1s\"",
            "`interval` is for checks with `http`, `tcp`",
        ),
        (
            "tcp = \"a:1\"\ninterval = \"1ms\"",
            "`check.interval`: must be at least 100 ms",
        ),
        ("exec = []", "`check.exec`: must begin with a program"),
        (
            "systemd = \"a b\"",
            "`check.systemd`: \"a b\" is no unit's name",
        ),
        (
            "tcp = \"a:1\"\nfailures_before_warning = 3\nfailures_before_critical = 2",
            "`failures_before_warning` can't be higher than `failures_before_critical`",
        ),
        (
            "tcp = \"a:1\"\nstatus = \"maintenance\"",
            "\"maintenance\": there is no such status",
        ),
        (
            "tcp = \"a:1\"\ntls = true\ntls_ca_file = \"/nonexistent\"",
            "`check.tls_ca_file`: /nonexistent: ",
        ),
        (
            "tcp = \"a:1\"\ntls = 1",
            "`check.tls` must be true or false, this is a number",
        ),
        (
            "alias_service = \"a\"\ntcp = \"a:1\"",
            "a check needs exactly one of",
        ),
        (
            "tcp = \"a:1\"\nderegister_critical_service_after = \"2m\"",
            "is for checks of services only",
        ),
    ] {
        let found = checks(lines).unwrap_err().to_string();
        assert!(found.contains(wanted), "{wanted}\nis not in\n{found}");
    }
    let found = errors(&[("a.toml", "[[check]]\ntcp = \"a:1\"\n")]);
    assert!(found.contains("a [[check]] needs an `id`"), "{found}");
    let twice = "[[check]]\nid = \"c\"\ntcp = \"a:1\"\n".repeat(2);
    assert!(errors(&[("a.toml", &twice)]).contains("check id \"c\" is used twice"));
    let exec = "[[service]]\nname = \"web\"\n[[service.check]]\nexec = [\"/bin/true\"]\n";
    let found = errors(&[("a.toml", exec)]);
    assert!(
        found.contains("set `health.exec_checks` to \"config\""),
        "{found}"
    );
    let found = errors(&[("a.toml", "health.exec_checks = \"yes\"")]);
    assert!(
        found.contains("must be \"off\", \"config\" or \"api\""),
        "{found}"
    );
}

#[test]
fn what_dns_is_told() {
    let text = "[dns]\ndomains = [\"Mesh.\", \"svc.example\"]\nrecursors = [\"system\"]\nttl = \"0s\"\n\
        service_ttl = { web = \"30s\", \"db*\" = \"10s\" }\nnegative_ttl = \"2s\"\nmax_addresses = 8\nthreads = 2\n\
        only_passing = true\nnear_first = false\nrate_limit = 50\nrate_limit_private = true\n\
        forward = { \"corp.example\" = \"10.0.0.53, 10.0.1.53:5353\" }\n";
    let dns = load(&[("a.toml", text)]).unwrap().dns;
    let shown: Vec<_> = dns.domains.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["mesh.", "svc.example."]);
    assert_eq!(dns.recursors, ::dns::Upstreams::System);
    let ttl = |service| dns.ttl.service.of(service).as_secs();
    assert_eq!((ttl("web"), ttl("db-1"), ttl("other")), (30, 10, 0));
    assert_eq!((dns.ttl.node.as_secs(), dns.ttl.negative.as_secs()), (0, 2));
    let (zone, servers) = &dns.forward[0];
    assert_eq!(zone.to_string(), "corp.example.");
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.53:53", "10.0.1.53:5353"]);
    assert!(matches!(dns.rate_limit, ::dns::RateLimit::All(rate) if rate.get() == 50));

    // What the server is told: its own name server where it can be reached.
    let server = |listen: &str, like_consul| {
        let listen = listen.parse().unwrap();
        dns.server(vec![listen], [10, 0, 0, 9].into(), like_consul)
    };
    assert!(server("127.0.0.1:53", false).nameservers.is_empty());
    assert_eq!(
        server("0.0.0.0:53", false).nameservers,
        [IpAddr::from([10, 0, 0, 9])]
    );
    assert_eq!(
        server("10.0.0.3:53", false).nameservers,
        [IpAddr::from([10, 0, 0, 3])]
    );
    assert_eq!(server("127.0.0.1:53", true).udp_payload, 4096);

    for (bad, reason) in [
        ("domains = [\"a..b\"]", "items of `dns.domains`"),
        ("domains = []", "at least one domain"),
        (
            "recursors = [\"system\", \"9.9.9.9\"]",
            "either \"system\" alone",
        ),
        ("recursors = [\"nine\"]", "items of `dns.recursors`"),
        (
            "forward = { \"a..b\" = \"10.0.0.53\" }",
            "`dns.forward`: `a..b` is not a domain name",
        ),
        (
            "forward = { corp = \"ten\" }",
            "`dns.forward.\"corp\"` must be addresses",
        ),
        ("service_ttl = { web = \"5\" }", "write \"5s\" for seconds"),
        ("udp_payload = 100", "a whole number from 512 to 4096"),
        ("threads = 0", "a whole number from 1 to 64"),
    ] {
        let found = errors(&[("a.toml", &format!("[dns]\n{bad}\n"))]);
        assert!(found.contains(reason), "{bad}: {found}");
    }
    let found = errors(&[("a.toml", "[dns]\ntreads = 2\n")]);
    assert!(found.contains("did you mean `threads`?"), "{found}");
}
