//! One look at something.

mod exec;
mod grpc;
mod h2ping;
mod http;
mod net;
mod systemd;
mod tcp;
mod tls;
mod udp;

pub use exec::ExecProbe;
pub use grpc::GrpcProbe;
pub use h2ping::H2PingProbe;
pub use http::HttpProbe;
pub use systemd::SystemdProbe;
pub use tcp::TcpProbe;
pub use tls::ProbeTls;
pub use udp::UdpProbe;

use crate::identity::BoxFuture;
use crate::model::Health;

/// Output kept unless a check says otherwise, in bytes.
pub(super) const OUTPUT_MAX: usize = 4096;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Passing, warning or critical.
    pub health: Health,
    /// For people; cut to the check's [`output_max`](super::Check::output_max).
    pub output: String,
}

impl ProbeResult {
    /// A success.
    pub fn passing(output: impl Into<String>) -> Self {
        Self {
            health: Health::Passing,
            output: output.into(),
        }
    }

    /// A failure.
    pub fn critical(output: impl Into<String>) -> Self {
        Self {
            health: Health::Critical,
            output: output.into(),
        }
    }

    /// Passing when it went well, critical when not.
    fn of(result: Result<String, String>) -> Self {
        match result {
            Ok(output) => Self::passing(output),
            Err(output) => Self::critical(output),
        }
    }
}

/// Something to look at. A look that takes longer than the check's timeout is dropped and counts as a failure.
pub trait Probe: Send + Sync {
    /// Word for the kind of check (`http`, `tcp`, …).
    fn kind(&self) -> &'static str;

    /// What it looks at, as far as the probe can say. A check that is registered again and looks at something else is not
    /// held to how often it changed before. Default empty: the same as ever.
    fn target(&self) -> String {
        String::new()
    }

    /// Looks once.
    fn probe(&self) -> BoxFuture<'_, ProbeResult>;

    /// Whether a look starts a process; fewer of those are under way at once. Default false.
    fn starts_process(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
