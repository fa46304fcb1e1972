//! Passing requests on: to a running container's agent, and to the content store.

use crate::errors::{Failure, Result};
use crate::state::Container;
use crate::{App, agent};
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::Response;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// A value for a query.
#[must_use]
pub fn encode(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

/// The container, if it runs.
///
/// # Errors
/// 404 when there is none, 409 when it does not run.
pub fn running(app: &App, key: &str) -> Result<Container> {
    let container = app.store.world().container(key)?;
    if container.is_running() {
        return Ok(container);
    }
    let state = container.state();
    Err(Failure::conflict(match state {
        "restarting" => format!("Container {} is restarting, wait until the container is running", container.id()),
        _ => format!("container {} is not running", container.id()),
    }))
}

/// Passes a request for `/containers/{id}/WHAT` on to the container's agent.
///
/// # Errors
/// 409 when the container does not run, 503 when its agent does not answer.
pub async fn to_agent(
    app: &App,
    container: &Container,
    method: &str,
    what: &str,
    query: Option<&str>,
    body: Body,
) -> Result<Response> {
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    let request = agent::request(method, &format!("/containers/{}/{what}{query}", container.id()), body)?;
    agent::pass(&app.agent_socket(container), request).await
}

/// Passes a request on to the content store, with the headers that it reads.
///
/// # Errors
/// 503 when the content store does not answer.
pub async fn to_images(app: &App, method: &str, path: &str, headers: &HeaderMap, body: Body) -> Result<Response> {
    let mut request = agent::request(method, path, body)?;
    for name in ["x-registry-auth", "x-registry-config", "content-type", "content-length", "content-encoding"] {
        if let Some(value) = headers.get(name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    agent::pass(&app.config.images_socket, request).await
}
