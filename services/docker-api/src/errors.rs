//! What the API answers when something is wrong: a status and `{"message":"…"}`.
//!
//! Owns the mapping from the zone's errors to Docker's classes. Must not know any endpoint.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use zone::{ApiError, ErrorKind};

/// The result of a handler.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// An error answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The HTTP status.
    pub status: StatusCode,
    /// What a person reads.
    pub message: String,
}

/// Marks the answer for a path that the API does not have: it has fewer headers.
#[derive(Clone, Copy, Debug)]
pub struct NoRoute;

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403: it may not be done.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: what is named is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: it is in use, or in another state than needed.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500: it did not work.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: this engine cannot do it.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 503: something needed is not ready.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The answer for a path that the API does not have.
    #[must_use]
    pub fn no_route() -> Response {
        let mut response = Self::not_found("page not found").into_response();
        response.extensions_mut().insert(NoRoute);
        response
    }

    /// 304: nothing to do; has no body.
    pub fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, "")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), message = %self.message, "request failed");
        }
        let body = serde_json::json!({ "message": self.message }).to_string();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let status = match error.kind {
            ErrorKind::Gone => StatusCode::INTERNAL_SERVER_ERROR,
            kind => StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        Self { status, message: error.message }
    }
}
