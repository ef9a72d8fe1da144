//! Every way in which a request can fail, and the answer each one gets.

use http::StatusCode;

/// A failed request. Messages name fields, paths and next steps, never values that were sent or stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request is wrong; the text says how.
    #[error("{0}")]
    BadRequest(String),
    /// A login whose credentials are wrong.
    #[error("{0}")]
    BadCredentials(&'static str),
    /// 400 with an empty error list (an unreadable `list=` parameter).
    #[error("bad request")]
    BadRequestSilent,
    /// No token, or one that is unknown or expired.
    #[error("permission denied")]
    Unauthenticated,
    /// A valid caller without the right.
    #[error("permission denied for an authenticated caller")]
    Denied,
    /// 403 with a text of its own.
    #[error("{0}")]
    Forbidden(String),
    /// Nothing there.
    #[error("not found")]
    NotFound,
    /// No mount at this path.
    #[error("no handler for route \"{0}\". route entry not found.")]
    NoMount(String),
    /// A namespace, of which there are none.
    #[error("namespace not found")]
    NoNamespace,
    /// The mount has no such path.
    #[error("unsupported path")]
    UnsupportedPath,
    /// The path exists but not for this operation.
    #[error("unsupported operation")]
    UnsupportedOperation,
    /// An HTTP method that is not part of the API.
    #[error("unknown method")]
    Method,
    /// PATCH without the merge-patch content type.
    #[error("PATCH requires Content-Type of application/merge-patch+json")]
    MediaType,
    /// A body over the limit.
    #[error("http: request body too large")]
    TooLarge,
    /// More requests than a quota allows.
    #[error("request path \"{0}\": rate limit quota exceeded")]
    TooMany(String),
    /// More leases than a quota allows.
    #[error("request path \"{0}\": lease count quota exceeded")]
    TooManyLeases(String),
    /// The store is sealed.
    #[error("Vault is sealed")]
    Sealed,
    /// Something the request needs is not available just now; the text says what.
    #[error("{0}")]
    Unavailable(String),
    /// A failure on our side.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// A 400 with a message.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::BadRequest(message.into())
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::BadCredentials(_) | Self::BadRequestSilent => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthenticated | Self::Denied | Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NoMount(_) | Self::NoNamespace | Self::UnsupportedPath => {
                StatusCode::NOT_FOUND
            }
            Self::UnsupportedOperation | Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany(_) | Self::TooManyLeases(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Sealed | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The texts of the `errors` list. Four kinds keep the odd format that old clients match on.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::BadRequestSilent | Self::NotFound | Self::Method => Vec::new(),
            Self::Denied => vec![multi("permission denied")],
            Self::UnsupportedPath | Self::UnsupportedOperation | Self::TooManyLeases(_) => {
                vec![multi(&self.to_string())]
            }
            other => vec![other.to_string()],
        }
    }
}

/// The format of a one-item error list in Vault's answers.
pub(crate) fn multi(text: &str) -> String {
    format!("1 error occurred:\n\t* {text}\n\n")
}
