//! The command line as scripts see it: exit codes, what is on stdout and what on stderr.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

fn mesh(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Ran {
    ran(command.output().unwrap())
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn with_stdin(command: &mut Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    ran(child.wait_with_output().unwrap())
}

/// Somebody to talk to.
struct Remote {
    address: String,
    task: thread::JoinHandle<String>,
}

impl Remote {
    /// The text of the one request that came; fails when none came.
    fn request(self) -> String {
        // Wakes the accept, should the command never have connected.
        drop(TcpStream::connect(
            self.address.strip_prefix("http://").unwrap(),
        ));
        self.task.join().unwrap()
    }
}

/// Answers one request with `status` and `body`.
fn remote(status: &'static str, body: &'static str) -> Remote {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let task = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        while !complete(&request) {
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the client hung up");
            request.extend_from_slice(&buffer[..read]);
        }
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        String::from_utf8(request).unwrap()
    });
    Remote { address, task }
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

#[test]
fn help_and_version_are_answers_and_typos_are_usage_errors() {
    let help = run(&mut mesh(&["--help"]));
    assert_eq!(help.code, 0);
    assert!(help.out.contains("join-token") && help.out.contains("75 try later"));
    assert!(run(&mut mesh(&["--version"])).out.starts_with("mesh 0."));
    let typo = run(&mut mesh(&["membrs"]));
    assert_eq!((typo.code, &*typo.out), (64, ""));
    assert!(typo.err.contains("members"), "{}", typo.err);
    assert_eq!(run(&mut mesh(&[])).code, 64);
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let ran = run(&mut mesh(&["completions", shell]));
        assert_eq!(ran.code, 0, "{shell}: {}", ran.err);
        assert!(ran.out.contains("join-token"), "{shell}");
    }
}

#[test]
fn config_validate_reports_everything_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mesh.toml");
    fs::write(&file, "[node]\nnam = \"a\"\n[dns]\nttl = 5\n").unwrap();
    let path = file.to_str().unwrap();
    let bad = run(&mut mesh(&["config", "validate", "--config", path]));
    assert_eq!((bad.code, &*bad.out), (1, ""));
    let lines: Vec<_> = bad.err.lines().collect();
    assert_eq!(
        lines,
        [
            &*format!("{path}:2:1: unknown key `nam` in [node]; did you mean `name`?"),
            &*format!("{path}:4:7: `dns.ttl` must be a duration such as \"10s\", this is a number"),
            "mesh: 2 errors in the configuration",
        ]
    );
    fs::write(&file, "[node]\nname = \"a\"\n").unwrap();
    let good = run(&mut mesh(&["config", "validate", path]));
    assert_eq!((good.code, good.out), (0, format!("valid: {path}\n")));
    let env = run(mesh(&["config", "validate", path]).env("MESH_PORTS_HTTP", "many"));
    assert_eq!(env.code, 1);
    assert!(env.err.starts_with("MESH_PORTS_HTTP: `ports.http` must be"));
}

#[test]
fn nobody_there_is_2_and_says_what_to_try() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let ran = run(&mut mesh(&["members", "--http-addr", &address]));
    assert_eq!((ran.code, &*ran.out), (2, ""));
    assert!(
        ran.err
            .contains(&format!("cannot connect to http://{address}"))
    );
    assert!(ran.err.contains("next: is an agent running here?"));
    let ran = run(mesh(&["members"]).env("CONSUL_HTTP_ADDR", "ftp://x"));
    assert_eq!(ran.code, 64, "{}", ran.err);
}

#[test]
fn refusals_map_to_exit_codes() {
    let status = |status, body, args: &[&str]| {
        let remote = remote(status, body);
        let address = &remote.address;
        let ran = run(mesh(args)
            .env("VAULT_ADDR", address)
            .env("MESH_HTTP_ADDR", address));
        remote.request();
        ran
    };
    let sealed = r#"{"errors":["Vault is sealed"]}"#;
    let ran = status("503 X", sealed, &["secret", "get", "secret/web/db"]);
    assert_eq!(ran.code, 75, "{}", ran.err);
    assert!(ran.err.contains("Vault is sealed") && ran.err.contains("mesh operator unseal"));
    let denied = r#"{"errors":["permission denied"]}"#;
    let ran = status("403 X", denied, &["secret", "list"]);
    assert_eq!(ran.code, 77, "{}", ran.err);
    let ran = status("404 X", "", &["kv", "get", "a/b"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("there is no key \"a/b\""));
    let ran = status("500 X", "boom", &["members"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("boom"));
    let seal = r#"{"initialized":true,"sealed":true,"type":"shamir","t":3,"n":5,"progress":1}"#;
    let ran = status("200 X", seal, &["operator", "status"]);
    assert_eq!(ran.code, 2);
    assert!(ran.out.contains("3 of 5 needed") && ran.err.contains("the store is sealed"));
}

#[test]
fn secret_values_come_from_stdin_or_files_never_from_arguments() {
    let literal = run(&mut mesh(&[
        "secret",
        "put",
        "secret/web/db",
        "password=hunter2",
    ]));
    assert_eq!(literal.code, 64);
    assert!(literal.err.contains("`-` for stdin or `@FILE`"));
    assert!(!literal.err.contains("hunter2"), "{}", literal.err);

    let remote = remote("200 OK", r#"{"data":{"version":4}}"#);
    let args = ["secret", "put", "secret/web/db", "password=-", "--cas", "3"];
    let ran = with_stdin(
        mesh(&args)
            .env("VAULT_ADDR", &remote.address)
            .env("VAULT_TOKEN", "t0"),
        "p4ss\n",
    );
    let request = remote.request();
    assert_eq!(
        ran.out, "written: secret/web/db, version 4\n",
        "{}",
        ran.err
    );
    assert!(request.starts_with("POST /v1/secret/data/web/db HTTP/1.1\r\n"));
    assert!(request.contains("x-vault-token: t0\r\n"));
    assert!(
        request.ends_with(r#"{"data":{"password":"p4ss"},"options":{"cas":3}}"#),
        "{request}"
    );
}

#[test]
fn programs_get_json_of_what_was_done() {
    let asked = |status, body, args: &[&str]| {
        let remote = remote(status, body);
        let ran = with_stdin(mesh(args).env("VAULT_ADDR", &remote.address), "text\n");
        (ran, remote.request())
    };
    let body = r#"{"data":{"version":4}}"#;
    let put = ["secret", "put", "secret/a", "f=-", "-o", "json"];
    let (ran, _) = asked("200 OK", body, &put);
    assert_eq!(ran.out, "{\n  \"version\": 4\n}\n", "{}", ran.err);
    let revoke = ["lease", "revoke", "ssh/creds/a/b", "-o", "json"];
    let (ran, _) = asked("204 No Content", "", &revoke);
    assert_eq!(
        ran.out, "{\n  \"lease_id\": \"ssh/creds/a/b\"\n}\n",
        "{}",
        ran.err
    );

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let body = r#"{"auth":{"client_token":"hvs.x","accessor":"a1","policies":["web"],"lease_duration":60}}"#;
    let out = file.to_str().unwrap();
    let create = ["token", "create", "-o", "json", "--out", out];
    let (ran, _) = asked("200 OK", body, &create);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(r#""accessor": "a1""#) && !ran.out.contains("hvs."));
    assert_eq!(fs::read_to_string(&file).unwrap(), "hvs.x\n");

    let keys = r#"{"data":{"keys":["a/b"]}}"#;
    let list = ["secret", "list", "secret/", "--recursive"];
    let (ran, request) = asked("200 OK", keys, &list);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        request.starts_with("GET /v1/secret/metadata/?scan=true HTTP"),
        "{request}"
    );
}

#[test]
fn a_deleted_secret_is_said_to_be_that() {
    let get = |body| {
        let remote = remote("404 X", body);
        run(mesh(&["secret", "get", "secret/web/db"]).env("VAULT_ADDR", &remote.address))
    };
    let deleted = r#"{"data":{"data":null,"metadata":{"version":2,"destroyed":false,"deletion_time":"2026-01-02T03:04:05Z"}}}"#;
    let ran = get(deleted);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("version 2 of \"secret/web/db\" was deleted at 2026-01-02T03:04:05Z")
    );
    assert!(
        ran.err
            .contains("mesh secret undelete secret/web/db --version 2")
    );
    let destroyed = r#"{"data":{"data":null,"metadata":{"version":1,"destroyed":true}}}"#;
    assert!(
        get(destroyed)
            .err
            .contains("version 1 of \"secret/web/db\" was destroyed")
    );
    assert!(get(r#"{"errors":[]}"#).err.contains("there is no secret"));
}

#[test]
fn what_cannot_be_written_is_not_made() {
    let remote = remote("200 OK", "{}");
    let create = ["token", "create", "--out", "/nonexistent/token"];
    let ran = run(mesh(&create).env("VAULT_ADDR", &remote.address));
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("the token cannot be written to /nonexistent/token")
    );
}

#[test]
fn unseal_keys_and_tokens_are_handed_out_only_to_a_file_or_terminal() {
    let nowhere = run(&mut mesh(&["operator", "init"]));
    assert_eq!(nowhere.code, 64);
    assert!(nowhere.err.contains("--out FILE"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("keys.json");
    let body = r#"{"keys":["aa"],"keys_base64":["qg=="],"root_token":"hvs.x"}"#;
    let remote = remote("200 OK", body);
    let args = [
        "operator",
        "init",
        "--shares",
        "1",
        "--threshold",
        "1",
        "--out",
    ];
    let ran = run(mesh(&args).arg(&out).env("VAULT_ADDR", &remote.address));
    remote.request();
    assert_eq!((ran.code, &*ran.out), (0, ""), "{}", ran.err);
    assert!(!ran.err.contains("hvs.x"));
    assert_eq!(mode(&out), 0o600);
    assert!(fs::read_to_string(&out).unwrap().contains("hvs.x"));
    let again = run(mesh(&args).arg(&out));
    assert_eq!(again.code, 1);
    assert!(again.err.contains("exists already"));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn maintenance_is_begun_ended_and_listed() {
    let asked = |body, args: &[&str]| {
        let remote = remote("200 OK", body);
        let ran = run(mesh(args).env("MESH_HTTP_ADDR", &remote.address));
        assert_eq!(ran.code, 0, "{}", ran.err);
        let request = remote.request();
        let line = request.lines().next().unwrap().to_owned();
        (line, ran.out)
    };
    let on = [
        "maintenance",
        "on",
        "--service",
        "web 1",
        "--reason",
        "a&b c",
    ];
    let (line, _) = asked("", &on);
    let path = "/v1/agent/service/maintenance/web%201?enable=true&reason=a%26b%20c";
    assert_eq!(line, format!("PUT {path} HTTP/1.1"));
    let (line, _) = asked("", &["maintenance", "off"]);
    assert_eq!(line, "PUT /v1/agent/maintenance?enable=false HTTP/1.1");
    let checks = r#"{
        "_node_maintenance": {"CheckID": "_node_maintenance", "ServiceID": "", "Notes": "reboot"},
        "_service_maintenance:web": {"CheckID": "_service_maintenance:web", "ServiceID": "web", "Notes": "disk"},
        "service:web": {"CheckID": "service:web", "ServiceID": "web", "Notes": "other"}
    }"#;
    let (line, out) = asked(checks, &["maintenance", "list"]);
    assert_eq!(line, "GET /v1/agent/checks HTTP/1.1");
    let rows: Vec<Vec<&str>> = out
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows,
        [["SERVICE", "REASON"], ["(node)", "reboot"], ["web", "disk"]]
    );
}

#[test]
fn version_answers_as_tools_ask() {
    let own = env!("CARGO_PKG_VERSION");
    let plain = run(&mut mesh(&["version"]));
    assert_eq!(plain.code, 0);
    assert!(
        plain.out.starts_with(&format!("mesh {own}")),
        "{}",
        plain.out
    );
    for asked in [
        &["version", "-format=json"][..],
        &["version", "-format", "json"],
        &["version", "--format=json"],
        &["version", "-o", "json"],
    ] {
        let answer = run(&mut mesh(asked));
        assert_eq!((answer.code, &*answer.err), (0, ""), "{asked:?}");
        let value: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        assert_eq!(value["Mesh"], own);
        let version = value["Version"].as_str().unwrap();
        assert_eq!(version.split('.').count(), 3, "{version}");
        assert_eq!(
            (&value["Prerelease"], &value["Revision"]),
            (&"".into(), &"".into())
        );
        assert!(value["BuildDate"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(run(&mut mesh(&["version", "-format=yaml"])).code, 64);
}
