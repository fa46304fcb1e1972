//! Versions of the API: the `/v1.N` prefix, its limits, and the headers that every answer has.

use crate::errors::{Failure, NoRoute};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The newest version that is spoken: 1.51.
pub const MAX: u32 = 51;
/// The oldest version that is spoken: 1.24.
pub const MIN: u32 = 24;
/// What the engine calls itself: the release of Docker Engine whose API it speaks, and its own version.
pub const ENGINE: &str = concat!("28.5.2+kraudbox.", env!("CARGO_PKG_VERSION"));

/// The version that a request asked for, as the number after `1.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32);

impl<S: Send + Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(MAX)))
    }
}

/// Takes the version off the path and checks it; adds the headers that say what this engine is.
pub async fn negotiate(mut request: Request, next: Next) -> Response {
    let mut response = match strip(request.uri()) {
        Ok((version, uri)) => {
            *request.uri_mut() = uri;
            request.extensions_mut().insert(version);
            explain(next.run(request).await).await
        }
        Err(answer) => *answer,
    };
    // Docker tells less where it did not get as far as a handler.
    let unrouted = response.extensions_mut().remove::<NoRoute>().is_some();
    let refused = response.extensions_mut().remove::<RefusedVersion>().is_some();
    let headers = response.headers_mut();
    headers.insert("api-version", HeaderValue::from_static("1.51"));
    if !unrouted {
        headers.insert("ostype", HeaderValue::from_static("linux"));
    }
    if !unrouted && !refused {
        headers.insert("docker-experimental", HeaderValue::from_static("false"));
    }
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("Docker/28.5.2+kraudbox.", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    response
}

/// Errors of the framework get Docker's shape too.
async fn explain(response: Response) -> Response {
    let status = response.status();
    let json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return Failure::no_route();
    }
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body);
    let message = if text.is_empty() { status.canonical_reason().unwrap_or("error").into() } else { text.into_owned() };
    Failure { status, message }.into_response()
}

/// Marks the answer to a version that is not spoken.
#[derive(Clone, Copy, Debug)]
struct RefusedVersion;

fn refuse(text: String) -> Box<Response> {
    let mut response = Failure::invalid(text).into_response();
    response.extensions_mut().insert(RefusedVersion);
    Box::new(response)
}

fn strip(uri: &Uri) -> Result<(ApiVersion, Uri), Box<Response>> {
    let whole = (ApiVersion(MAX), uri.clone());
    let Some(rest) = uri.path().strip_prefix("/v") else { return Ok(whole) };
    let (version, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((major, minor)) = version.split_once('.') else { return Ok(whole) };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return Ok(whole) };
    if major < 1 || (major == 1 && minor < MIN) {
        return Err(refuse(format!(
            "client version {version} is too old. Minimum supported API version is 1.{MIN}, please upgrade your client to a newer version"
        )));
    }
    if major > 1 || minor > MAX {
        let text = format!("client version {version} is too new. Maximum supported API version is 1.{MAX}");
        return Err(refuse(text));
    }
    let target = match uri.query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    };
    match target.parse() {
        Ok(uri) => Ok((ApiVersion(minor), uri)),
        Err(_) => Err(Box::new(Failure::invalid("invalid path").into_response())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_taken_off_within_limits() {
        let (version, uri) = strip(&"/v1.44/containers/json?all=1".parse().unwrap()).unwrap();
        assert_eq!((version, uri.to_string().as_str()), (ApiVersion(44), "/containers/json?all=1"));
        let (version, uri) = strip(&"/volumes/v1.2".parse().unwrap()).unwrap();
        assert_eq!((version.0, uri.path()), (MAX, "/volumes/v1.2"));
        for wrong in ["/v1.20/info", "/v1.99/info", "/v2.0/info"] {
            assert_eq!(strip(&wrong.parse().unwrap()).unwrap_err().status(), 400, "{wrong}");
        }
    }
}
