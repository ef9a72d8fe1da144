//! DNS front end of the mesh.
//!
//! Answers `web.service.mesh` and its relatives from the catalog of a [`libmesh`] node and passes foreign names on
//! to configured resolvers. It reads the catalog and writes nothing.
//!
//! ```no_run
//! # async fn run(catalog: libmesh::catalog::Catalog) -> Result<(), dns::Error> {
//! use dns::{Config, DnsServer, Readiness};
//!
//! let server = DnsServer::bind(&Config::default(), catalog, Readiness::new(true))?;
//! println!("dig @{} web.service.mesh", server.local_addrs()[0]);
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! A request takes this way: a thread receives it on its own socket, [`wire`] reads it, the
//! [`responder`] finds a prepared answer or has the [`zone`] make one from the catalog, and [`wire::template`]
//! writes it out. What is not ours goes to an upstream on the runtime.

pub mod client;
pub mod config;
mod cookie;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod limit;
pub mod queries;
pub mod responder;
mod secured;
mod server;
pub mod stats;
mod sys;
pub mod wire;
pub mod zone;

use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;

/// Sends every datagram back as a response, with the loop that the server uses: what is left when nothing is answered.
/// For benchmarks; returns only when the socket fails.
#[doc(hidden)]
pub fn echo(socket: &UdpSocket) -> std::io::Result<()> {
    sys::serve(
        socket,
        &AtomicBool::new(false),
        responder::Responder::UDP_BUFFER,
        |request, _, reply| {
            if request.len() < 3 {
                return 0;
            }
            reply[..request.len()].copy_from_slice(request);
            reply[2] |= 0x80;
            request.len()
        },
    )
}

pub use config::{Config, Manner, RateLimit, ServiceTtl, TcpLimits, Ttl, Upstreams};
pub use queries::{PreparedQuery, Queries};
pub use responder::Readiness;
pub use secured::{Accept, Accepted, Secured};
pub use server::{DnsServer, Error, Explainer};
pub use stats::Counts;
pub use wire::name::{BadName, Domain};
pub use zone::explain::{Considered, Explanation};
pub use zone::virtual_ips::VirtualIps;
