//! Files of a container: `archive`, `changes`, `export`. The agent of a running container answers; the host never reads
//! what a guest wrote on its disk.

use crate::App;
use crate::errors::{Failure, Result};
use crate::proxy;
use crate::state::Container;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use std::sync::Arc;

fn with_files(app: &App, id: &str) -> Result<Container> {
    let container = app.store.world().container(id)?;
    if container.is_running() {
        return Ok(container);
    }
    Err(Failure::not_implemented(format!(
        "container {} does not run, and its files can be reached only while it does; start it first",
        container.id().short()
    )))
}

/// `HEAD /containers/{id}/archive`.
///
/// # Errors
/// 501 when the container does not run.
pub async fn head(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Result<Response> {
    let container = with_files(&app, &id)?;
    proxy::to_agent(&app, &container, "HEAD", "archive", query.as_deref(), Body::empty()).await
}

/// `GET /containers/{id}/archive`.
///
/// # Errors
/// 501 when the container does not run.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Result<Response> {
    let container = with_files(&app, &id)?;
    proxy::to_agent(&app, &container, "GET", "archive", query.as_deref(), Body::empty()).await
}

/// `PUT /containers/{id}/archive`.
///
/// # Errors
/// 501 when the container does not run.
pub async fn put(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response> {
    let container = with_files(&app, &id)?;
    proxy::to_agent(&app, &container, "PUT", "archive", query.as_deref(), body).await
}

/// `GET /containers/{id}/changes`.
///
/// # Errors
/// 501 when the container does not run.
pub async fn changes(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    let container = with_files(&app, &id)?;
    proxy::to_agent(&app, &container, "GET", "changes", None, Body::empty()).await
}

/// `GET /containers/{id}/export`: the archive of the root folder.
///
/// # Errors
/// 501, for the agent's archive has its names below the folder's own.
pub async fn export(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    let container = with_files(&app, &id)?;
    Err(Failure::not_implemented(format!(
        "exporting a container is not supported yet; copy its files with `docker cp {}:/ -`",
        container.spec().name
    )))
}
