//! Files of a container: `archive`, `changes`, `export`.
//!
//! The host never reads what a guest wrote on its disk. The agent of a running container answers; for one that does not run
//! `pods` starts a helper microVM with the same disks, which answers at the same socket and ends by itself when nobody has
//! asked for some seconds. A request holds its connection to the agent from before it is sent, so the helper cannot end
//! in between.

use crate::App;
use crate::agent::{self, Connection};
use crate::errors::{Failure, Result};
use crate::state::Container;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zone::pod::Pod;

/// How long a helper may take to answer.
const HELPER: Duration = Duration::from_secs(60);
/// How long to wait before a connection is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// A connection to an agent that has the container's files and answers.
async fn reach(app: &App, id: &str) -> Result<(Container, Connection)> {
    let id = app.store.world().container(id)?.id().clone();
    let deadline = Instant::now() + HELPER;
    loop {
        let container = app.store.world().container(id.as_str())?;
        if !container.is_running() && !container.pod.status.files.up {
            ask(app, &container).await?;
        }
        match connect(app, &container).await {
            Ok(connection) => return Ok((container, connection)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            // What was there is about to end, or what was asked for has no socket yet: the status tells, soon.
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Connects and waits for an answer, which says that the agent is there to stay as long as the connection.
async fn connect(app: &App, container: &Container) -> Result<Connection> {
    let answers = async {
        let mut connection = agent::connect(&app.agent_socket(container)).await?;
        connection.ask(agent::request("GET", "/v1/state", Body::empty())?).await?;
        Ok(connection)
    };
    tokio::time::timeout(HELPER, answers).await.unwrap_or_else(|_| {
        let id = container.id().short();
        Err(Failure::unavailable(format!("the agent of container {id} does not answer within {} s", HELPER.as_secs())))
    })
}

/// Asks `pods` for a helper and waits until there is one, or the container runs.
async fn ask(app: &App, container: &Container) -> Result<()> {
    let written = app
        .store
        .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
            spec.files_asks += 1;
            true
        })
        .await?;
    let asks = written.spec.files_asks;
    let answer = app.store.wait(Some(HELPER), |world| {
        let Some((now, false)) = world.container_even_gone(container.id()) else {
            return Some(Err(Failure::not_found(format!("No such container: {}", container.id()))));
        };
        let files = &now.pod.status.files;
        match &files.error {
            _ if now.is_running() => Some(Ok(())),
            Some(error) if files.asks >= asks => Some(Err(Failure::internal(format!(
                "cannot reach the files of container {}: {error}",
                container.id().short()
            )))),
            _ => (files.asks >= asks).then_some(Ok(())),
        }
    });
    answer.await.unwrap_or_else(|| {
        let id = container.id().short();
        Err(Failure::unavailable(format!("the files of container {id} could not be reached within {HELPER:?}")))
    })
}

/// Passes a request on to the agent that has the container's files, of its guest or of a helper.
///
/// # Errors
/// 404 when there is no such container, 503 when no agent answers.
pub async fn pass(app: &App, id: &str, method: &str, what: &str, query: Option<&str>, body: Body) -> Result<Response> {
    let (container, connection) = reach(app, id).await?;
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    connection.pass(agent::request(method, &format!("/containers/{}/{what}{query}", container.id()), body)?).await
}

/// `HEAD /containers/{id}/archive`.
///
/// # Errors
/// 404 when there is nothing at the path.
pub async fn head(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Result<Response> {
    pass(&app, &id, "HEAD", "archive", query.as_deref(), Body::empty()).await
}

/// `GET /containers/{id}/archive`.
///
/// # Errors
/// 404 when there is nothing at the path.
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Result<Response> {
    pass(&app, &id, "GET", "archive", query.as_deref(), Body::empty()).await
}

/// `PUT /containers/{id}/archive`.
///
/// # Errors
/// 404 when there is nothing at the path, 403 when it cannot be written.
pub async fn put(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response> {
    pass(&app, &id, "PUT", "archive", query.as_deref(), body).await
}

/// `GET /containers/{id}/changes`.
///
/// # Errors
/// 404 when there is no such container.
pub async fn changes(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    pass(&app, &id, "GET", "changes", None, Body::empty()).await
}

/// `GET /containers/{id}/export`.
///
/// # Errors
/// 404 when there is no such container.
pub async fn export(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    pass(&app, &id, "GET", "export", None, Body::empty()).await
}
