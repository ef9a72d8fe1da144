//! Service mesh as a crate: who is in the mesh (SWIM), who offers what and how healthy it is (catalog and
//! checks), who is who (SPIFFE certificates, renewed under way), and connections between services over
//! mutual TLS that are allowed by intentions. It is what `mesh agent` runs on, and can be embedded alone:
//!
//! ```no_run
//! use libmesh::{mesh::{Config, Credentials, Mesh}, model::Instance};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let token = std::env::var("MESH_JOIN_TOKEN")?.parse()?;
//! let mut config = Config::new("node-1".parse()?, Credentials::Join(token));
//! config.bind = "10.0.0.7:8301".parse()?;
//! config.directory = Some("/var/lib/my-app/node".into());
//! config.seeds = vec!["10.0.0.1:8301".parse()?];
//! let mesh = Mesh::start(config).await?;
//! mesh.register(Instance::new("web".parse()?, 8080)?)?;
//! let database = mesh.connect(&"web".parse()?, &"db".parse()?).await?;
//! println!("connected to {}", database.peer());
//! # Ok(())
//! # }
//! ```
//!
//! A runnable program is `examples/embed`. Where to look:
//!
//! | module | what it is |
//! |---|---|
//! | [`mesh`] | all of it in one handle: start, register, resolve, watch, connect, accept, leave |
//! | [`model`] | plain types: names, nodes, instances, checks |
//! | [`catalog`], [`sync`] | the records of all nodes, and how they reach every node |
//! | [`member`] | who answers: SWIM without IO, and its UDP driver |
//! | [`health`] | checks and their scheduler |
//! | [`identity`] | SPIFFE IDs, keys, certificates, trust, rustls configurations |
//! | [`join`] | join tokens, the join, the node directory |
//! | [`bundle`] | signed configuration: intentions, revocations, roots |
//! | [`connect`] | balancer, dialler and acceptor of service connections |
//! | [`rpc`] | calls between nodes: HTTP/2 over mutual TLS |
//!
//! This crate knows nothing of secret storage, DNS, HTTP APIs or command lines.

pub mod bundle;
pub mod catalog;
pub mod config;
pub mod connect;
pub mod error;
pub mod files;
pub mod health;
pub mod identity;
pub mod join;
pub mod member;
pub mod mesh;
pub mod model;
pub mod rpc;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod sync;
pub mod watch;
