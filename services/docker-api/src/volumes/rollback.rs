//! A volume's snapshots in `docker volume inspect`, and the way back to one: `docker volume create -o rollback=SNAPSHOT NAME`.
//!
//! To create what is there already is no error in Docker, so creating is the one verb of its command line that can ask
//! something of a volume.

use super::{describe, find, users};
use crate::App;
use crate::errors::{Failure, Result};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use zone::Resource;
use zone::volume::{Rollback, Snapshot, Volume};

/// How long a rollback may take: two renames and a clone, on a busy pool.
const DONE: Duration = Duration::from_secs(120);

/// The field `Status`: what is used and which snapshots there are, the newest first; none when there is nothing to tell.
pub async fn status(app: &App, volume: &Resource<Volume>) -> Result<Option<Value>> {
    let mut snapshots: Vec<Resource<Snapshot>> = app.store.client.list::<Snapshot>().await?.items;
    snapshots.retain(|s| s.spec.volume.as_str() == volume.meta.name && s.status.ready);
    snapshots.sort_by_key(|s| std::cmp::Reverse((s.status.taken_ns, s.meta.name.clone())));
    if snapshots.is_empty() && volume.status.error.is_none() {
        return Ok(None);
    }
    let one = |s: &Resource<Snapshot>| {
        json!({
            "Name": short(&s.meta.name),
            "CreatedAt": crate::names::time(s.status.taken_ns),
            "UsedBytes": s.status.used_bytes,
            "Automatic": s.spec.automatic,
        })
    };
    Ok(Some(json!({
        "UsedBytes": volume.status.used_bytes,
        "Error": volume.status.error,
        "Snapshots": snapshots.iter().map(one).collect::<Vec<_>>(),
    })))
}

/// `VOLUME@NAME` without the volume.
fn short(name: &str) -> &str {
    name.split_once('@').map_or(name, |(_, short)| short)
}

/// Makes a volume what it was; answers as for a volume that is there already.
///
/// # Errors
/// 404 for a volume or snapshot that is not there, 409 while a container that uses the volume runs.
pub async fn rollback(app: &Arc<App>, name: &str, snapshot: &str) -> Result<Response> {
    let world = app.store.world();
    find(&world, name)?;
    let snapshot = short(snapshot);
    let wanted = format!("{name}@{snapshot}");
    if !app.store.client.list::<Snapshot>().await?.items.iter().any(|s| s.meta.name == wanted) {
        return Err(Failure::not_found(format!(
            "volume {name} has no snapshot {snapshot}; docker volume inspect {name} lists them"
        )));
    }
    let running: Vec<String> =
        users(&world, name).filter(crate::state::Container::is_active).map(|c| c.spec().name.clone()).collect();
    if !running.is_empty() {
        return Err(Failure::conflict(format!(
            "roll back {name}: volume is in use by running containers [{}]; stop them first",
            running.join(", ")
        )));
    }
    let mut request = 0;
    let ask = |spec: &mut zone::volume::VolumeSpec| {
        request = spec.rollback.as_ref().map_or(0, |r| r.request) + 1;
        spec.rollback = Some(Rollback { request, snapshot: snapshot.to_owned() });
        true
    };
    app.store.client.modify_spec::<Volume>(name, ask).await?;
    let done = app.store.wait(Some(DONE), |world| match world.volumes.get(name) {
        Some(volume) if volume.status.rolled_back.as_ref().is_some_and(|r| r.request >= request) => {
            Some(Some(volume.clone()))
        }
        Some(_) => None,
        None => Some(None),
    });
    let Some(volume) = done.await.flatten() else {
        return Err(Failure::unavailable(format!(
            "the rollback of {name} is not done yet; docker volume inspect shows it"
        )));
    };
    match volume.status.rolled_back.as_ref().and_then(|r| r.error.clone()) {
        Some(error) => Err(Failure::conflict(format!("roll back {name}: {error}"))),
        None => Ok((StatusCode::CREATED, Json(describe(&app.store.world(), &volume))).into_response()),
    }
}
