//! The processes whose processor time is measured, and the application behind them.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use libmesh::connect::{Acceptor, Balancer, Connector, Endpoint};
use libmesh::model::ServiceName;
use sidecar::proxy::listen::bind;
use sidecar::proxy::tcp::{Limits, Proxy};
use sidecar::proxy::workers::Workers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::credentials::{self, Credentials};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The sidecar of the service that is called: arguments are folder, threads, the application's address.
pub fn callee(arguments: &[String]) -> Result<()> {
    sidecar("db", arguments, |proxy, credentials, application| {
        let listener = bind(ANY_PORT)?;
        let addr = listener.local_addr()?;
        let Credentials { identity, bundles } = credentials;
        let own = identity.spiffe_id();
        let acceptor = Acceptor::new(identity, bundles, ServiceName::parse("db")?);
        proxy.inbound(listener, acceptor, own, application);
        Ok(addr)
    })
}

/// The sidecar of the caller: arguments are folder, threads, the address of the other sidecar.
pub fn caller(arguments: &[String]) -> Result<()> {
    sidecar("web", arguments, |proxy, credentials, peer| {
        let listener = bind(ANY_PORT)?;
        let addr = listener.local_addr()?;
        let Credentials { identity, bundles } = credentials;
        let (own, service) = (identity.spiffe_id(), ServiceName::parse("db")?);
        let balancer = Balancer::new();
        balancer.set(vec![Endpoint {
            id: "db".into(),
            addr: peer,
            service: service.clone(),
            version: None,
            weight: 1,
            distance: 0,
            suspect: false,
            part: 0,
        }]);
        let connector = Connector::new(identity, bundles, service.clone(), balancer);
        proxy.outbound(listener, connector, own, service);
        Ok(addr)
    })
}

fn sidecar(
    service: &str,
    arguments: &[String],
    listen: impl FnOnce(&Proxy, Credentials, SocketAddr) -> Result<SocketAddr>,
) -> Result<()> {
    let [folder, threads, addr] = arguments else {
        anyhow::bail!("folder, threads and address are needed")
    };
    let (threads, addr) = (threads.parse()?, addr.parse()?);
    let control = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let proxy = Proxy::new(Arc::new(Workers::start(threads)?), Limits::default());
    let credentials = control.block_on(credentials::read(Path::new(folder), service))?;
    let _control = control.enter();
    println!("{}", listen(&proxy, credentials, addr)?);
    until_input_ends()
}

/// Answers `/` with 1 KiB and `/big` with 1 MiB.
pub fn application(_: &[String]) -> Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()?;
    let listener = runtime.block_on(TcpListener::bind(ANY_PORT))?;
    println!("{}", listener.local_addr()?);
    runtime.spawn(async move {
        let answers = Arc::new([answer(1024), answer(1 << 20)]);
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, Arc::clone(&answers)));
        }
    });
    until_input_ends()
}

async fn answer_all(mut stream: TcpStream, answers: Arc<[Vec<u8>; 2]>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 8 << 10];
    let mut len = 0;
    loop {
        match stream.read(&mut buffer[len..]).await? {
            0 => return Ok(()),
            n => len += n,
        }
        if buffer[..len].ends_with(b"\r\n\r\n") {
            let big = buffer.starts_with(b"GET /big ");
            stream.write_all(&answers[usize::from(big)]).await?;
            len = 0;
        }
    }
}

fn answer(size: usize) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n");
    [head.into_bytes(), vec![b'x'; size]].concat()
}

fn until_input_ends() -> Result<()> {
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("cannot wait for the end")?;
    Ok(())
}
