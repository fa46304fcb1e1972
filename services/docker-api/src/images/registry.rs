//! `/v2/`: the zone as a registry, for CI and other zones. The content store serves it; who may come in is decided by this
//! service's doors, as for every other request.

use crate::App;
use crate::agent;
use crate::errors::Result;
use axum::extract::{Request, State};
use axum::response::Response;
use std::sync::Arc;

/// Any request below `/v2/`, with its headers, as it is.
///
/// # Errors
/// 503 when the content store does not answer.
pub async fn pass(State(app): State<Arc<App>>, mut request: Request) -> Result<Response> {
    for hop in ["connection", "transfer-encoding", "keep-alive", "upgrade"] {
        request.headers_mut().remove(hop);
    }
    agent::pass(&app.config.images_socket, request).await
}
