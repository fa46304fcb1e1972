//! `docker rmi` and `docker image prune`.
//!
//! An image that a container uses keeps its resource, whatever is forced: the container's disk is made of it.

use super::find_or_refresh;
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names::{Reference, familiar, seconds};
use crate::state::{Container, World};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use zone::Resource;
use zone::client::Operation;
use zone::image::Image;

/// The containers that use an image.
pub fn in_use_by<'a>(world: &'a World, image: &'a Resource<Image>) -> impl Iterator<Item = Container> + 'a {
    world.containers().filter(|c| c.spec().image.as_str() == image.meta.name)
}

fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// `DELETE /images/{name}`.
///
/// # Errors
/// 409 when a container uses it, or it has several names.
pub async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>, params: Params) -> Result<Json<Value>> {
    let force = params.flag("force");
    for _ in 0..8 {
        let image = find_or_refresh(&app, &name).await?;
        let world = app.store.world();
        let steps = plan(&world, &image, &name, force)?;
        let mut operations = Vec::new();
        if steps.delete {
            operations.push(Operation::Delete {
                kind: "image".into(),
                name: image.meta.name.clone(),
                revision: Some(image.meta.revision),
            });
        } else {
            let mut spec = image.spec.clone();
            spec.tags.retain(|t| !steps.untag.contains(t));
            operations.push(Operation::update_spec::<Image>(&image, &spec)?);
        }
        match app.store.transact(operations).await {
            Ok(()) => return Ok(Json(steps.answer(&world, &image))),
            Err(error) if error.kind == zone::ErrorKind::Conflict => app.store.barrier().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict(format!("{name} is being changed by somebody else; try again")))
}

#[derive(Debug, Default)]
struct Steps {
    untag: Vec<String>,
    delete: bool,
}

impl Steps {
    fn answer(&self, world: &World, image: &Resource<Image>) -> Value {
        let mut list: Vec<Value> = self.untag.iter().map(|t| json!({"Untagged": familiar(t)})).collect();
        if self.delete {
            list.extend(image.spec.repo_digests.iter().map(|d| json!({"Untagged": familiar(d)})));
            list.push(json!({"Deleted": image.meta.name}));
            let others: BTreeSet<&str> = world
                .images
                .values()
                .filter(|i| i.meta.name != image.meta.name)
                .flat_map(|i| i.status.layers.iter().map(|l| l.id.as_str()))
                .collect();
            list.extend(
                image
                    .status
                    .layers
                    .iter()
                    .rev()
                    .filter(|l| !others.contains(l.id.as_str()))
                    .map(|l| json!({"Deleted": l.id})),
            );
        }
        Value::Array(list)
    }
}

/// What removing `image`, which the user called `name`, means.
fn plan(world: &World, image: &Resource<Image>, name: &str, force: bool) -> Result<Steps> {
    let tag = Reference::parse(name).ok().map(|r| r.or_latest().full()).filter(|full| image.spec.tags.contains(full));
    let users: Vec<Container> = in_use_by(world, image).collect();
    let running = users.iter().find(|c| c.is_active());
    if let Some(tag) = tag {
        if image.spec.tags.len() > 1 {
            return Ok(Steps { untag: vec![tag], delete: false });
        }
        if let Some(user) = running.or(users.first()).filter(|_| !force) {
            return Err(Failure::conflict(format!(
                "conflict: unable to remove repository reference \"{name}\" (must force) - container {} is using its referenced image {}",
                user.id().short(),
                short(&image.meta.name)
            )));
        }
        return Ok(Steps { untag: vec![tag], delete: users.is_empty() });
    }
    let refuse = |how: &str, why: String| {
        Failure::conflict(format!("conflict: unable to delete {} ({how}) - {why}", short(&image.meta.name)))
    };
    if let Some(user) = running {
        return Err(refuse(
            "cannot be forced",
            format!("image is being used by running container {}", user.id().short()),
        ));
    }
    let repositories: BTreeSet<&str> =
        image.spec.tags.iter().filter_map(|t| t.rsplit_once(':')).map(|(repository, _)| repository).collect();
    if repositories.len() > 1 && !force {
        return Err(refuse("must be forced", "image is referenced in multiple repositories".into()));
    }
    match users.first() {
        Some(user) if !force => {
            Err(refuse("must be forced", format!("image is being used by stopped container {}", user.id().short())))
        }
        user => Ok(Steps { untag: image.spec.tags.clone(), delete: user.is_none() }),
    }
}

/// `POST /images/prune`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(State(app): State<Arc<App>>, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["dangling", "label", "label!", "until"])?;
    let (dangling, until) = (filters.flag("dangling")?.unwrap_or(true), filters.until()?);
    let world = app.store.world();
    let (mut deleted, mut reclaimed) = (Vec::new(), 0u64);
    for image in world.images.values() {
        let labels = &image.status.config["config"]["Labels"];
        let wanted = (!dangling || image.spec.tags.is_empty())
            && until.is_none_or(|u| u64::try_from(super::created_seconds(image)).unwrap_or_default() < seconds(u))
            && filters.labels(|key| labels[key].as_str().map(str::to_owned))
            && in_use_by(&world, image).next().is_none();
        if !wanted {
            continue;
        }
        let delete = Operation::Delete {
            kind: "image".into(),
            name: image.meta.name.clone(),
            revision: Some(image.meta.revision),
        };
        match app.store.transact(vec![delete]).await {
            Ok(()) => {
                reclaimed += image.status.size;
                let steps = Steps { untag: image.spec.tags.clone(), delete: true };
                deleted.extend(steps.answer(&world, image).as_array().cloned().unwrap_or_default());
            }
            Err(error) => tracing::info!(%error, image = image.meta.name, "not pruned"),
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { Value::Array(deleted) };
    app.events.send(crate::events::Message::prune("image", reclaimed));
    Ok(Json(json!({"ImagesDeleted": deleted, "SpaceReclaimed": reclaimed})))
}
