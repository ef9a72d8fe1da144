//! Follows one service, or all of them, and prints each change. The manual's page: `libmesh::manual::watching`.
//!
//! With `mesh dev` running, and its `export` line pasted:
//!
//! ```text
//! mesh join-token create --publish '*' --uses 9 --out join-token
//! MESH_JOIN_TOKEN=$(cat join-token) cargo run -p examples --bin watching -- node-c 127.0.0.1:8301 [service]
//! ```
//!
//! While `registering` starts and ends, `watching node-c 127.0.0.1:8301 time` prints, for example (the first diff was empty):
//!
//! ```text
//! revision 0
//! + time time-1 on node-b at 127.0.0.1:34277: critical
//! revision 1795665762148592
//! ~ time time-1 on node-b at 127.0.0.1:34277: critical
//! revision 1795665762544771
//! ~ time time-1 on node-b at 127.0.0.1:34277: passing
//! revision 1795665763051560
//! - time time-1 on node-b at 127.0.0.1:34277: passing
//! revision 1795665772022953
//! ```

use anyhow::Context;
use libmesh::{catalog::InstanceView, mesh::Mesh, watch::Diff};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: [MESH_JOIN_TOKEN=…] watching <node name> <address of a node> [service]";
    let mut arguments = std::env::args().skip(1);
    let node = arguments.next().context(usage)?;
    let seed = arguments.next().context(usage)?;
    let service = arguments.next();
    let builder = Mesh::builder(&node)
        .bind("127.0.0.1:0")
        .directory(std::env::temp_dir().join(format!("mesh-example-{node}")))
        .seed(seed);
    let mesh = match std::env::var("MESH_JOIN_TOKEN") {
        Ok(token) => builder.join_token(&token).start().await?,
        Err(_) => builder.start().await?,
    };

    let mut watch = match service {
        Some(service) => mesh.watch(&service.parse()?),
        None => mesh.watch_services(),
    };
    loop {
        // Dropping the future of `next` loses nothing, so it may stand in a `select!`.
        tokio::select! {
            diff = watch.next() => match diff {
                Some(diff) => print(&diff),
                None => break,
            },
            end = tokio::signal::ctrl_c() => {
                end?;
                break;
            }
        }
    }
    mesh.leave().await;
    Ok(())
}

fn print(diff: &Diff<InstanceView>) {
    let lists = [
        ("+", &diff.added),
        ("~", &diff.changed),
        ("-", &diff.removed),
    ];
    for (mark, list) in lists {
        for seen in list {
            println!(
                "{mark} {} {} on {} at {}:{}: {}",
                seen.instance.service,
                seen.instance.id,
                seen.node.record.name,
                seen.address(),
                seen.instance.port,
                seen.health
            );
        }
    }
    println!("revision {}", diff.revision);
}
