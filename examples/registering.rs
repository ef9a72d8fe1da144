//! Offers a service with two checks: one that looks, one that is told. Stops in the order that nobody notices: first the
//! registration goes, then the work ends. The manual's page: `libmesh::manual::registering`.
//!
//! With `mesh dev` running, and its `export` line pasted:
//!
//! ```text
//! mesh join-token create --publish '*' --uses 9 --out join-token
//! MESH_JOIN_TOKEN=$(cat join-token) cargo run -p examples --bin registering -- node-b 127.0.0.1:8301
//! dig @127.0.0.1 -p 8600 +short time.service.mesh SRV     # in another terminal, while it runs
//! ```
//!
//! It prints, for example:
//!
//! ```text
//! time-1 on node-b is critical
//! time-1 on node-b is critical
//! time-1 on node-b is passing
//! gone
//! ```
//!
//! It is critical until both checks have spoken; "gone" comes after Ctrl-C.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use libmesh::{
    health::Check,
    mesh::Mesh,
    model::{Health, Instance},
};
use tokio::{io::AsyncWriteExt, net::TcpListener, time::sleep};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: [MESH_JOIN_TOKEN=…] registering <node name> <address of a node>";
    let mut arguments = std::env::args().skip(1);
    let node = arguments.next().context(usage)?;
    let seed = arguments.next().context(usage)?;
    let builder = Mesh::builder(&node)
        .bind("127.0.0.1:0")
        .directory(std::env::temp_dir().join(format!("mesh-example-{node}")))
        .seed(seed);
    let mesh = match std::env::var("MESH_JOIN_TOKEN") {
        Ok(token) => builder.join_token(&token).start().await?,
        Err(_) => builder.start().await?,
    };

    // The work: whoever connects gets the time.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let work = tokio::spawn(tell_time(listener));

    let instance = Instance::builder("time".parse()?)
        .id("time-1")
        .port(addr.port())
        .address("127.0.0.1")
        .tag("utc")
        .version("v1")
        .meta("unit", "s")
        .build()?;
    let id = instance.id.clone();
    mesh.register(instance)?;
    checks(&mesh, addr)?;

    let mut watch = mesh.watch(&"time".parse()?);
    let follow = async {
        while let Some(diff) = watch.next().await {
            for seen in diff.added.iter().chain(&diff.changed) {
                println!(
                    "{} on {} is {}",
                    seen.instance.id, seen.node.record.name, seen.health
                );
            }
        }
    };
    let tell = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            if mesh
                .checks()
                .update("time-work", Health::Passing, "on time")
                .is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = tell => {}
        end = tokio::signal::ctrl_c() => end?,
    }
    mesh.deregister(&id);
    mesh.leave().await;
    work.abort();
    println!("gone");
    Ok(())
}

fn checks(mesh: &Mesh, addr: SocketAddr) -> anyhow::Result<()> {
    let port = Check::tcp(&addr.to_string())
        .of("time-1".parse()?)
        .every(Duration::from_secs(1));
    mesh.checks().add(port.build()?)?;
    let work = Check::ttl("time-work", Duration::from_secs(5));
    mesh.checks().add(work.of("time-1".parse()?))?;
    Ok(())
}

async fn tell_time(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (mut caller, _) = listener.accept().await?;
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        // Whoever has gone already does not want to know.
        let _ = caller
            .write_all(format!("{}\n", now.as_secs()).as_bytes())
            .await;
    }
}
