//! Every kind of probe against a real little counterpart.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Of a server that calls itself `app.test`.
struct Certificate {
    acceptor: TlsAcceptor,
    pem: String,
}

fn certificate(alpn: &[u8]) -> Certificate {
    let made = rcgen::generate_simple_self_signed(["app.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    Certificate {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        pem: made.cert.pem(),
    }
}

/// Whom to trust, by the name that the certificate has.
fn trusting(certificate: &Certificate) -> ProbeTls {
    let tls = ProbeTls::default().roots(certificate.pem.as_bytes());
    tls.unwrap().server_name("app.test").unwrap()
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers each HTTP/1.1 request (its body has a length) with the next of `answers`; keeps what it was asked.
async fn http1(answers: Vec<String>, tls: Option<TlsAcceptor>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let (listener, port) = listen().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        for answer in answers {
            let (stream, _) = listener.accept().await.unwrap();
            let done = match &tls {
                None => one_request(stream, &answer).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => one_request(stream, &answer).await,
                    Err(error) => format!("TLS: {error}"),
                },
            };
            kept.lock().push(done);
        }
    });
    (port, asked)
}

async fn one_request(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(request).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    // The client may have enough before all is written.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    head + &String::from_utf8(body).unwrap()
}

fn ok() -> String {
    "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_owned()
}

#[tokio::test]
async fn http_over_tls_needs_a_certificate_of_the_right_name_from_somebody_trusted() {
    let certificate = certificate(b"http/1.1");
    let acceptor = certificate.acceptor.clone();
    let (port, _) = http1(vec![ok(); 5], Some(acceptor)).await;
    let url = format!("https://127.0.0.1:{port}/health");
    let probe = |tls| HttpProbe::new(&url).unwrap().tls(tls);
    let good = probe(trusting(&certificate)).probe().await;
    assert_eq!(good.health, Health::Passing, "{}", good.output);
    let anybody = probe(ProbeTls::default().skip_verify()).probe().await;
    assert_eq!(anybody.health, Health::Passing, "{}", anybody.output);
    let other_name = trusting(&certificate).server_name("other.test").unwrap();
    let roots_only = ProbeTls::default()
        .roots(certificate.pem.as_bytes())
        .unwrap();
    for tls in [other_name, roots_only, ProbeTls::default()] {
        let bad = probe(tls).probe().await;
        assert_eq!(bad.health, Health::Critical);
        assert!(
            bad.output.contains("TLS handshake") || bad.output.contains("authorities"),
            "{}",
            bad.output
        );
    }
    assert!(ProbeTls::default().roots(b"no certificate").is_err());
    assert!(ProbeTls::default().server_name("not a name").is_err());
}

#[tokio::test]
async fn http_asks_as_told_and_reads_no_more_than_it_may() {
    let long = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}",
        "x".repeat(1_000_000)
    );
    let (port, asked) = http1(vec![long.clone(), long], None).await;
    let probe = HttpProbe::new(&format!("http://127.0.0.1:{port}/?a=b"))
        .unwrap()
        .method("POST")
        .unwrap()
        .header("X-Token", "t")
        .unwrap()
        .header("Host", "shop.test")
        .unwrap()
        .body("question");
    let result = probe.probe().await;
    assert_eq!(result.health, Health::Passing);
    assert!(
        (4096..4200).contains(&result.output.len()),
        "{}",
        result.output.len()
    );
    let short = probe.clone().output_max(10).probe().await;
    assert!(
        short
            .output
            .ends_with(&format!("Output: {}", "x".repeat(10)))
    );
    let asked = asked.lock()[0].clone();
    assert!(asked.starts_with("POST /?a=b HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("host: shop.test\r\n") && asked.contains("x-token: t\r\n"));
    assert!(asked.ends_with("\r\n\r\nquestion"), "{asked}");
}

#[tokio::test]
async fn http_follows_redirects_without_taking_credentials_elsewhere() {
    let (target, target_asked) = http1(vec![ok(); 2], None).await;
    let elsewhere = format!(
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{target}/x\r\ncontent-length: 0\r\n\r\n"
    );
    let (port, _) = http1(vec![elsewhere.clone(), elsewhere], None).await;
    let probe = HttpProbe::new(&format!("http://127.0.0.1:{port}/"))
        .unwrap()
        .method("POST")
        .unwrap()
        .header("Authorization", "secret")
        .unwrap()
        .header("X-Check", "1")
        .unwrap()
        .body("once");
    let followed = probe.probe().await;
    assert_eq!(followed.health, Health::Passing, "{}", followed.output);
    let asked = target_asked.lock()[0].clone();
    assert!(asked.starts_with("GET /x HTTP/1.1"), "{asked}");
    assert!(asked.contains("x-check: 1") && !asked.contains("secret") && !asked.contains("once"));
    let taken = probe.without_redirects().probe().await;
    assert_eq!(taken.health, Health::Critical);
    assert!(taken.output.contains("302 Found"), "{}", taken.output);

    let around = "HTTP/1.1 307 X\r\nlocation: again\r\ncontent-length: 0\r\n\r\n".to_owned();
    let (port, asked) = http1(vec![around; 20], None).await;
    let lost = HttpProbe::new(&format!("http://127.0.0.1:{port}/a/b")).unwrap();
    let lost = lost.probe().await;
    assert_eq!(lost.health, Health::Critical);
    assert!(
        lost.output.ends_with("more than 10 redirects"),
        "{}",
        lost.output
    );
    assert!(asked.lock()[1].starts_with("GET /a/again HTTP"));
}

#[tokio::test]
async fn tcp_connects_and_with_tls_shakes_hands() {
    let certificate = certificate(b"http/1.1");
    let (port, _) = http1(vec![ok()], Some(certificate.acceptor.clone())).await;
    let address = format!("127.0.0.1:{port}");
    let probe = TcpProbe::new(&address).unwrap().tls(trusting(&certificate));
    // The server waits for a request that never comes; the handshake was all that was asked for.
    let result = probe.probe().await;
    assert_eq!(
        result,
        ProbeResult::passing(format!("TCP connect {address}: Success"))
    );
    let (listener, port) = listen().await;
    let address = format!("127.0.0.1:{port}");
    let clear = TcpProbe::new(&address).unwrap();
    assert_eq!(clear.probe().await.health, Health::Passing);
    drop(listener);
    let refused = clear.probe().await;
    assert_eq!(refused.health, Health::Critical);
    assert!(refused.output.contains("refused"), "{}", refused.output);
}

#[tokio::test]
async fn udp_fails_only_when_refused() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let probe = UdpProbe::new(&address).unwrap();
    let silent = probe.clone().wait(Duration::from_millis(50)).probe().await;
    assert_eq!(
        silent,
        ProbeResult::passing(format!("UDP connect {address}: Success"))
    );
    let answering = async {
        let mut question = [0; 100];
        // One is still there from the silent look.
        for _ in 0..2 {
            let (length, from) = socket.recv_from(&mut question).await.unwrap();
            assert_eq!(&question[..length], b"ping");
            socket.send_to(b"pong", from).await.unwrap();
        }
    };
    // Would wait for an hour for silence.
    let probe = probe.wait(Duration::from_secs(3600));
    let (answered, ()) = tokio::join!(probe.probe(), answering);
    assert_eq!(answered.health, Health::Passing);
    drop(socket);
    let refused = probe.probe().await;
    assert_eq!(refused.health, Health::Critical);
    assert!(refused.output.contains("refused"), "{}", refused.output);
}

/// The frames of one answer.
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

/// An HTTP/2 server with gRPC's health protocol, in clear or over TLS.
async fn grpc(tls: Option<TlsAcceptor>) -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                match tls {
                    None => serve_grpc(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve_grpc(stream).await;
                        }
                    }
                }
            });
        }
    });
    port
}

async fn serve_grpc(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let serving = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service_fn(health));
    // The client hangs up when it has its answer.
    let _ = serving.await;
}

async fn health(request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
    use http_body_util::BodyExt;

    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let question = request.into_body().collect().await.unwrap().to_bytes();
    let answer = Response::builder().header("content-type", "application/grpc");
    let status = |status: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        Frame::trailers(trailers)
    };
    let message = |bytes: &'static [u8]| Frame::data(Bytes::from_static(bytes));
    let frames: Vec<Frame<Bytes>> = match &question[5..] {
        b"" | b"\x0a\x03web" => vec![message(b"\0\0\0\0\x02\x08\x01"), status("0")],
        b"\x0a\x04down" => vec![message(b"\0\0\0\0\x02"), message(b"\x08\x02"), status("0")],
        b"\x0a\x04late" => vec![message(b"\0\0\0\0\x02\x08\x01"), status("13")],
        b"\x0a\x04odd!" => vec![message(b"what?"), status("0")],
        _ => {
            let answer = answer.header("grpc-status", "5");
            let answer = answer.header("grpc-message", "unknown service");
            return Ok(answer.body(Frames(VecDeque::new())).unwrap());
        }
    };
    Ok(answer.body(Frames(frames.into())).unwrap())
}

#[tokio::test]
async fn grpc_asks_by_the_standard_protocol() {
    let port = grpc(None).await;
    let ask = async |service: &str| {
        let target = format!("127.0.0.1:{port}{service}");
        GrpcProbe::new(&target).unwrap().probe().await
    };
    assert_eq!(
        ask("").await,
        ProbeResult::passing(format!("gRPC check 127.0.0.1:{port}: success"))
    );
    assert_eq!(ask("/web").await.health, Health::Passing);
    for (service, reason) in [
        ("/down", "NOT_SERVING"),
        ("/late", "gRPC status 13: "),
        ("/odd!", "the answer is no HealthCheckResponse"),
        ("/none", "the service is not known: unknown service"),
    ] {
        let target = format!("127.0.0.1:{port}{service}");
        let wanted = ProbeResult::critical(format!("gRPC check {target}: {reason}"));
        assert_eq!(ask(service).await, wanted);
    }
    let certificate = certificate(b"h2");
    let port = grpc(Some(certificate.acceptor.clone())).await;
    let probe = GrpcProbe::new(&format!("127.0.0.1:{port}/web")).unwrap();
    let over_tls = probe.clone().tls(trusting(&certificate)).probe().await;
    assert_eq!(over_tls.health, Health::Passing, "{}", over_tls.output);
    assert_eq!(probe.probe().await.health, Health::Critical, "in clear");
    let (port, _) = http1(vec![ok()], None).await;
    let http1 = GrpcProbe::new(&format!("127.0.0.1:{port}")).unwrap();
    assert_eq!(
        timeout(Duration::from_secs(60), http1.probe())
            .await
            .unwrap()
            .health,
        Health::Critical
    );
}

#[tokio::test]
async fn an_http2_ping_comes_back_or_the_check_fails() {
    let port = grpc(None).await;
    let clear = H2PingProbe::new(&format!("127.0.0.1:{port}")).unwrap();
    let result = clear.probe().await;
    assert_eq!(
        result,
        ProbeResult::passing(format!("HTTP2 ping 127.0.0.1:{port}: Success"))
    );
    let certificate = certificate(b"h2");
    let port = grpc(Some(certificate.acceptor.clone())).await;
    let over_tls = H2PingProbe::new(&format!("127.0.0.1:{port}")).unwrap();
    let over_tls = over_tls.tls(trusting(&certificate)).probe().await;
    assert_eq!(over_tls.health, Health::Passing, "{}", over_tls.output);

    for (answer, reason) in [
        (
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "what answers is no HTTP/2",
        ),
        (
            "\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "the connection was ended (GOAWAY)",
        ),
        ("", "early eof"),
    ] {
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut preface = [0; 50];
            stream.read_exact(&mut preface).await.unwrap();
            assert!(preface.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let probe = H2PingProbe::new(&format!("127.0.0.1:{port}")).unwrap();
        let wanted = ProbeResult::critical(format!("HTTP2 ping 127.0.0.1:{port}: {reason}"));
        assert_eq!(probe.probe().await, wanted);
    }
}

fn shell(script: &str) -> ExecProbe {
    ExecProbe::new(["/bin/sh", "-c", script].map(str::to_owned).to_vec()).unwrap()
}

#[tokio::test]
async fn a_programs_exit_code_decides() {
    for (script, health, output) in [
        ("echo well; exit 0", Health::Passing, "well\n"),
        ("echo so so >&2; exit 1", Health::Warning, "so so\n"),
        ("exit 2", Health::Critical, ""),
        ("kill -9 $$", Health::Critical, "signal: 9 (SIGKILL): "),
    ] {
        let output = output.to_owned();
        assert_eq!(shell(script).probe().await, ProbeResult { health, output });
    }
    let missing = ExecProbe::new(vec!["/nonexistent/program".to_owned()]).unwrap();
    let missing = missing.probe().await;
    assert_eq!(missing.health, Health::Critical);
    assert!(missing.output.starts_with("/nonexistent/program: "));
    assert!(ExecProbe::new(Vec::new()).is_err());
    let no_shell = ["/bin/echo", "$HOME; exit 2"].map(str::to_owned).to_vec();
    assert_eq!(
        ExecProbe::new(no_shell).unwrap().probe().await,
        ProbeResult::passing("$HOME; exit 2\n")
    );
}

#[tokio::test]
async fn the_end_of_what_a_program_prints_is_kept() {
    let result = shell("seq 1 100000").probe().await;
    assert_eq!(result.output.len(), 4096);
    assert!(
        result
            .output
            .starts_with("Captured 4096 of 588895 bytes\n...\n")
    );
    assert!(result.output.ends_with("99999\n100000\n"));
    let short = shell("seq 1 100000").output_max(40).probe().await;
    assert_eq!(short.output.len(), 40);
}

#[tokio::test]
async fn a_program_that_takes_too_long_goes_with_all_that_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("alive");
    let made = tokio::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.await.unwrap().success());
    // Whoever lives holds the pipe open.
    let script = format!(
        "exec 3>{}; sleep 1000 & sleep 1000 & echo >&3; wait",
        pipe.display()
    );
    let probe = shell(&script);
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let reader = tokio::task::spawn_blocking(move || {
        let mut pipe = fs::File::open(pipe).unwrap();
        pipe.read_exact(&mut [0]).unwrap();
        begun.send(()).unwrap();
        pipe.read_to_end(&mut Vec::new()).unwrap();
    });
    tokio::select! {
        result = probe.probe() => panic!("it ended by itself: {result:?}"),
        // The timeout of a scheduler drops the look, too.
        begun = has_begun => begun.unwrap(),
    }
    let read = timeout(Duration::from_secs(60), reader).await;
    read.expect("all are gone").unwrap();
}

#[tokio::test]
async fn what_a_program_leaves_behind_holds_nobody_up() {
    let probe = shell("sleep 1000 & echo $!");
    let result = timeout(Duration::from_secs(60), probe.probe()).await;
    let result = result.unwrap();
    assert_eq!(result.health, Health::Passing);
    let left: i32 = result.output.trim().parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
}

/// Made by another process: one that this process wrote may be busy while another test forks.
fn program(path: &Path, script: &str) {
    let text = path.with_extension("text");
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    let mut install = std::process::Command::new("install");
    let status = install.args(["-m", "755"]).args([&text, path]).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_unit_is_as_well_as_systemd_says() {
    let dir = tempfile::tempdir().unwrap();
    let systemctl = dir.path().join("systemctl");
    let state = |load: &str, active: &str, sub: &str| {
        let script = format!(
            "test \"$1 $3 $4\" = 'show -- web.service' || exit 64\n\
             printf 'LoadState={load}\\nActiveState={active}\\nSubState={sub}\\n'"
        );
        program(&systemctl, &script);
    };
    let probe = || {
        SystemdProbe::new("web")
            .unwrap()
            .with(&systemctl, dir.path())
    };
    for (load, active, sub, health, output) in [
        (
            "loaded",
            "active",
            "running",
            Health::Passing,
            "web.service: active (running)",
        ),
        (
            "loaded",
            "reloading",
            "x",
            Health::Warning,
            "web.service: reloading (x)",
        ),
        (
            "loaded",
            "activating",
            "x",
            Health::Warning,
            "web.service: activating (x)",
        ),
        (
            "loaded",
            "failed",
            "failed",
            Health::Critical,
            "web.service: failed (failed)",
        ),
        (
            "not-found",
            "inactive",
            "dead",
            Health::Critical,
            "web.service: inactive (not-found)",
        ),
    ] {
        state(load, active, sub);
        let output = output.to_owned();
        assert_eq!(probe().probe().await, ProbeResult { health, output });
    }
    program(&systemctl, "echo 'no bus' >&2; exit 1");
    assert_eq!(
        probe().probe().await,
        ProbeResult::critical("web.service: systemctl: no bus")
    );
    let nowhere = probe().with(&systemctl, &dir.path().join("none"));
    assert_eq!(
        nowhere.probe().await,
        ProbeResult::critical("web.service: systemd does not run this system")
    );
    for bad in ["", "--help", "a b", "a;b", "a/b"] {
        assert!(SystemdProbe::new(bad).is_err(), "{bad:?}");
    }
}
