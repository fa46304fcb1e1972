//! `/distribution`: what a registry has under a name, without pulling it. The content store asks.

use crate::App;
use crate::errors::{Failure, Result};
use crate::names::Reference;
use crate::proxy::{encode, to_images};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use std::sync::Arc;

/// `GET /distribution/{name}/json`.
///
/// # Errors
/// 404 when the registry does not have it, 401 and 403 as it says.
pub async fn inspect(State(app): State<Arc<App>>, Path(rest): Path<String>, headers: HeaderMap) -> Result<Response> {
    let name = rest.strip_suffix("/json").ok_or_else(|| Failure::not_found("page not found"))?;
    let reference = Reference::parse(name)?.or_latest().full();
    to_images(&app, "GET", &format!("/distribution?image={}", encode(&reference)), &headers, Body::empty()).await
}
