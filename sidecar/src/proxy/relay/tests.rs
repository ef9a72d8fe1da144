use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

/// A relay between two in-memory streams; returns the outer ends (client, server) and what the relay said.
fn start(
    buffer: usize,
) -> (
    DuplexStream,
    DuplexStream,
    Arc<Flow>,
    JoinHandle<Result<(), RelayError>>,
) {
    let (client, mut accepted) = duplex(buffer);
    let (server, mut dialled) = duplex(buffer);
    let flow = Arc::new(Flow::default());
    let counted = Arc::clone(&flow);
    let task = tokio::spawn(async move { relay(&mut accepted, &mut dialled, &counted).await });
    (client, server, flow, task)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}

#[tokio::test]
async fn bytes_arrive_intact_both_ways_at_once() {
    let (client, server, flow, task) = start(1000);
    let up = pattern(3_000_001, 7);
    let down = pattern(2_000_003, 99);
    let send = |stream: DuplexStream, data: Vec<u8>| async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let sender = tokio::spawn(async move {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        sender.await.unwrap();
        got
    };
    let (at_client, at_server) = tokio::join!(send(client, up.clone()), send(server, down.clone()));
    assert!(at_server == up, "client to server differs");
    assert!(at_client == down, "server to client differs");
    task.await.unwrap().unwrap();
    assert_eq!(flow.forward.load(Ordering::Relaxed), up.len() as u64);
    assert_eq!(flow.backward.load(Ordering::Relaxed), down.len() as u64);
}

#[tokio::test]
async fn half_close_is_kept() {
    let (mut client, mut server, _, task) = start(64);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server
        .write_all(b"a much longer answer, after the question has ended")
        .await
        .unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(
        answer,
        b"a much longer answer, after the question has ended"
    );
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let (mut client, mut server, flow, task) = start(4096);
    let data = pattern(1 << 20, 3);
    let mut offered = 0;
    // What is in the two pipes and one backlog, and no more.
    loop {
        let write = client.write(&data[offered..]);
        tokio::select! {
            biased;
            n = write => offered += n.unwrap(),
            () = tokio::task::yield_now() => {
                // The relay had its turn and took nothing more.
                if flow.forward.load(Ordering::Relaxed) == 4096 { break; }
            }
        }
    }
    assert!(
        offered <= 2 * 4096 + SCRATCH,
        "{offered} bytes were taken from the client"
    );
    let mut got = vec![0; data.len()];
    let rest = tokio::spawn(async move {
        client.write_all(&data[offered..]).await.unwrap();
        drop(client);
        data
    });
    server.read_exact(&mut got).await.unwrap();
    assert!(got == rest.await.unwrap());
    server.shutdown().await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_broken_stream_ends_both_directions_and_is_named() {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    impl AsyncWrite for Broken {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            data: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let (_client, mut accepted) = duplex(64);
    let error = relay(&mut accepted, &mut Broken, &Flow::default())
        .await
        .unwrap_err();
    assert_eq!((error.side, error.operation), (Side::Dialled, "read"));
    assert_eq!(error.source.kind(), io::ErrorKind::ConnectionReset);
}

/// A quiet connection owns no buffer, also after a burst that made it keep a backlog.
#[tokio::test]
async fn the_backlog_is_given_back() {
    let (mut client, mut accepted) = duplex(SCRATCH);
    let (mut server, mut dialled) = duplex(16);
    let mut direction = Direction::default();
    let moved = AtomicU64::new(0);
    let mut scratch = vec![0; SCRATCH];
    let mut turn = |direction: &mut Direction| {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        direction
            .poll(
                &mut cx,
                &mut scratch,
                Pin::new(&mut accepted),
                Pin::new(&mut dialled),
                &moved,
            )
            .is_pending()
    };
    client.write_all(&pattern(1000, 1)).await.unwrap();
    assert!(turn(&mut direction));
    assert_eq!(direction.backlog.len(), 1000 - 16);
    let mut got = vec![0; 16];
    for _ in 0..1000_usize.div_ceil(16) {
        let n = server.read(&mut got).await.unwrap();
        assert!(n > 0);
        assert!(turn(&mut direction));
    }
    assert_eq!(moved.load(Ordering::Relaxed), 1000);
    assert_eq!(direction.backlog.capacity(), 0);
}
