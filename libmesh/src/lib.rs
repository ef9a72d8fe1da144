//! Service mesh as a crate: who is in the mesh (SWIM), who offers what and how healthy it is (catalog and
//! checks), who is who (SPIFFE certificates, renewed under way), and connections between services over
//! mutual TLS that are allowed by intentions. It is what `mesh agent` runs on, and can be embedded alone:
//!
//! ```no_run
//! use libmesh::{mesh::Mesh, model::Instance};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mesh = Mesh::builder("node-1")
//!     .seed("10.0.0.1")
//!     .directory("/var/lib/my-app/node")
//!     .join_token(&std::env::var("MESH_JOIN_TOKEN")?)
//!     .start()
//!     .await?;
//! mesh.register(Instance::new("web".parse()?, 8080)?)?;
//! let database = mesh.connect(&"web".parse()?, &"db".parse()?).await?;
//! println!("connected to {}", database.peer());
//! # Ok(())
//! # }
//! ```
//!
//! The [`manual`] says how to join, register, watch, connect, what is guaranteed when things fail, and what can be tuned.
//! Runnable programs are in `examples/`.
//!
//! What a program needs:
//!
//! | module | what it is |
//! |---|---|
//! | [`mesh`] | all of it in one handle: start, register, resolve, watch, connect, accept, leave |
//! | [`model`] | plain types: names, nodes, instances |
//! | [`health`] | checks and their scheduler |
//! | [`watch`], [`catalog`] | what is offered: diffs, views, and how to choose among them |
//! | [`error`] | whom an error blames, and whether to retry |
//!
//! What it is made of, for those who put a node together themselves, as the binary `mesh` does (these change more often):
//!
//! | module | what it is |
//! |---|---|
//! | [`sync`] | how the records reach every node |
//! | [`member`] | who answers: SWIM without IO, and its UDP driver |
//! | [`identity`] | SPIFFE IDs, keys, certificates, trust |
//! | [`join`] | join tokens, the join, the node directory |
//! | [`bundle`] | signed configuration: intentions, revocations, roots |
//! | [`connect`] | balancer, dialler and acceptor of service connections |
//! | [`rpc`] | calls between nodes: HTTP/2 over mutual TLS |
//! | [`config`], [`files`] | the configuration behind [`mesh::Config`]; private files |
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
pub mod manual;
pub mod member;
pub mod mesh;
pub mod model;
pub mod rpc;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod sync;
pub mod watch;
