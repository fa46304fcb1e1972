//! `POST /containers/{id}/attach`: a client becomes a container's terminal, also before it starts.
//!
//! ```text
//! output:  log files ──> frames ──> client      from what is written after the request (logs=1: from the beginning)
//! input:   client ──> agent (once the pod runs) half close goes through
//! ```
//! Output comes from the log files, so nothing is lost when the container is over before the client reads.
//! It ends with the run's `exited` or `failed` record, or when the status says that the run is over.

use super::follow::{Baseline, Follower};
use crate::agent::{self, Upgrade};
use crate::errors::{Failure, Result};
use crate::events::Message;
use crate::filters::Params;
use crate::state::Container;
use crate::streams::{self, Framing};
use crate::version::ApiVersion;
use crate::{App, proxy};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::sync::mpsc;
use zone::log::{Data, Stream};
use zone::pod::Phase;

/// How long to try to reach the agent of a pod that runs.
const AGENT: Duration = Duration::from_secs(20);

/// What a client attaches to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    stdout: bool,
    stderr: bool,
    /// What was written before, too.
    logs: bool,
    /// What is written from now on.
    pub(super) stream: bool,
}

/// `POST /containers/{id}/attach`.
///
/// # Errors
/// 404 when there is no such container, 409 when it is paused.
pub async fn attach(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
    mut request: Request,
) -> Result<Response> {
    let container = app.store.world().container(&id)?;
    let framing = Framing::of(container.spec().tty);
    let Attached { wanted, baseline, follower, keys } = prepare(&app, &container, &params).await?;
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, io::Error>>(64);
    let output = output(follower, baseline, wanted, framing, sender);
    let Some(upgrade) = streams::upgrade_of(&mut request) else {
        tokio::spawn(output);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
        return Ok(streams::streaming(framing.content_type(version), body));
    };
    tokio::spawn(async move {
        let Ok(raw) = upgrade.await else { return };
        let (reader, mut writer) = tokio::io::split(TokioIo::new(raw));
        tokio::spawn(output);
        let (detach, detached) = tokio::sync::oneshot::channel();
        let input = tokio::spawn(async move {
            if wanted.stdin && wanted.stream {
                if input(&app, &container, baseline, &keys, reader).await {
                    let _ = detach.send(());
                }
            } else {
                // Keeps the half that is read, so that the connection stays whole.
                drop(drain(reader).await);
            }
        });
        let detached = async {
            if detached.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(detached);
        loop {
            let bytes = tokio::select! {
                bytes = receiver.recv() => bytes,
                () = &mut detached => break,
            };
            let Some(Ok(bytes)) = bytes else { break };
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        input.abort();
    });
    Ok(streams::switching(framing.content_type(version)))
}

/// What a client is attached to, from the moment of its request.
pub(super) struct Attached {
    pub(super) wanted: Wanted,
    pub(super) baseline: Baseline,
    pub(super) follower: Follower,
    /// What detaches it, in Docker's words; empty for the usual ones.
    pub(super) keys: String,
}

/// Takes the place in the log before the answer: what the client starts afterwards is all new.
///
/// # Errors
/// 409 when it is paused.
pub(super) async fn prepare(app: &App, container: &Container, params: &Params) -> Result<Attached> {
    if container.state() == "paused" {
        return Err(Failure::conflict(format!(
            "container {} is paused, unpause the container before attach",
            container.id()
        )));
    }
    let wanted = Wanted {
        stdin: params.flag("stdin") && container.spec().open_stdin,
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        logs: params.flag("logs"),
        stream: params.flag("stream"),
    };
    let baseline = Baseline::of(container);
    let follower = Follower::new(container.id().clone(), app.log_files(container), !wanted.logs, app.store.subscribe())
        .await
        .map_err(|e| Failure::internal(format!("cannot read the log of {}: {e}", container.id())))?;
    app.events.send(Message::container(container.spec(), "attach", &[]));
    let keys = params.get("detachKeys").unwrap_or_default().to_owned();
    Ok(Attached { wanted, baseline, follower, keys })
}

async fn drain(mut reader: impl AsyncRead + Unpin) -> io::Result<u64> {
    tokio::io::copy(&mut reader, &mut tokio::io::sink()).await
}

/// Sends output until the run is over or nobody reads it.
pub(super) async fn output(
    mut follower: Follower,
    baseline: Baseline,
    wanted: Wanted,
    framing: Framing,
    sender: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    if let Err(error) = send_output(&mut follower, baseline, wanted, framing, &sender).await {
        tracing::warn!(%error, "an attached log cannot be read");
    }
}

async fn send_output(
    follower: &mut Follower,
    baseline: Baseline,
    wanted: Wanted,
    framing: Framing,
    sender: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> io::Result<()> {
    // With the past included, the past's ends do not count.
    let mut in_past = wanted.logs;
    loop {
        let over = follower.container().is_none_or(|(now, gone)| gone || baseline.is_past(&now));
        let records = follower.read().await?;
        if records.is_empty() {
            in_past = false;
            if over || !wanted.stream {
                return Ok(());
            }
            tokio::select! {
                () = follower.changed() => {}
                () = sender.closed() => return Ok(()),
            }
            continue;
        }
        for record in records {
            match record.data.as_output() {
                Some((stream, bytes)) => {
                    let asked = match stream {
                        Stream::Stdout => wanted.stdout,
                        Stream::Stderr => wanted.stderr,
                    };
                    if asked && sender.send(Ok(framing.encode(stream, &bytes))).await.is_err() {
                        return Ok(());
                    }
                }
                None if matches!(record.data, Data::Exited { .. } | Data::Failed(_)) && !in_past && wanted.stream => {
                    return Ok(());
                }
                None => {}
            }
        }
    }
}

/// Brings the client's input to the container, from when it runs. True when the client has typed the keys that detach it.
pub(super) async fn input(
    app: &App,
    container: &Container,
    baseline: Baseline,
    keys: &str,
    mut reader: impl AsyncRead + Unpin,
) -> bool {
    let Some(mut agent) = connect(app, container, baseline, keys).await else {
        let _ = drain(reader).await;
        return false;
    };
    let (mut from_agent, mut to_agent) = tokio::io::split(&mut agent);
    // The agent sends nothing that was not asked for, but its end of the stream has to be read to learn that it closed.
    let copied = tokio::select! {
        copied = tokio::io::copy(&mut reader, &mut to_agent) => copied.map(|_| ()),
        _ = drain(&mut from_agent) => Err(io::ErrorKind::BrokenPipe.into()),
    };
    if copied.is_ok() {
        let _ = to_agent.shutdown().await;
        // The stream stays until the agent closes it: closing it whole could overtake the last bytes.
        let _ = drain(&mut from_agent).await;
    } else if runs(app, container).await {
        // The agent closed the stream of a container that goes on: only these keys make it.
        return container.spec().tty;
    } else {
        let _ = drain(reader).await;
    }
    false
}

/// Whether the container's process runs, by the agent's word.
async fn runs(app: &App, container: &Container) -> bool {
    let Ok(request) = agent::request("GET", "/v1/state", Body::empty()) else { return false };
    let socket = app.agent_socket(container);
    let answer = tokio::time::timeout(AGENT, agent::pass(&socket, request));
    let Ok(Ok(answer)) = answer.await else { return false };
    agent::json(answer).await["containers"][container.id().as_str()]["running"] == true
}

async fn connect(app: &App, container: &Container, baseline: Baseline, keys: &str) -> Option<agent::Raw> {
    let running = app.store.wait(None, |world| match world.container_even_gone(container.id()) {
        Some((now, false)) if matches!(now.pod.status.phase, Phase::Running | Phase::Stopping) => Some(true),
        Some((now, false)) if !baseline.is_past(&now) => None,
        _ => Some(false),
    });
    if !running.await? {
        return None;
    }
    let keys = proxy::encode(keys);
    let path = format!("/containers/{}/attach?stream=1&stdin=1&detachKeys={keys}", container.id());
    let deadline = tokio::time::Instant::now() + AGENT;
    loop {
        let request = agent::request("POST", &path, Body::empty()).ok()?;
        match agent::upgrade(&app.agent_socket(container), request).await {
            Ok(Upgrade::Raw(raw)) => return Some(raw),
            Ok(Upgrade::Refused(answer)) => {
                tracing::info!(container = %container.id(), status = answer.status().as_u16(), "the agent takes no input");
                return None;
            }
            Err(error) if tokio::time::Instant::now() > deadline => {
                tracing::warn!(container = %container.id(), %error, "the agent cannot be reached for input");
                return None;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        if app.store.world().container(container.id().as_str()).is_ok_and(|now| baseline.is_past(&now)) {
            return None;
        }
    }
}

/// `POST /containers/{id}/resize`.
///
/// # Errors
/// 409 when it does not run, 400 for sizes that are none.
pub async fn resize(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let (height, width) = size(&params)?;
    let container = proxy::running(&app, &id)?;
    proxy::to_agent(&app, &container, "POST", "resize", Some(&format!("h={height}&w={width}")), Body::empty()).await
}

/// A terminal's height and width.
///
/// # Errors
/// 400 when they are none.
pub fn size(params: &Params) -> Result<(u16, u16)> {
    let number = |name: &str| -> Result<u16> {
        let value = params.number(name)?.unwrap_or_default();
        u16::try_from(value)
            .map_err(|_| Failure::invalid(format!("invalid value {value} for {name}: a terminal has at most 65535")))
    };
    Ok((number("h")?, number("w")?))
}
