//! `/volumes`: named places that outlive containers.

mod rollback;

use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names::{self, seconds};
use crate::state::{Container, World};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use zone::pod::Mount;
use zone::volume::{Volume, VolumeAccess, VolumeSpec};
use zone::{ErrorKind, Resource, paths};

/// How long a new volume may take until the answer is sent without its being ready.
const READY: Duration = Duration::from_secs(10);

/// What the driver `local` takes.
const LOCAL_OPTIONS: [&str; 5] = ["device", "o", "size", "snapshots", "type"];

/// The routes of volumes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

/// Checks that there is such a volume driver.
///
/// # Errors
/// 404 when there is none.
pub fn check_driver(driver: &str) -> Result<()> {
    if ["local", "nfs", "lv2"].contains(&driver) {
        return Ok(());
    }
    let why = match driver {
        "gfs" => " (file locks between pods are not there yet; local and nfs volumes can be shared without them)",
        "lv" => " (there is no volume without snapshots and checksums; lv2 is a block device with both)",
        "red" => " (this zone has one pool; there is none of slow disks)",
        _ => "",
    };
    Err(Failure::not_found(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found{why}")))
}

/// The containers that use a volume.
pub fn users<'a>(world: &'a World, name: &'a str) -> impl Iterator<Item = Container> + 'a {
    world
        .containers()
        .filter(move |c| c.spec().mounts.iter().filter_map(Mount::volume).any(|volume| volume.as_str() == name))
}

/// Where a volume lies, as `inspect` says it.
#[must_use]
pub fn mountpoint(world: &World, name: &str) -> String {
    match world.volumes.get(name).and_then(|v| v.status.access.as_ref()) {
        Some(VolumeAccess::Directory { path }) => path.display().to_string(),
        Some(VolumeAccess::Block { device }) => device.display().to_string(),
        None => format!("{}/{name}", paths::VOLUMES),
    }
}

fn describe(world: &World, volume: &Resource<Volume>) -> Value {
    let map = |m: &BTreeMap<String, String>| if m.is_empty() { Value::Null } else { json!(m) };
    json!({
        "CreatedAt": names::time(seconds(volume.meta.created_ns) * 1_000_000_000),
        "Driver": volume.spec.driver,
        "Labels": map(&volume.spec.labels),
        "Mountpoint": mountpoint(world, &volume.meta.name),
        "Name": volume.meta.name,
        "Options": map(&volume.spec.options),
        "Scope": "local",
    })
}

/// A volume as it stands in `system/df`.
#[must_use]
pub fn with_usage(world: &World, volume: &Resource<Volume>) -> Value {
    let mut json = describe(world, volume);
    json["UsageData"] = json!({"RefCount": users(world, &volume.meta.name).count(), "Size": volume.status.used_bytes});
    json
}

fn find(world: &World, name: &str) -> Result<Arc<Resource<Volume>>> {
    world.volumes.get(name).cloned().ok_or_else(|| Failure::not_found(format!("get {name}: no such volume")))
}

async fn inspect(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>> {
    let world = app.store.world();
    let volume = find(&world, &name)?;
    let mut json = describe(&world, &volume);
    // What a driver says of a volume (VolumeDriver.Get); lists do not have it.
    if let Some(status) = rollback::status(&app, &volume).await? {
        json["Status"] = status;
    }
    Ok(Json(json))
}

async fn list(State(app): State<Arc<App>>, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["dangling", "driver", "label", "name"]).map_err(|failure| {
        let plain = failure.message == "invalid filter";
        if plain { Failure::invalid("error reading volume filters: invalid filter") } else { failure }
    })?;
    let dangling = filters.flag("dangling")?;
    let world = app.store.world();
    let volumes: Vec<Value> = world
        .volumes
        .values()
        .filter(|v| {
            dangling.is_none_or(|d| d == users(&world, &v.meta.name).next().is_none())
                && filters.any("driver", |d| d == v.spec.driver)
                && filters.any("name", |n| v.meta.name.contains(n))
                && filters.labels(|key| v.spec.labels.get(key).cloned())
        })
        .map(|v| describe(&world, v))
        .collect();
    Ok(Json(json!({"Volumes": volumes, "Warnings": null})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: Option<String>,
    driver: Option<String>,
    driver_opts: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let request: Create = crate::body::json(&headers, &body)?.unwrap_or_default();
    if request.cluster_volume_spec.is_some() {
        return Err(crate::system::no_swarm());
    }
    let driver = request.driver.filter(|d| !d.is_empty()).unwrap_or_else(|| "local".into());
    let (name, anonymous) = match request.name.filter(|n| !n.is_empty()) {
        Some(name) if name.len() == 1 => {
            return Err(Failure::invalid(format!(
                "create {name}: volume name is too short, names should be at least two alphanumeric characters"
            )));
        }
        Some(name) => (name, false),
        None => (names::new_id()?, true),
    };
    let of_volume = |failure: Failure| Failure { message: format!("create {name}: {}", failure.message), ..failure };
    check_driver(&driver).map_err(of_volume)?;
    names::volume_name(&name)?;
    let mut options = request.driver_opts.unwrap_or_default();
    if let Some(snapshot) = options.remove("rollback") {
        return rollback::rollback(&app, &name, &snapshot).await;
    }
    if let Some(unknown) = options.keys().find(|o| driver == "local" && !LOCAL_OPTIONS.contains(&o.as_str())) {
        return Err(Failure::invalid(format!("create {name}: invalid option: \"{unknown}\"")));
    }
    let mut labels = request.labels.unwrap_or_default();
    if anonymous {
        labels.insert("com.docker.volume.anonymous".into(), String::new());
    }
    if let Some(project) = app.scope.project() {
        if crate::project::of_area(&name).is_some_and(|owner| owner != project) {
            return Err(Failure::forbidden(format!("volume {name} is the file area of another project")));
        }
        labels.insert(crate::project::LABEL.into(), project.into());
    }
    let spec = VolumeSpec { driver, options, labels, anonymous, rollback: None };
    let volume = match app.store.client.create::<Volume>(&name, &spec).await {
        Ok(_) => ready(&app, &name).await?,
        // To create what is there already is no error, if it is the same.
        Err(error) if error.kind == ErrorKind::Conflict => {
            app.store.barrier().await;
            let found = find(&app.store.world(), &name)?;
            if found.spec.driver != spec.driver {
                return Err(Failure::conflict(format!(
                    "a volume with the name {name} already exists with the driver {}",
                    found.spec.driver
                )));
            }
            found
        }
        Err(error) => return Err(error.into()),
    };
    Ok((StatusCode::CREATED, Json(describe(&app.store.world(), &volume))).into_response())
}

/// Waits until a new volume is ready; one that cannot be is taken back.
async fn ready(app: &App, name: &str) -> Result<Arc<Resource<Volume>>> {
    app.store.barrier().await;
    let settled = app.store.wait(Some(READY), |world| match world.volumes.get(name) {
        Some(volume) if volume.status.ready || volume.status.error.is_some() => Some(Some(volume.clone())),
        Some(_) => None,
        None => Some(None),
    });
    match settled.await.flatten() {
        Some(volume) => match &volume.status.error {
            Some(error) if !volume.status.ready => {
                let message = format!("create {name}: {error}");
                app.store.client.delete::<Volume>(name).await?;
                Err(Failure::invalid(message))
            }
            _ => Ok(volume),
        },
        None => find(&app.store.world(), name),
    }
}

async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>, params: Params) -> Result<StatusCode> {
    let world = app.store.world();
    if let Err(failure) = find(&world, &name) {
        return if params.flag("force") { Ok(StatusCode::NO_CONTENT) } else { Err(failure) };
    }
    let users: Vec<String> = users(&world, &name).map(|c| c.id().to_string()).collect();
    if !users.is_empty() {
        return Err(Failure::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
    }
    app.store.transact(vec![zone::client::Operation::delete::<Volume>(&name)]).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(body: Bytes) -> Failure {
    drop(body);
    Failure::unavailable("volume update only valid for cluster volumes, but swarm is unavailable")
}

async fn prune(
    State(app): State<Arc<App>>,
    version: crate::version::ApiVersion,
    params: Params,
) -> Result<Json<Value>> {
    let filters = params.filters(&["all", "label", "label!"])?;
    // Before 1.42 named volumes were pruned too.
    let all = filters.flag("all")?.unwrap_or(version < crate::version::ApiVersion(42));
    let world = app.store.world();
    let (mut removed, mut reclaimed) = (Vec::new(), 0u64);
    for (name, volume) in &world.volumes {
        // A file area is its project's, used or not.
        let wanted = (all || volume.spec.anonymous)
            && crate::project::of_area(name).is_none()
            && users(&world, name).next().is_none()
            && filters.labels(|key| volume.spec.labels.get(key).cloned());
        if wanted {
            app.store.transact(vec![zone::client::Operation::delete::<Volume>(name)]).await?;
            reclaimed += volume.status.used_bytes;
            removed.push(name.clone());
        }
    }
    app.events.send(crate::events::Message::prune("volume", reclaimed));
    Ok(Json(json!({"VolumesDeleted": removed, "SpaceReclaimed": reclaimed})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/volume-1.51.json")).unwrap();
        let world = crate::containers::sample();
        crate::containers::same_keys("", &golden, &describe(&world, &world.volumes["gv"]), &[]);
    }
}
