//! Joins the mesh, says who is there for three seconds, and leaves. The manual's page: `libmesh::manual::joining`.
//!
//! With `mesh dev` running, and its `export` line pasted:
//!
//! ```text
//! mesh join-token create --publish '*' --uses 9 --out join-token
//! MESH_JOIN_TOKEN=$(cat join-token) cargo run -p examples --bin joining -- node-a 127.0.0.1:8301
//! ```
//!
//! It prints, for example:
//!
//! ```text
//! node-a (7f37c4c64e02b620818aad3557895ce0) at 127.0.0.1:41937
//! is spiffe://e4fcb2b0-a21f-46d6-8558-1a79394704ee.mesh/node/node-a
//! Alive node-a 127.0.0.1:41937
//! Alive dev 127.0.0.1:8301
//! ```

use std::{process::ExitCode, time::Duration};

use libmesh::mesh::{Mesh, MeshError};
use tokio::time::{Instant, timeout_at};

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(node), Some(seed)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: [MESH_JOIN_TOKEN=…] joining <node name> <address of a node>");
        return ExitCode::from(64);
    };
    match join(&node, &seed).await {
        Ok(()) => ExitCode::SUCCESS,
        // The error says whom to blame and whether to try again; its message says what to do.
        Err(error) => {
            eprintln!("{error} (blame: {})", error.blame());
            let later = error.retry().is_worthwhile();
            ExitCode::from(if later { 75 } else { 1 })
        }
    }
}

async fn join(node: &str, seed: &str) -> Result<(), MeshError> {
    let builder = Mesh::builder(node)
        .bind("127.0.0.1:0")
        .directory(std::env::temp_dir().join(format!("mesh-example-{node}")))
        .seed(seed);
    // Needed the first time only: the directory keeps who we are.
    let mesh = match std::env::var("MESH_JOIN_TOKEN") {
        Ok(token) => builder.join_token(&token).start().await?,
        Err(_) => builder.start().await?,
    };
    println!("{} ({}) at {}", mesh.name(), mesh.id(), mesh.addr());
    println!("is {}", mesh.identity().spiffe_id());

    let until = Instant::now() + Duration::from_secs(3);
    let mut watch = mesh.watch_nodes();
    while let Ok(Some(diff)) = timeout_at(until, watch.next()).await {
        for node in diff.added.iter().chain(&diff.changed) {
            println!(
                "{:?} {} {}",
                node.liveness,
                node.record.name,
                node.record.socket_addr()
            );
        }
    }
    // Say goodbye, so that nobody has to find out.
    mesh.leave().await;
    Ok(())
}
