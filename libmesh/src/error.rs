//! What errors of this crate say beside their message: whom they blame, and whether trying again helps.
//!
//! Every error of an operation has `blame()` and `retry()`, so that a program decides without reading messages:
//!
//! ```
//! use libmesh::{error::Blame, mesh::MeshError};
//!
//! fn exit_code(error: &MeshError) -> u8 {
//!     match (error.blame(), error.retry().is_worthwhile()) {
//!         (_, true) => 75,                  // try later
//!         (Blame::Configuration, _) => 78,  // change the configuration
//!         _ => 1,
//!     }
//! }
//! ```
//!
//! Messages are for people: what failed, on what, and the next command to try. A message never repeats that of its
//! [`source`](std::error::Error::source): print the whole chain (`{:#}` of `anyhow`).

use std::{fmt, time::Duration};

/// Who can make it right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Blame {
    /// The call: an argument is wrong, or it came at a wrong time.
    Caller,
    /// The configuration of this node: a setting, its token, what its certificate allows.
    Configuration,
    /// This machine: a port, a file, its disk, its random numbers.
    Environment,
    /// Another node or service, or the network to it.
    Peer,
    /// The mesh's authority: who signs certificates and decides who may call whom.
    Authority,
}

impl Blame {
    /// One word for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Configuration => "configuration",
            Self::Environment => "environment",
            Self::Peer => "peer",
            Self::Authority => "authority",
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the same call may succeed although nobody changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retry {
    /// No: somebody has to change something first.
    No,
    /// Yes, nobody knows when; back off from a second or so.
    Later,
    /// Yes, not before this time has passed.
    After(Duration),
}

impl Retry {
    /// Whether to try again.
    pub fn is_worthwhile(self) -> bool {
        self != Self::No
    }

    /// The least time to wait, where it is known.
    pub fn after(self) -> Option<Duration> {
        match self {
            Self::After(wait) => Some(wait),
            Self::No | Self::Later => None,
        }
    }

    /// [`Later`](Self::Later) if `worthwhile`, else [`No`](Self::No).
    pub(crate) fn later_if(worthwhile: bool) -> Self {
        if worthwhile { Self::Later } else { Self::No }
    }
}

#[cfg(test)]
mod tests;
