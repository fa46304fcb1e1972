//! The one error that crosses a service's HTTP interface.

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a caller may branch on it. Each maps to one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400: the request itself is wrong.
    Invalid,
    /// 401: nobody known asked.
    Unauthorized,
    /// 403: known, but not allowed.
    Forbidden,
    /// 404: the thing named is not there.
    NotFound,
    /// 409: the thing is there already, changed meanwhile, or is in use.
    Conflict,
    /// 410: the revision asked for is no longer kept; list again.
    Gone,
    /// 413: larger than the limit.
    TooLarge,
    /// 500: our own fault.
    Internal,
    /// 503: something that is needed is not ready; trying again may help.
    Unavailable,
    /// 507: the disk is full.
    NoSpace,
}

impl ErrorKind {
    /// The HTTP status code (RFC 9110, RFC 4918 for 507).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Gone => 410,
            Self::TooLarge => 413,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::NoSpace => 507,
        }
    }

    /// The kind for an HTTP status; statuses that no kind has are `Internal`.
    #[must_use]
    pub fn from_status(status: u16) -> Self {
        match status {
            400 => Self::Invalid,
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            410 => Self::Gone,
            413 => Self::TooLarge,
            503 => Self::Unavailable,
            507 => Self::NoSpace,
            _ => Self::Internal,
        }
    }
}

/// An error as services send it to each other: the body of every answer whose status is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What callers branch on.
    pub kind: ErrorKind,
    /// What a person reads: names the thing, what is wrong and what to do.
    pub message: String,
}

impl ApiError {
    /// An error of `kind` with `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
