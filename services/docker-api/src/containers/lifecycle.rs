//! Start, stop, restart, kill, pause: what is wanted is written to the state engine, and the answer waits for what is.
//!
//! ```text
//! start:   desired = running, starts += 1     → answered by the first status with that `starts` that is running or exited
//! stop:    desired = stopped, stop_grace_s    → answered when exited
//! kill:    SIGKILL and the stop signal set desired = stopped first; others go to the agent only
//! ```

use crate::App;
use crate::agent;
use crate::errors::{Failure, Result};
use crate::events::Message;
use crate::filters::Params;
use crate::proxy;
use crate::state::{Container, World};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;
use zone::pod::{Desired, Phase, Pod, StartErrorKind};

/// How long a start may take before the client is told that it failed.
const START: Duration = Duration::from_secs(120);
/// How long an error of an endpoint or volume has to stand before it counts as this start's.
const ERROR_STANDS: Duration = Duration::from_secs(3);
/// How long a stop may take beyond the grace.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// `POST /containers/{id}/start`.
///
/// # Errors
/// 304 when it runs, 400 when its program cannot be started, 500 when something it needs fails.
pub async fn start(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode> {
    let container = app.store.world().container(&id)?;
    start_one(&app, &container).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a container and waits until it runs or has run.
///
/// # Errors
/// As [`start`].
pub async fn start_one(app: &App, container: &Container) -> Result<()> {
    if container.status().paused && container.is_running() {
        return Err(Failure::conflict("cannot start a paused container, try unpause instead"));
    }
    if matches!(container.pod.status.phase, Phase::Starting | Phase::Running)
        && container.pod.spec.desired == Desired::Running
    {
        return Err(Failure::not_modified());
    }
    let before = container.status().started_ns;
    let links = super::options::link_lines(&app.store.world(), container)?;
    let written = app
        .store
        .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
            spec.link_hosts.clone_from(&links);
            spec.desired = Desired::Running;
            spec.starts += 1;
            true
        })
        .await?;
    let starts = written.spec.starts;
    let outcome = app.store.wait(Some(START), |world| {
        let (now, _) = world.container_even_gone(container.id())?;
        let phase = now.pod.status.phase;
        (now.pod.status.starts >= starts && matches!(phase, Phase::Running | Phase::Exited | Phase::Restarting))
            .then_some(now)
    });
    let blocked = blocked_by(app, container, written.meta.revision);
    let outcome = tokio::select! {
        outcome = outcome => outcome,
        reason = blocked => {
            give_up(app, container).await;
            return Err(reason);
        }
    };
    let Some(now) = outcome else {
        let message =
            app.store.world().container(container.id().as_str()).ok().and_then(|c| c.pod.status.message.clone());
        give_up(app, container).await;
        return Err(Failure::internal(format!(
            "container {} did not start within {} seconds: {}",
            container.id(),
            START.as_secs(),
            message.unwrap_or_else(|| "nothing was reported".into())
        )));
    };
    judge(&now, before)
}

/// A start that was given up is not tried again; a container that removes itself is removed, as if it had run.
async fn give_up(app: &App, container: &Container) {
    let stopped = app.store.modify_spec::<Pod>(&container.pod.meta.name, |spec| {
        spec.desired = Desired::Stopped;
        true
    });
    if let Err(error) = stopped.await {
        tracing::warn!(%error, container = %container.id(), "cannot take a failed start back");
    }
    if container.pod.spec.auto_remove
        && wait_exited(app, container, Some(STOP_MARGIN)).await.is_some()
        && let Err(error) = super::remove::remove_one(app, container, true).await
    {
        tracing::warn!(%error, container = %container.id(), "cannot remove a container that did not start");
    }
}

/// Whether a pod that runs or has exited was started well.
fn judge(now: &Container, started_before: u64) -> Result<()> {
    let status = now.status();
    let pod = &now.pod.status;
    if matches!(pod.phase, Phase::Running | Phase::Restarting) {
        return Ok(());
    }
    if let Some(error) = status.error {
        return Err(start_failure(error.kind, &error.message, now.spec().args.first().map_or("", String::as_str)));
    }
    match &pod.message {
        Some(message) if status.started_ns == started_before => {
            Err(Failure::internal(format!("cannot start container {}: {message}", now.id())))
        }
        _ => Ok(()),
    }
}

/// The answer for a program that could not be started. The docker CLI makes exit code 127 of "executable file not
/// found" and "no such file or directory", 126 of "permission denied" and "is a directory".
fn start_failure(kind: StartErrorKind, message: &str, program: &str) -> Failure {
    let has = |texts: &[&str]| texts.iter().any(|t| message.contains(t));
    let text = match kind {
        StartErrorKind::NotFound if !has(&["executable file not found", "no such file or directory"]) => {
            format!("exec: \"{program}\": executable file not found in $PATH: {message}")
        }
        StartErrorKind::NotExecutable if !has(&["permission denied", "is a directory"]) => {
            format!("exec: \"{program}\": permission denied: {message}")
        }
        _ => message.to_owned(),
    };
    let text = format!("failed to create task for container: unable to start container process: {text}");
    match kind {
        StartErrorKind::NotFound | StartErrorKind::NotExecutable => Failure::invalid(text),
        StartErrorKind::Other => Failure::internal(text),
    }
}

/// Ends when an endpoint or volume of the pod cannot be made ready, with the reason.
async fn blocked_by(app: &App, container: &Container, since: u64) -> Failure {
    let mut seen: Option<(tokio::time::Instant, Failure)> = None;
    let mut changes = app.store.subscribe();
    loop {
        let found = block(&changes.borrow_and_update().clone(), container, since);
        match found {
            // An error written after the start is the start's; an older one may still be cleared.
            Some((failure, true)) => return failure,
            Some((failure, false)) => {
                let (first, _) = seen.get_or_insert_with(|| (tokio::time::Instant::now(), failure.clone()));
                let deadline = *first + ERROR_STANDS;
                tokio::select! {
                    () = tokio::time::sleep_until(deadline) => return failure,
                    _ = changes.changed() => {}
                }
            }
            None => {
                seen = None;
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// What stands in the way of a pod's start, and whether it was found after the revision `since`.
fn block(world: &World, container: &Container, since: u64) -> Option<(Failure, bool)> {
    let (container, _) = world.container_even_gone(container.id())?;
    for id in &container.pod.spec.endpoints {
        let Some(endpoint) = world.endpoints.get(id.as_str()) else { continue };
        if let Some(error) = &endpoint.status.error {
            let text = format!(
                "failed to set up container networking: driver failed programming external connectivity on endpoint {} ({id}): {error}",
                container.spec().name
            );
            return Some((Failure::internal(text), endpoint.meta.revision > since));
        }
    }
    for mount in &container.spec().mounts {
        let Some(volume) = mount.volume() else { continue };
        let Some(found) = world.volumes.get(volume.as_str()) else { continue };
        if let Some(error) = found.status.error.as_ref().filter(|_| !found.status.ready) {
            return Some((
                Failure::internal(format!("failed to mount volume {volume}: {error}")),
                found.meta.revision > since,
            ));
        }
    }
    None
}

/// `POST /containers/{id}/stop`.
///
/// # Errors
/// 304 when it does not run.
pub async fn stop(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<StatusCode> {
    let container = app.store.world().container(&id)?;
    if !container.is_active() {
        return Err(Failure::not_modified());
    }
    let grace = params.number("t")?.unwrap_or_else(|| default_grace(&container));
    let own = own_signal(&container);
    app.events.signal(container.spec(), params.get("signal").and_then(signal_number).unwrap_or(own), false);
    // Docker sends another signal than the container's own only once; pods sends the own one afterwards.
    if let Some(signal) = params.get("signal") {
        signal_agent(&app, &container, signal).await?;
    }
    stop_one(&app, &container, grace).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn default_grace(container: &Container) -> i64 {
    container.spec().docker["StopTimeout"].as_i64().unwrap_or(10)
}

/// Stops a container and waits until it has exited; at once when `grace` is 0, without limit when negative.
///
/// # Errors
/// 500 when it does not exit.
pub async fn stop_one(app: &App, container: &Container, grace: i64) -> Result<()> {
    let asked = app
        .store
        .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
            spec.desired = Desired::Stopped;
            spec.stop_grace_s = grace;
            true
        })
        .await;
    match asked {
        // It removed itself meanwhile.
        Err(error) if error.kind == zone::ErrorKind::NotFound => return Ok(()),
        other => drop(other?),
    }
    let limit = u64::try_from(grace).ok().map(|s| Duration::from_secs(s) + STOP_MARGIN);
    wait_exited(app, container, limit)
        .await
        .ok_or_else(|| Failure::internal(format!("cannot stop container: {}: it did not exit in time", container.id())))
}

async fn wait_exited(app: &App, container: &Container, limit: Option<Duration>) -> Option<()> {
    app.store
        .wait(limit, |world| match world.container_even_gone(container.id()) {
            Some((now, false)) if now.is_active() => None,
            _ => Some(()),
        })
        .await
}

/// `POST /containers/{id}/restart`.
///
/// # Errors
/// Those of stop and start.
pub async fn restart(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<StatusCode> {
    let container = app.store.world().container(&id)?;
    if container.is_active() {
        let grace = params.number("t")?.unwrap_or_else(|| default_grace(&container));
        app.events.signal(container.spec(), own_signal(&container), false);
        stop_one(&app, &container, grace).await?;
    }
    let container = app.store.world().container(container.id().as_str())?;
    start_one(&app, &container).await?;
    app.events.send(Message::container(container.spec(), "restart", &[]));
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/kill`.
///
/// # Errors
/// 409 when it does not run, 400 for an unknown signal.
pub async fn kill(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<StatusCode> {
    let container = app.store.world().container(&id)?;
    let signal = params.get("signal").unwrap_or("SIGKILL");
    let number = signal_number(signal).ok_or_else(|| Failure::invalid(format!("invalid signal: {signal}")))?;
    let not_running = || {
        let id = container.id();
        Failure::conflict(format!("cannot kill container: {id}: container {id} is not running"))
    };
    if !container.is_running() && container.pod.status.phase != Phase::Starting {
        return Err(not_running());
    }
    let own = own_signal(&container);
    app.events.signal(container.spec(), number, number == SIGKILL || number == own);
    if number == SIGKILL {
        stop_one(&app, &container, 0).await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    if number == own {
        // The pod is to stop, without a limit to its patience: the reconciler sends the very same signal.
        app.store
            .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
                spec.desired = Desired::Stopped;
                spec.stop_grace_s = -1;
                true
            })
            .await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    signal_agent(&app, &container, &number.to_string()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The signal that stops it.
fn own_signal(container: &Container) -> u32 {
    signal_number(&container.spec().stop_signal).unwrap_or(SIGTERM)
}

async fn signal_agent(app: &App, container: &Container, signal: &str) -> Result<()> {
    let query = format!("signal={}", proxy::encode(signal));
    let response = proxy::to_agent(app, container, "POST", "kill", Some(&query), Body::empty()).await?;
    if response.status().is_success() {
        return Ok(());
    }
    let status = response.status();
    let message =
        agent::json(response).await["message"].as_str().unwrap_or("the agent did not take the signal").to_owned();
    Err(Failure { status, message })
}

/// The signal that nothing survives.
pub const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// A signal's number from `9`, `KILL` or `SIGKILL` (signal(7), x86).
#[must_use]
pub fn signal_number(signal: &str) -> Option<u32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = signal.parse::<u32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let plain = NAMES.iter().position(|n| *n == name).and_then(|i| u32::try_from(i + 1).ok());
    let realtime = |prefix: &str| {
        name.strip_prefix(prefix)
            .and_then(|rest| if rest.is_empty() { Some(0) } else { rest.get(1..).and_then(|n| n.parse::<u32>().ok()) })
    };
    plain
        .or_else(|| realtime("RTMIN").map(|n| 34 + n))
        .or_else(|| realtime("RTMAX").map(|n| 64u32.saturating_sub(n)))
        .filter(|n| (1..=64).contains(n))
}

/// `POST /containers/{id}/pause`.
///
/// # Errors
/// 409 when it does not run, or is paused already.
pub async fn pause(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    let container = proxy::running(&app, &id)?;
    if container.status().paused {
        return Err(Failure::conflict(format!("Container {} is already paused", container.id())));
    }
    let answer = proxy::to_agent(&app, &container, "POST", "pause", None, Body::empty()).await?;
    mark_paused(&app, &container, answer.status(), true).await;
    Ok(answer)
}

/// `POST /containers/{id}/unpause`.
///
/// # Errors
/// 409 when it is not paused.
pub async fn unpause(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response> {
    let container = proxy::running(&app, &id)?;
    let answer = proxy::to_agent(&app, &container, "POST", "unpause", None, Body::empty()).await?;
    mark_paused(&app, &container, answer.status(), false).await;
    Ok(answer)
}

/// Only the agent knows whether processes are frozen, and only this service asks it to; so it notes the fact in the status.
async fn mark_paused(app: &App, container: &Container, answer: StatusCode, paused: bool) {
    if !answer.is_success() {
        return;
    }
    let noted = app.store.client.modify_status::<Pod>(&container.pod.meta.name, |status| {
        match status.containers.get_mut(container.id()) {
            Some(status) if status.paused != paused => {
                status.paused = paused;
                true
            }
            _ => false,
        }
    });
    match noted.await {
        Ok(_) => app.store.barrier().await,
        Err(error) => tracing::warn!(%error, container = %container.id(), "cannot note that a container is paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_errors_have_the_words_that_clients_look_for() {
        let failure = start_failure(StartErrorKind::NotFound, "not there", "nope");
        assert!(failure.status == 400 && failure.message.contains("executable file not found in $PATH"), "{failure}");
        let failure = start_failure(StartErrorKind::NotExecutable, "EACCES", "/etc");
        assert!(failure.message.contains("permission denied"), "{failure}");
        assert_eq!(start_failure(StartErrorKind::Other, "x", "y").status, 500);
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in [
            ("9", Some(9)),
            ("SIGTERM", Some(15)),
            ("usr1", Some(10)),
            ("RTMIN+1", Some(35)),
            ("NOPE", None),
            ("99", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
