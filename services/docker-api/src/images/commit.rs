//! `/commit`: what a container changed becomes a layer on its image. The agent makes the layer, the content store the image.

use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names::Reference;
use crate::proxy::{encode, to_agent, to_images};
use crate::state::Container;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What of a container's configuration an image has.
const KEPT: [&str; 12] = [
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
];

/// `GET /containers/{id}/layer`: ours; what the container changed, as an image's layer.
///
/// # Errors
/// 404 when there is no such container.
pub async fn layer(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    crate::containers::with_files(&app, &id, "GET", "layer", None, Body::empty()).await
}

/// `POST /commit`.
///
/// # Errors
/// 404 when there is no such container, 400 for a name or change that is none.
pub async fn commit(State(app): State<Arc<App>>, params: Params, body: Bytes) -> Result<Response> {
    let key = params.get("container").ok_or_else(|| Failure::invalid("the parameter container is missing"))?;
    let container = app.store.world().container(key)?;
    let mut path = format!("/commit?base={}", encode(container.spec().image.as_str()));
    if let Some(repo) = params.get("repo") {
        let text = params.get("tag").map_or_else(|| repo.to_owned(), |tag| format!("{repo}:{tag}"));
        path += &format!("&ref={}", encode(&Reference::parse(&text)?.or_latest().full()));
    }
    for name in ["comment", "author"] {
        path += &params.get(name).map(|v| format!("&{name}={}", encode(v))).unwrap_or_default();
    }
    for change in params.all("changes").flat_map(str::lines) {
        path += &format!("&changes={}", encode(change));
    }
    path += &format!("&config={}", encode(&config(&container, &body)?));
    let frozen = container.is_running()
        && container.state() == "running"
        && params.get("pause").is_none_or(|p| !matches!(p, "0" | "false"));
    if frozen {
        to_agent(&app, &container, "POST", "pause", None, Body::empty()).await?;
    }
    let made = made(&app, &container, &path).await;
    if frozen && let Err(error) = to_agent(&app, &container, "POST", "unpause", None, Body::empty()).await {
        tracing::warn!(container = %container.id(), %error, "a container stays paused after a commit");
    }
    let response = made?;
    let status = response.status();
    if !status.is_success() {
        return Ok(response);
    }
    Ok((StatusCode::CREATED, response.into_body()).into_response())
}

async fn made(app: &Arc<App>, container: &Container, path: &str) -> Result<Response> {
    let layer = layer(State(app.clone()), Path(container.id().to_string())).await?;
    if !layer.status().is_success() {
        return Ok(layer);
    }
    to_images(app, "POST", path, &HeaderMap::new(), layer.into_body()).await
}

/// The container's configuration with what the client sent on top.
fn config(container: &Container, body: &[u8]) -> Result<String> {
    let sent: Value = if body.iter().all(u8::is_ascii_whitespace) {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?
    };
    let mut config = Map::new();
    for source in [&container.spec().docker, &sent] {
        let given =
            KEPT.iter().filter_map(|k| Some(((*k).to_owned(), source.get(*k).filter(|v| !is_empty(v))?.clone())));
        config.extend(given);
    }
    Ok(Value::Object(config).to_string())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
