//! Why a command failed, and the exit code that says so to scripts.

use std::{fmt, process::ExitCode};

use http::StatusCode;

use crate::http::client::ClientError;

/// Exit codes, after sysexits.h where it has one. 0 is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command could not do what was asked.
    Failed = 1,
    /// The remote is unreachable or refused; for `operator status`: sealed.
    Remote = 2,
    /// The command line makes no sense.
    Usage = 64,
    /// Not now; the same command may work later.
    Later = 75,
    /// Not allowed.
    Denied = 77,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A failed command: exit code, what failed, and what to do next.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    message: String,
    next: Option<String>,
}

impl Failure {
    /// A failure with a message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
            next: None,
        }
    }

    /// [`Exit::Failed`] with a message.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, message)
    }

    /// [`Exit::Usage`] with a message.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Only an exit code: everything was said already.
    pub fn silent(exit: Exit) -> Failure {
        Failure::new(exit, "")
    }

    /// Adds the command or action to try next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Failure {
        self.next = Some(next.into());
        self
    }

    /// Turns a remote's refusal of `what` into a failure.
    pub fn refused(what: &str, status: StatusCode, reason: &str) -> Failure {
        let reason = match reason.trim() {
            "" => status.canonical_reason().unwrap_or("no reason given"),
            reason => reason,
        };
        let message = format!("{what}: {reason}");
        match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failure::new(Exit::Denied, message)
                .next("use a token or an identity whose policy allows it"),
            StatusCode::SERVICE_UNAVAILABLE if reason.contains("sealed") => {
                Failure::new(Exit::Later, message).next("mesh operator unseal")
            }
            StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::GATEWAY_TIMEOUT => Failure::new(Exit::Later, message),
            StatusCode::NOT_FOUND => Failure::new(Exit::Failed, message),
            _ => Failure::new(
                Exit::Remote,
                format!("{message} (HTTP {})", status.as_u16()),
            ),
        }
    }

    /// Writes the failure to stderr.
    pub fn print(&self) {
        if !self.message.is_empty() {
            eprintln!("{self}");
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mesh: {}", self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let exit = match error {
            ClientError::Address(_) => Exit::Usage,
            ClientError::Roots { .. } | ClientError::Sink(_) => Exit::Failed,
            _ => Exit::Remote,
        };
        Failure::new(exit, error.to_string())
    }
}
