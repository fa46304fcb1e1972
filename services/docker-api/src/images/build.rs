//! `/build` and `/build/prune`: the content store builds. Its steps come back as containers through this API.
//!
//! BuildKit's own protocol (`/grpc`, `/session`) is not served; the answers say what to do instead.

use crate::App;
use crate::errors::{Failure, Result};
use crate::proxy::to_images;
use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

const NO_BUILDKIT: &str = "this engine has no BuildKit: set DOCKER_BUILDKIT=0 for docker build and docker compose build, \
     or build with `docker buildx create --use --driver docker-container`";

/// `POST /build`.
///
/// # Errors
/// 503 when the content store does not answer; what is wrong with the build comes in its answer.
pub async fn build(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let path = format!("/build?{}", query.unwrap_or_default());
    let mut response = to_images(&app, "POST", &path, &headers, body).await?;
    if response.status().is_success() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    Ok(response)
}

/// `POST /build/prune`.
///
/// # Errors
/// 503 when the content store does not answer.
pub async fn prune(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Json<Value>> {
    // Without `all` Docker keeps what images use; here images have their layers in any case.
    let answer = to_images(&app, "POST", "/build/prune?all=1", &headers, Body::empty()).await?;
    let answer = crate::agent::json(answer).await;
    let deleted = answer["CachesDeleted"].as_array().filter(|list| !list.is_empty());
    Ok(Json(json!({"CachesDeleted": deleted, "SpaceReclaimed": answer["SpaceReclaimed"]})))
}

/// `/grpc` and `/session`.
pub async fn buildkit() -> Failure {
    Failure::not_implemented(NO_BUILDKIT)
}

/// `POST /build/cancel`: builds of the classic kind end when their client leaves.
pub async fn cancel() -> axum::http::StatusCode {
    axum::http::StatusCode::OK
}
