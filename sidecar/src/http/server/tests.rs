//! Over real sockets; every wait is for an event, with a deadline.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::*;
use crate::http::client::Target;

const SOON: Duration = Duration::from_secs(10);

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        timeout(SOON, self.task).await.unwrap().unwrap();
    }
}

async fn start<H, F>(limits: Limits, handler: H) -> Running
where
    H: Fn(Request<Bytes>, Arc<ConnInfo>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let tcp = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(Listener::Tcp(tcp), limits, stop.clone(), handler));
    Running { addr, stop, task }
}

async fn echo(request: Request<Bytes>, _: Arc<ConnInfo>) -> Reply {
    text(StatusCode::OK, request.into_body())
}

async fn post(addr: SocketAddr, body: &'static [u8]) -> http::Response<Bytes> {
    let request = Request::post("/x").body(Bytes::from_static(body)).unwrap();
    let target = Target::parse(&addr.to_string(), 0, None).unwrap();
    target.send(request, SOON).await.unwrap()
}

#[tokio::test]
async fn body_over_the_limit_is_413_declared_or_not() {
    let limits = Limits {
        body: 4,
        ..Limits::default()
    };
    let running = start(limits, echo).await;
    assert_eq!(post(running.addr, b"1234").await.body(), "1234");
    let refused = post(running.addr, b"12345").await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.body(), "request body too large, max size: 4 bytes");
    let mut raw = TcpStream::connect(running.addr).await.unwrap();
    raw.write_all(
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n12345\r\n",
    )
    .await
    .unwrap();
    let mut answer = String::new();
    timeout(SOON, raw.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    running.end().await;
}

#[tokio::test]
async fn long_poll_ends_when_the_client_goes_away() {
    struct Dropped(mpsc::UnboundedSender<&'static str>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }
    let (tx, mut rx) = mpsc::unbounded_channel();
    let running = start(Limits::default(), move |_, _| {
        let tx = tx.clone();
        async move {
            tx.send("began").unwrap();
            let _guard = Dropped(tx);
            std::future::pending().await
        }
    })
    .await;
    let mut raw = TcpStream::connect(running.addr).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(timeout(SOON, rx.recv()).await.unwrap(), Some("began"));
    drop(raw);
    assert_eq!(timeout(SOON, rx.recv()).await.unwrap(), Some("dropped"));
    running.end().await;
}

#[tokio::test]
async fn shutdown_lets_a_running_request_finish_and_cuts_a_stuck_one() {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let limits = Limits {
        drain: Duration::from_millis(200),
        ..Limits::default()
    };
    let running = start(
        limits,
        move |request: Request<Bytes>, conn: Arc<ConnInfo>| {
            let tx = tx.clone();
            async move {
                tx.send(()).unwrap();
                if request.uri().path() == "/stuck" {
                    std::future::pending::<()>().await;
                }
                conn.shutdown.cancelled().await;
                text(StatusCode::OK, "finished")
            }
        },
    )
    .await;
    let ask = |path: &'static str| {
        let target = Target::parse(&running.addr.to_string(), 0, None).unwrap();
        let request = Request::get(path).body(Bytes::new()).unwrap();
        tokio::spawn(async move { target.send(request, SOON).await })
    };
    let (good, stuck) = (ask("/good"), ask("/stuck"));
    for _ in 0..2 {
        timeout(SOON, rx.recv()).await.unwrap().unwrap();
    }
    running.end().await;
    assert_eq!(good.await.unwrap().unwrap().body(), "finished");
    assert!(stuck.await.unwrap().is_err());
}

#[tokio::test]
async fn connections_over_the_limit_are_told_and_closed() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let running = start(limits, echo).await;
    let mut first = TcpStream::connect(running.addr).await.unwrap();
    first
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut start = [0; 12];
    timeout(SOON, first.read_exact(&mut start))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let mut second = TcpStream::connect(running.addr).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, second.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(head.contains(&format!("content-length: {}", body.len())));
    running.end().await;
}

#[tokio::test]
async fn unix_socket_knows_its_peer_and_is_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.sock");
    let listener = bind_unix(&path, 0o600).unwrap();
    let stop = CancellationToken::new();
    let handler = |_: Request<Bytes>, conn: Arc<ConnInfo>| async move {
        text(StatusCode::OK, format!("{:?}", conn.remote))
    };
    let task = tokio::spawn(serve(listener, Limits::default(), stop.clone(), handler));
    let request = Request::get("/").body(Bytes::new()).unwrap();
    let target = Target::Unix(path.clone());
    let answer = target.send(request, SOON).await.unwrap();
    let body = String::from_utf8(answer.body().to_vec()).unwrap();
    let uid = nix::unistd::Uid::effective();
    assert!(body.contains(&format!("uid: {uid}")), "{body}");
    assert!(
        bind_unix(&path, 0o600).is_err(),
        "a socket in use was taken over"
    );
    stop.cancel();
    timeout(SOON, task).await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let limits = Limits {
        write_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let (tx, mut rx) = mpsc::unbounded_channel();
    let running = start(limits, move |_, conn: Arc<ConnInfo>| {
        let tx = tx.clone();
        async move {
            tx.send(Arc::downgrade(&conn)).unwrap();
            // More than fits into the buffers between the two.
            text(StatusCode::OK, vec![b'x'; 64 << 20])
        }
    })
    .await;
    let mut raw = TcpStream::connect(running.addr).await.unwrap();
    raw.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let conn = timeout(SOON, rx.recv()).await.unwrap().unwrap();
    let gone = async {
        while conn.upgrade().is_some() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, gone).await.expect("the connection is held");
    running.end().await;
}

#[tokio::test]
async fn a_client_over_its_share_is_told_even_when_it_has_sent_already() {
    let limits = Limits {
        per_client: PerClient::new(std::num::NonZeroUsize::new(1)),
        ..Limits::default()
    };
    let running = start(limits, echo).await;
    let mut first = TcpStream::connect(running.addr).await.unwrap();
    let ask = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    first.write_all(ask).await.unwrap();
    let mut start = [0; 12];
    timeout(SOON, first.read_exact(&mut start))
        .await
        .unwrap()
        .unwrap();
    let mut second = TcpStream::connect(running.addr).await.unwrap();
    second.write_all(ask).await.unwrap();
    let mut answer = String::new();
    let read = timeout(SOON, second.read_to_string(&mut answer));
    read.await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    drop(second);
    drop(first);
    running.end().await;
}
