//! The servers that are measured.

use std::io::{Read, stdin};
use std::net::{SocketAddr, UdpSocket};

use anyhow::Result;
use dns::{Config, DnsServer, Readiness};
use libmesh::catalog::Catalog;
use libmesh::catalog::testing::TestNode;
use libmesh::model::{Host, Instance, InstanceId, ServiceName};

use super::{INSTANCES, SERVICES};

/// Our server over a catalog with the services that are asked for.
pub fn mesh(_: &[String]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            ..Config::default()
        };
        let server = DnsServer::bind(&config, catalog()?, Readiness::new(true))?;
        println!("{}", server.local_addrs()[0].port());
        // The runtime has nothing else to do: it sleeps here until the parent is gone or done.
        tokio::task::spawn_blocking(until_input_ends).await?;
        server.shutdown().await;
        Ok(())
    })
}

/// Receives and sends, the same way as our server does.
pub fn echo(_: &[String]) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    println!("{}", socket.local_addr()?.port());
    std::thread::spawn(move || dns::echo(&socket));
    until_input_ends();
    Ok(())
}

fn until_input_ends() {
    // An error means the same as the end: nobody is there any more.
    let _ = stdin().read_to_end(&mut Vec::new());
}

fn catalog() -> Result<Catalog> {
    let node = TestNode::new("node1", [10, 0, 0, 1].into());
    for service in 0..SERVICES {
        for number in 1..=INSTANCES {
            let name = ServiceName::parse(&format!("web{service}"))?;
            let mut instance = Instance::new(name, 80)?;
            instance.id = InstanceId::parse(&format!("web{service}-{number}"))?;
            instance.address = Some(Host::Ip([10, 1, service, number].into()));
            node.local().put_service(instance)?;
        }
    }
    Ok(node.catalog)
}
