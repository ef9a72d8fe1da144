//! Plain types that every part of the mesh speaks: names, nodes, instances, checks.
//!
//! They are *parsed, not validated*: a [`ServiceName`] that exists is well formed and lower-cased, wherever it came
//! from (a config file, an HTTP body, a peer's record). Types with free-form parts have a `validate` that is called
//! once at each border. Every error names the field.
//!
//! This module knows nothing of the network, of time or of other modules.

mod address;
mod builder;
mod check;
pub(crate) mod checked;
mod error;
mod instance;
mod kind;
pub mod limits;
mod locality;
mod meta;
mod names;
mod node;

pub use address::{Host, NamedPort, TaggedAddress};
pub use builder::InstanceBuilder;
pub use check::{CheckRecord, Health};
pub use error::InvalidField;
pub(crate) use instance::check_meta;
pub use instance::{Instance, Weights};
pub use kind::{Class, Kind, Proxy};
pub use locality::Locality;
pub use meta::Meta;
pub use names::{Datacenter, InstanceId, NodeName, ServiceName};
pub use node::{External, Liveness, NodeId, NodeRecord, Roles};

#[cfg(test)]
mod tests;
