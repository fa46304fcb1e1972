//! `DELETE /containers/{id}` and `POST /containers/prune`: the pod with its name, its endpoints and, if wanted, its anonymous
//! volumes go in one transaction.

use super::lifecycle;
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names::seconds;
use crate::state::{Container, World};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use zone::ErrorKind;
use zone::client::Operation;
use zone::endpoint::Endpoint;
use zone::pod::{ContainerName, Mount, Pod};
use zone::volume::Volume;

/// How often to try again when somebody else removes things at the same time.
const ATTEMPTS: u32 = 8;

/// `DELETE /containers/{id}`.
///
/// # Errors
/// 409 when it runs and `force` is not given.
pub async fn remove(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<StatusCode> {
    let container = app.store.world().container(&id)?;
    if params.flag("link") {
        return Err(Failure::invalid("there are no links"));
    }
    if container.is_active() {
        if !params.flag("force") {
            let hint = if container.state() == "paused" { "unpause and then stop" } else { "stop" };
            return Err(Failure::conflict(format!(
                "cannot remove container \"/{}\": container is {}: {hint} the container before removing or force remove",
                container.spec().name,
                container.state()
            )));
        }
        app.events.signal(container.spec(), lifecycle::SIGKILL, true);
        lifecycle::stop_one(&app, &container, 0).await?;
    }
    remove_one(&app, &container, params.flag("v")).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a container that does not run.
///
/// # Errors
/// Those of the state engine.
pub async fn remove_one(app: &App, container: &Container, volumes: bool) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let world = app.store.world();
        let Some((now, false)) = world.container_even_gone(container.id()) else { return Ok(()) };
        match app.store.transact(operations(&world, &now, volumes)).await {
            Ok(()) => return Ok(()),
            // Part of it is gone already: look again.
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => app.store.barrier().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict(format!("removal of container {} is already in progress", container.id())))
}

fn operations(world: &World, container: &Container, volumes: bool) -> Vec<Operation> {
    let pod = container.pod.meta.name.as_str();
    let mut operations = vec![Operation::delete::<Pod>(pod)];
    operations.extend(
        world
            .names
            .iter()
            .filter(|(_, n)| n.spec.pod.as_str() == pod)
            .map(|(name, _)| Operation::delete::<ContainerName>(name)),
    );
    operations.extend(
        world
            .endpoints
            .iter()
            .filter(|(_, e)| e.spec.pod.as_str() == pod)
            .map(|(id, _)| Operation::delete::<Endpoint>(id)),
    );
    for mount in container.spec().mounts.iter().filter(|_| volumes) {
        if let Mount::Volume { volume, anonymous: true, .. } = mount
            && world.volumes.contains_key(volume.as_str())
            && crate::volumes::users(world, volume.as_str()).all(|user| user.id() == container.id())
        {
            operations.push(Operation::delete::<Volume>(volume.as_str()));
        }
    }
    operations
}

/// `POST /containers/prune`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(State(app): State<Arc<App>>, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = filters.until()?;
    let (mut removed, mut bytes) = (Vec::new(), 0);
    for container in app.store.world().containers() {
        let label = |key: &str| container.spec().docker["Labels"][key].as_str().map(str::to_owned);
        let old = until.is_none_or(|u| seconds(container.pod.meta.created_ns) < seconds(u));
        if !container.is_active() && old && filters.labels(label) {
            bytes += super::size::own(&app, &container);
            // Volumes stay, the anonymous ones too: `volume prune` is for them.
            remove_one(&app, &container, false).await?;
            removed.push(container.id().clone());
        }
    }
    let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
    app.events.send(crate::events::Message::prune("container", bytes));
    Ok(Json(json!({"ContainersDeleted": removed, "SpaceReclaimed": bytes})))
}
