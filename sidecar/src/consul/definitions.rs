//! Services and checks of configuration files in Consul's form: the same fields as registrations over HTTP, and read by
//! the same code.

use libmesh::{
    health::Check,
    model::{Instance, InstanceId},
};
use serde_json::Value;

use super::{Refused, agent_checks, agent_services, decode::Fields};

pub use agent_checks::Scripts;

/// An instance and its checks.
///
/// # Errors
/// What is wrong, in Consul's words.
pub fn service(body: Value, scripts: Scripts) -> Result<(Instance, Vec<Check>), Refused> {
    agent_services::parse(scripts, Fields::of(body)?)
}

/// A check, and the instance that it is of.
///
/// # Errors
/// What is wrong, in Consul's words.
pub fn check(body: Value, scripts: Scripts) -> Result<(Check, Option<InstanceId>), Refused> {
    agent_checks::alone(scripts, Fields::of(body)?)
}
