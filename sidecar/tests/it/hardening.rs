//! Requests that are not what they seem, and clients that take more than they need.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::node::{Agent, Mesh, PATIENCE};

/// Sends bytes; what comes until the other end closes, and whether it did.
fn raw(addr: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    // It may be closed before all is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    let closed = loop {
        match stream.read(&mut piece) {
            Ok(0) => break true,
            Ok(read) => answer.extend_from_slice(&piece[..read]),
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    (String::from_utf8(answer).unwrap(), closed)
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

#[test]
fn what_two_readers_could_understand_differently_is_refused_or_ends_the_connection() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "");
    let put = "PUT /v1/agent/service/register HTTP/1.1\r\nHost: x\r\n";
    let get = "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n";
    let inner = "GET /v1/agent/self HTTP/1.1\r\nHost: x\r\n\r\n";
    let long = "x".repeat(200_000);
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    for (name, request, status) in [
        (
            "two lengths",
            format!("{put}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a list of lengths",
            format!("{put}Content-Length: 5, 6\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a signed length",
            format!("{put}Content-Length: +5\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a length below 0",
            format!("{put}Content-Length: -1\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a length out of range",
            format!("{put}Content-Length: 99999999999999999999999\r\n\r\n"),
            "400",
        ),
        (
            "a length over the limit",
            format!("{put}Content-Length: 9999999999\r\n\r\n"),
            "413",
        ),
        (
            "another coding",
            format!("{put}Transfer-Encoding: xchunked\r\n\r\n{inner}"),
            "400",
        ),
        (
            "chunked, not last",
            format!("{put}Transfer-Encoding: chunked, identity\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a coding in HTTP/1.0",
            format!(
                "{}\r\n\r\n{inner}",
                put.replace("1.1", "1.0") + "Transfer-Encoding: chunked"
            ),
            "400",
        ),
        (
            "a folded header",
            format!("{get}X-A: b\r\n c\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a folded coding",
            format!("{put}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a space before the colon",
            format!("{put}Content-Length : 5\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a bare CR",
            format!("{get}X-A: b\rX-B: c\r\n\r\n{inner}"),
            "400",
        ),
        ("a NUL", format!("{get}X-A: b\0c\r\n\r\n{inner}"), "400"),
        ("two hosts", format!("{get}Host: y\r\n\r\n{inner}"), "400"),
        (
            "a header too long",
            format!("{get}X-A: {long}\r\n\r\n{inner}"),
            "431",
        ),
        ("too many headers", format!("{get}{many}\r\n{inner}"), "431"),
        (
            "a path too long",
            format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
            "4",
        ),
        (
            "a chunk with bare LF",
            format!("{put}Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n{inner}"),
            "400",
        ),
        (
            "a chunk without end",
            format!("{put}Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n{inner}"),
            "400",
        ),
        (
            "a chunk out of range",
            format!("{put}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
            "400",
        ),
        (
            "a chunk below 0",
            format!("{put}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n"),
            "400",
        ),
        (
            "another protocol",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "",
        ),
        (
            "no protocol",
            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(),
            "400",
        ),
    ] {
        let (answer, closed) = raw(agent.http_addr, request.as_bytes());
        assert!(closed, "{name}: the connection stays open");
        if status.is_empty() {
            assert_eq!(answer, "", "{name}");
            continue;
        }
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{name}: {answer}"
        );
        assert_eq!(answers(&answer), 1, "{name}: {answer}");
    }

    // Length and coding at once: the coding counts, and nothing after it is read, in whatever order they come.
    let body = "{\"Name\":\"a\"}";
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for both in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let (answer, closed) = raw(
            agent.http_addr,
            format!("{put}{both}\r\n{chunked}{inner}").as_bytes(),
        );
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(closed && answers(&answer) == 1, "{answer}");
    }

    // A bare LF ends a line of the head, as for Consul: the header after it is a header of its own.
    let bare = "GET /v1/status/leader HTTP/1.1\nHost: x\nConnection: close\n\n";
    let (answer, closed) = raw(agent.http_addr, bare.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200") && closed, "{answer}");
    let hidden = format!(
        "{get}X-A: b\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    );
    let (answer, _) = raw(
        agent.http_addr,
        (hidden + "GET /v1/agent/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(answers(&answer), 2, "{answer}");
    assert!(
        !answer.contains("DebugConfig"),
        "what was the body of the first was answered: {answer}"
    );

    // And what is right: one after the other on one connection.
    let last = "GET /v1/agent/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let (answer, closed) = raw(
        agent.http_addr,
        format!("{get}\r\n{get}\r\n{last}").as_bytes(),
    );
    assert!(
        closed && answers(&answer) == 3 && answer.contains("HumanVersion"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_and_indexes_out_of_bounds_are_bounded() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "");
    let (_, headers, _) = agent
        .full(http::Method::GET, "/v1/health/service/web", "")
        .await;
    let index = headers["x-consul-index"].to_str().unwrap().to_owned();

    // A year is taken and cut; a change answers long before.
    let year = format!("/v1/health/service/web?index={index}&wait=8760h");
    let register = async {
        agent
            .put(
                "/v1/agent/service/register",
                r#"{"Name": "web", "Port": 1}"#,
            )
            .await;
    };
    let (seen, ()) = tokio::join!(agent.get(&year), register);
    assert_eq!(seen[0]["Service"]["Port"], 1);

    // An index of the future waits its time, and the answer's is the true one: it goes backwards.
    let future = format!("/v1/health/service/web?index={}&wait=100ms", u64::MAX);
    let (status, headers, body) = agent.full(http::Method::GET, &future, "").await;
    assert_eq!(status, 200);
    assert!(body.contains("\"web\""));
    let answered: u64 = headers["x-consul-index"].to_str().unwrap().parse().unwrap();
    assert!(answered >= index.parse().unwrap() && answered < u64::MAX);
    // One of the past is answered at once.
    let past = agent.get("/v1/health/service/web?index=1&wait=8760h").await;
    assert_eq!(past[0]["Service"]["Port"], 1);

    for bad in [
        "index=-1",
        "index=1e3",
        "index=99999999999999999999999",
        "index=1&wait=soon",
        "index=1&wait=99999999999999h",
    ] {
        let (status, body) = agent
            .ask(
                http::Method::GET,
                &format!("/v1/health/service/web?{bad}"),
                "",
            )
            .await;
        assert_eq!(status, 400, "{bad}: {body}");
    }
}

/// Connects from a loopback address.
async fn from(ip: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ip, 0).into())?;
    let stream = socket.connect(to).await?.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn status(mut stream: &TcpStream) -> String {
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    String::from_utf8_lossy(&head[9..]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_too_many_connections_is_told_and_others_are_served() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "[limits]\nhttp_max_conns_per_client = 3\n");
    let ask = b"GET /v1/status/leader HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = from([127, 0, 0, 9], agent.http_addr).await.unwrap();
        stream.write_all(ask).unwrap();
        assert_eq!(status(&stream), "200");
        open.push(stream);
    }
    let mut fourth = from([127, 0, 0, 9], agent.http_addr).await.unwrap();
    let _ = fourth.write_all(ask);
    let mut answer = String::new();
    fourth.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let mut other = from([127, 0, 0, 8], agent.http_addr).await.unwrap();
    other.write_all(ask).unwrap();
    assert_eq!(status(&other), "200");
    // When one is closed there is room again; the agent sees that in its own time.
    drop(open.pop());
    let late = std::time::Instant::now() + PATIENCE;
    loop {
        let mut again = from([127, 0, 0, 9], agent.http_addr).await.unwrap();
        let _ = again.write_all(ask);
        match &*status(&again) {
            "200" => break,
            _ => assert!(std::time::Instant::now() < late, "there is no room again"),
        }
    }
}

/// Resident memory of a process, in bytes.
fn resident(agent: &Agent) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_query_costs_little_and_all_are_answered_by_one_change() {
    const WAITING: usize = 2000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = most.min(8192);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most).unwrap();
    assert!(
        wanted as usize > WAITING + 500,
        "this system allows few open files: {most}"
    );

    let mesh = Mesh::new();
    let agent = mesh.agent("n1", &[], "[limits]\nhttp_max_conns_per_client = 0\n");
    let (_, headers, _) = agent
        .full(http::Method::GET, "/v1/health/service/web", "")
        .await;
    let index = headers["x-consul-index"].to_str().unwrap().to_owned();
    let ask =
        format!("GET /v1/health/service/web?index={index}&wait=10m HTTP/1.1\r\nhost: x\r\n\r\n");
    let wait = |count: usize| {
        let (ask, addr) = (ask.clone(), agent.http_addr);
        async move {
            let mut open = Vec::with_capacity(count);
            for _ in 0..count {
                let mut stream = from([127, 0, 0, 1], addr).await.unwrap();
                stream.write_all(ask.as_bytes()).unwrap();
                open.push(stream);
            }
            open
        }
    };
    // Some first, so that what is made once is there.
    let first = wait(200).await;
    agent.get("/v1/agent/self").await;
    let before = resident(&agent);
    let open = wait(WAITING).await;
    // Requests are taken in the order of their connections, mostly: what was asked last is answered when all wait.
    agent.get("/v1/agent/self").await;
    let each = (resident(&agent).saturating_sub(before)) / WAITING as u64;
    eprintln!("a waiting query: {each} bytes");
    assert!(each < 40 << 10, "a waiting query costs {each} bytes");

    agent
        .put(
            "/v1/agent/service/register",
            r#"{"Name": "web", "Port": 7}"#,
        )
        .await;
    for mut stream in first.into_iter().chain(open) {
        let mut answer = vec![0; 64 << 10];
        let read = stream.read(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer[..read]);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body[0]["Service"]["Port"], 7);
    }
}
