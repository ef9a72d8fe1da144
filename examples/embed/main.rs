//! A program that is a node of the mesh: it joins, offers the service `hello`, waits for another service,
//! and calls it over mutual TLS, once a second until Ctrl-C.
//!
//! With a mesh running (`mesh dev`, or a server) and a token in the environment,
//! `embed <node name> <address of a node> <service to call>`:
//!
//! ```text
//! mesh join-token create --publish hello --uses 2 --out join.token
//! export MESH_JOIN_TOKEN=$(cat join.token)
//! cargo run -p examples --bin embed -- node-a 127.0.0.1:8301 hello
//! ```
//!
//! calls itself; as soon as another one runs as `node-b`, both call each other and themselves in turn.
//! `mesh intention allow hello hello` lets them (in `mesh dev` everything is allowed).
//! What a node keeps is in `mesh-embed-<node name>` in the temporary directory; remove it to join another mesh.

use std::time::Duration;

use anyhow::Context;
use libmesh::{
    mesh::{Credentials, Mesh},
    model::{Instance, ServiceName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage =
        "usage: [MESH_JOIN_TOKEN=…] embed <node name> <address of a node> <service to call>";
    let mut arguments = std::env::args().skip(1);
    let (node, seed, target) = (
        arguments.next().context(usage)?,
        arguments.next().context(usage)?,
        arguments.next().context(usage)?,
    );
    // Join. The directory keeps who we are: the next start needs no token.
    let credentials = match std::env::var("MESH_JOIN_TOKEN") {
        Ok(token) => Credentials::Join(token.parse()?),
        Err(_) => Credentials::Kept,
    };
    let mesh = Mesh::builder(&node)
        .bind("127.0.0.1:0")
        .directory(std::env::temp_dir().join(format!("mesh-embed-{node}")))
        .seed(seed)
        .credentials(credentials)
        .start()
        .await?;

    // Offer a service: whoever calls and may call is greeted by name.
    let hello: ServiceName = "hello".parse()?;
    let mut listener = mesh.accept(&hello, "127.0.0.1:0".parse()?).await?;
    let port = listener.local_addr().port();
    mesh.register(Instance {
        mesh_port: Some(port),
        ..Instance::new(hello.clone(), port)?
    })?;
    let here = node.clone();
    tokio::spawn(async move {
        while let Some(mut call) = listener.accept().await {
            let greeting = format!("hello from {here}, {}\n", call.peer());
            tokio::spawn(async move {
                call.write_all(greeting.as_bytes()).await?;
                call.shutdown().await
            });
        }
    });

    let target: ServiceName = target.parse()?;
    tokio::select! {
        () = call_on_and_on(&mesh, &hello, &target) => {}
        end = tokio::signal::ctrl_c() => end?,
    }
    // Say goodbye, so that nobody has to find out.
    mesh.leave().await;
    Ok(())
}

/// Waits until somebody offers `target`, and calls it once a second.
async fn call_on_and_on(mesh: &Mesh, own: &ServiceName, target: &ServiceName) {
    let mut changes = mesh.watch(target);
    loop {
        while mesh.resolve(target).is_empty() {
            if changes.next().await.is_none() {
                return;
            }
        }
        match call(mesh, own, target).await {
            Ok(answer) => println!("{answer}"),
            // Not allowed (yet), or the other one has just gone: the next call may succeed.
            Err(error) => eprintln!("{target} was not reached: {error:#}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn call(mesh: &Mesh, own: &ServiceName, target: &ServiceName) -> anyhow::Result<String> {
    let mut call = mesh.connect(own, target).await?;
    let mut answer = String::new();
    call.read_to_string(&mut answer).await?;
    Ok(format!("{} answers: {}", call.peer(), answer.trim_end()))
}
