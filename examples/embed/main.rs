//! A program that is a node of the mesh: it joins, offers the service `hello`, waits for another service,
//! and calls it over mutual TLS.
//!
//! With a mesh running (`mesh dev`, or a server) and a token from `mesh join-token create` in the
//! environment, `embed <node name> <address of a node> <service to call>`:
//!
//! ```text
//! MESH_JOIN_TOKEN=mjt1.… cargo run -p examples --bin embed -- node-a 127.0.0.1:8301 hello
//! ```
//!
//! calls itself; another one under another name is called in turn. `mesh intention allow hello hello`
//! lets them (in `mesh dev` everything is allowed).

use anyhow::Context;
use libmesh::{
    mesh::{Config, Credentials, Mesh},
    model::{Instance, ServiceName},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: MESH_JOIN_TOKEN=… embed <node name> <address of a node> <service to call>";
    let mut arguments = std::env::args().skip(1);
    let (node, seed, target) = (
        arguments.next().context(usage)?,
        arguments.next().context(usage)?,
        arguments.next().context(usage)?,
    );
    let token = std::env::var("MESH_JOIN_TOKEN").context(usage)?.parse()?;

    // Join. The directory keeps who we are: the next start needs no token.
    let mesh = Mesh::start(Config {
        bind: "127.0.0.1:0".parse()?,
        directory: Some(std::env::temp_dir().join(format!("mesh-embed-{node}"))),
        seeds: vec![seed.parse()?],
        ..Config::new(node.parse()?, Credentials::Join(token))
    })
    .await?;

    // Offer a service: whoever calls and may call is greeted by name.
    let hello: ServiceName = "hello".parse()?;
    let mut listener = mesh.accept(&hello, "127.0.0.1:0".parse()?).await?;
    let port = listener.local_addr().port();
    mesh.register(Instance {
        mesh_port: Some(port),
        ..Instance::new(hello.clone(), port)?
    })?;
    tokio::spawn(async move {
        while let Some(mut call) = listener.accept().await {
            let greeting = format!("hello, {}\n", call.peer());
            tokio::spawn(async move {
                call.write_all(greeting.as_bytes()).await?;
                call.shutdown().await
            });
        }
    });

    // Watch another service until it is there, and call it.
    let target: ServiceName = target.parse()?;
    let changes = mesh.watch(&target);
    while mesh.resolve(&target).is_empty() {
        changes.changed_after(changes.revision()).await;
    }
    let mut call = mesh.connect(&hello, &target).await?;
    let mut answer = String::new();
    call.read_to_string(&mut answer).await?;
    println!("{} answers: {}", call.peer(), answer.trim_end());
    mesh.leave().await;
    Ok(())
}
