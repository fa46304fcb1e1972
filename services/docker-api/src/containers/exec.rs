//! `/exec`: another process in a running container. The agent owns the execs; this service only knows where to ask.

use super::attach::size;
use crate::agent::{self, Upgrade};
use crate::errors::{Failure, Result};
use crate::events::Message;
use crate::filters::Params;
use crate::state::Container;
use crate::streams::{self, Framing};
use crate::version::ApiVersion;
use crate::{App, proxy};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError};
use tokio::io::AsyncWriteExt;
use zone::ContainerId;

/// How many execs are remembered; more are asked for at the agents.
const REMEMBERED: usize = 65536;
/// The largest body of a start.
const MAX_START: usize = 64 * 1024;

/// `POST /containers/{id}/exec`.
///
/// # Errors
/// 409 when the container does not run or is paused.
pub async fn create(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let config: Value = crate::body::json(&headers, &body)?.unwrap_or_default();
    let container = proxy::running(&app, &id)?;
    if container.status().paused {
        return Err(Failure::conflict(format!(
            "Container {} is paused, unpause the container before exec",
            container.id()
        )));
    }
    if config["Cmd"].as_array().is_none_or(Vec::is_empty) {
        return Err(Failure::invalid("No exec command specified"));
    }
    let answer = proxy::to_agent(&app, &container, "POST", "exec", None, Body::from(body)).await?;
    if answer.status() != StatusCode::CREATED {
        return Ok(answer);
    }
    let answer = agent::json(answer).await;
    let exec = answer["Id"].as_str().ok_or_else(|| Failure::internal("the agent named no exec"))?;
    let command: Vec<&str> = config["Cmd"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let command = command.join(" ");
    let action = format!("exec_create: {command}");
    remember(&app, exec, &container, command);
    app.events.send(Message::container(container.spec(), &action, &[("execID", exec.to_owned())]));
    Ok((StatusCode::CREATED, axum::Json(json!({ "Id": exec }))).into_response())
}

/// What is known of an exec without asking an agent.
#[derive(Clone, Debug)]
pub struct KnownExec {
    /// The container that it is in.
    pub container: ContainerId,
    /// Its words.
    pub command: String,
}

fn remember(app: &App, exec: &str, container: &Container, command: String) {
    let mut execs = app.execs.lock().unwrap_or_else(PoisonError::into_inner);
    if execs.len() >= REMEMBERED {
        execs.clear();
    }
    execs.insert(exec.to_owned(), KnownExec { container: container.id().clone(), command });
}

/// The container that an exec is in: remembered, else every running container's agent is asked.
async fn find(app: &App, exec: &str) -> Result<(Container, String)> {
    let absent = || Failure::not_found(format!("No such exec instance: {exec}"));
    if exec.is_empty() || !exec.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(absent());
    }
    let world = app.store.world();
    let known = app.execs.lock().unwrap_or_else(PoisonError::into_inner).get(exec).cloned();
    if let Some(known) = known
        && let Ok(container) = world.container(known.container.as_str())
        && container.is_running()
    {
        return Ok((container, known.command));
    }
    for container in world.containers().filter(Container::is_running) {
        let request = agent::request("GET", &format!("/exec/{exec}/json"), Body::empty())?;
        if let Ok(answer) = agent::pass(&app.agent_socket(&container), request).await
            && answer.status() == StatusCode::OK
        {
            let process = &agent::json(answer).await["ProcessConfig"];
            let words =
                [&process["entrypoint"]].into_iter().chain(process["arguments"].as_array().into_iter().flatten());
            let command = words.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
            remember(app, exec, &container, command.clone());
            return Ok((container, command));
        }
    }
    Err(absent())
}

/// `POST /exec/{id}/start`.
///
/// # Errors
/// 404 when there is no such exec.
pub async fn start(
    State(app): State<Arc<App>>,
    Path(exec): Path<String>,
    version: ApiVersion,
    mut request: Request,
) -> Result<Response> {
    let (container, command) = find(&app, &exec).await?;
    let upgrade = streams::upgrade_of(&mut request);
    let body = axum::body::to_bytes(request.into_body(), MAX_START)
        .await
        .map_err(|e| Failure::invalid(format!("invalid body: {e}")))?;
    let config: Value = if body.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(&body).map_err(|e| {
            let why = if e.is_eof() { "unexpected EOF".to_owned() } else { e.to_string() };
            Failure::invalid(format!("invalid JSON: {why}"))
        })?
    };
    let detach = config["Detach"].as_bool().unwrap_or_default();
    let start = agent::request("POST", &format!("/exec/{exec}/start"), Body::from(config.to_string()))?;
    let action = format!("exec_start: {command}");
    app.events.send(Message::container(container.spec(), &action, &[("execID", exec.clone())]));
    if detach {
        return agent::pass(&app.agent_socket(&container), start).await;
    }
    let raw = match agent::upgrade(&app.agent_socket(&container), start).await? {
        Upgrade::Raw(raw) => raw,
        Upgrade::Refused(answer) => return Ok(answer),
    };
    let content_type = Framing::of(config["Tty"].as_bool().unwrap_or_default()).content_type(version);
    let Some(upgrade) = upgrade else {
        // A client that cannot send input.
        let body = Body::from_stream(tokio_util::io::ReaderStream::new(raw));
        return Ok(streams::streaming(content_type, body));
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(client) => bridge(TokioIo::new(client), raw).await,
            Err(error) => tracing::debug!(%error, "a client broke off"),
        }
        tell_the_end(&app, &container, &exec).await;
    });
    Ok(streams::switching(content_type))
}

/// The output of an exec has ended: says how the process did, if it has ended too.
async fn tell_the_end(app: &App, container: &Container, exec: &str) {
    let Ok(request) = agent::request("GET", &format!("/exec/{exec}/json"), Body::empty()) else { return };
    let Ok(answer) = agent::pass(&app.agent_socket(container), request).await else { return };
    if let Some(code) = agent::json(answer).await["ExitCode"].as_i64() {
        let more = [("execID", exec.to_owned()), ("exitCode", code.to_string())];
        app.events.send(Message::container(container.spec(), "exec_die", &more));
    }
}

/// Copies both ways; each half is closed when its other end is. It is over when the process's output is.
async fn bridge(client: agent::Raw, process: agent::Raw) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_process, mut to_process) = tokio::io::split(process);
    let input = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_process).await;
        let _ = to_process.shutdown().await;
    });
    let _ = tokio::io::copy(&mut from_process, &mut to_client).await;
    let _ = to_client.shutdown().await;
    input.abort();
}

/// `POST /exec/{id}/resize`.
///
/// # Errors
/// 404 when there is no such exec.
pub async fn resize(State(app): State<Arc<App>>, Path(exec): Path<String>, params: Params) -> Result<Response> {
    let (height, width) = size(&params)?;
    let (container, _) = find(&app, &exec).await?;
    let request = agent::request("POST", &format!("/exec/{exec}/resize?h={height}&w={width}"), Body::empty())?;
    agent::pass(&app.agent_socket(&container), request).await
}

/// `GET /exec/{id}/json`.
///
/// # Errors
/// 404 when there is no such exec.
pub async fn inspect(State(app): State<Arc<App>>, Path(exec): Path<String>) -> Result<Response> {
    let (container, _) = find(&app, &exec).await?;
    let request = agent::request("GET", &format!("/exec/{exec}/json"), Body::empty())?;
    agent::pass(&app.agent_socket(&container), request).await
}
