//! Resolves a service in several ways, offers `echo`, and calls it with identity. The manual's page:
//! `libmesh::manual::connecting`.
//!
//! With `mesh dev` running (it allows every call), and its `export` line pasted:
//!
//! ```text
//! mesh join-token create --publish '*' --uses 9 --out join-token
//! MESH_JOIN_TOKEN=$(cat join-token) cargo run -p examples --bin connecting -- node-d 127.0.0.1:8301
//! ```
//!
//! It prints, for example:
//!
//! ```text
//! usable, nearest first: ["echo on node-d (weight Some(1))"]
//! one v2 that passes: ["echo on node-d (weight Some(1))"]
//! v9: []
//! connected as spiffe://….mesh/ns/default/dc/dc1/svc/shop to spiffe://….mesh/ns/default/dc/dc1/svc/echo
//! answer: hello
//! no call: service nobody has no instance that takes mesh connections; see: mesh services (blame: peer, worth another try: true)
//! ```

use anyhow::Context;
use libmesh::{
    catalog::{Doubtful, Select},
    mesh::{Listener, Mesh},
    model::{Instance, ServiceName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: [MESH_JOIN_TOKEN=…] connecting <node name> <address of a node>";
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

    let echo: ServiceName = "echo".parse()?;
    let listener = mesh.accept(&echo, "127.0.0.1:0".parse()?).await?;
    let port = listener.local_addr().port();
    let instance = Instance::builder(echo.clone())
        .port(port)
        .mesh_port(port)
        .version("v2");
    mesh.register(instance.build()?)?;
    tokio::spawn(answer(listener));

    let strict = Select::passing()
        .subset("v2")
        .doubtful(Doubtful::Exclude)
        .limit(1);
    for (how, found) in [
        ("usable, nearest first", mesh.resolve(&echo)),
        ("one v2 that passes", mesh.resolve_with(&echo, &strict)),
        ("v9", mesh.resolve_with(&echo, &Select::any().subset("v9"))),
    ] {
        let found: Vec<String> = found
            .iter()
            .map(|it| {
                format!(
                    "{} on {} (weight {:?})",
                    it.instance.id,
                    it.node.record.name,
                    it.weight()
                )
            })
            .collect();
        println!("{how}: {found:?}");
    }

    let caller: ServiceName = "shop".parse()?;
    let mut call = mesh.connect(&caller, &echo).await?;
    println!(
        "connected as {} to {}",
        call.local_end().spiffe,
        call.peer()
    );
    call.write_all(b"hello").await?;
    call.shutdown().await?;
    let mut answer = String::new();
    call.read_to_string(&mut answer).await?;
    println!("answer: {answer}");

    match mesh.connect(&caller, &"nobody".parse()?).await {
        Ok(_) => println!("somebody offers nobody"),
        Err(error) => println!(
            "no call: {error} (blame: {}, worth another try: {})",
            error.blame(),
            error.retry().is_worthwhile()
        ),
    }
    mesh.leave().await;
    Ok(())
}

/// Sends back what each caller sends.
async fn answer(mut listener: Listener) {
    while let Some(call) = listener.accept().await {
        let (mut read, mut write) = tokio::io::split(call);
        tokio::spawn(async move {
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        });
    }
}
