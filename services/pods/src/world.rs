//! A copy of the resources that pods are made of, kept up to date by a watch.
//!
//! Invariant: nothing is told before the copy is complete, and every change is told once, with the pods that it
//! concerns. Must not: decide anything about pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use zone::client::{Changes, Client, Event};
use zone::endpoint::Endpoint;
use zone::image::Image;
use zone::pod::{Mount, Pod};
use zone::volume::Volume;
use zone::{ApiError, EndpointId, ErrorKind, ImageId, Kind, PodId, Resource, VolumeName};

type Kept<K> = BTreeMap<String, Arc<Resource<K>>>;

/// The resources, as last told.
#[derive(Debug, Default)]
pub struct World {
    pods: Kept<Pod>,
    endpoints: Kept<Endpoint>,
    volumes: Kept<Volume>,
    images: Kept<Image>,
}

/// A pod with what belongs to it.
#[derive(Clone, Debug)]
pub struct View {
    /// The pod.
    pub pod: Arc<Resource<Pod>>,
    /// Those of its endpoints that are there.
    pub endpoints: BTreeMap<EndpointId, Arc<Resource<Endpoint>>>,
    /// Those of its volumes that are there.
    pub volumes: BTreeMap<VolumeName, Arc<Resource<Volume>>>,
    /// Those of its images that are there.
    pub images: BTreeMap<ImageId, Arc<Resource<Image>>>,
}

fn volumes_of(pod: &Resource<Pod>) -> impl Iterator<Item = &VolumeName> {
    pod.spec.containers.iter().flat_map(|c| &c.mounts).filter_map(Mount::volume)
}

fn images_of(pod: &Resource<Pod>) -> impl Iterator<Item = &ImageId> {
    pod.spec.containers.iter().flat_map(|c| {
        c.mounts
            .iter()
            .filter_map(|m| if let Mount::Image { image, .. } = m { Some(image) } else { None })
            .chain([&c.image])
    })
}

impl World {
    /// The pods' names.
    pub fn pods(&self) -> impl Iterator<Item = PodId> {
        self.pods.keys().map(|name| PodId::new(name.clone()))
    }

    /// A pod with what belongs to it; none when there is no such pod.
    #[must_use]
    pub fn view(&self, pod: &PodId) -> Option<View> {
        let pod = self.pods.get(pod.as_str())?.clone();
        let pick = |id: &EndpointId| Some((id.clone(), self.endpoints.get(id.as_str())?.clone()));
        let endpoints = pod.spec.endpoints.iter().filter_map(pick).collect();
        let volumes =
            volumes_of(&pod).filter_map(|v| Some((v.clone(), self.volumes.get(v.as_str())?.clone()))).collect();
        let images = images_of(&pod).filter_map(|i| Some((i.clone(), self.images.get(i.as_str())?.clone()))).collect();
        Some(View { pod, endpoints, volumes, images })
    }

    /// Takes a transaction's changes in, and names the pods that they concern.
    pub fn take(&mut self, changes: &Changes) -> BTreeSet<PodId> {
        changes.events.iter().flat_map(|event| self.take_one(event)).collect()
    }

    fn take_one(&mut self, event: &Event) -> Vec<PodId> {
        let name = event.name();
        let changed = match event.kind() {
            Pod::NAME => put(&mut self.pods, event, name),
            Endpoint::NAME => put(&mut self.endpoints, event, name),
            Volume::NAME => put(&mut self.volumes, event, name),
            Image::NAME => put(&mut self.images, event, name),
            _ => false,
        };
        if !changed {
            return Vec::new();
        }
        match event.kind() {
            Pod::NAME => vec![PodId::new(name)],
            Endpoint::NAME => self.pods_that(|p| p.spec.endpoints.iter().any(|e| e.as_str() == name)),
            Volume::NAME => self.pods_that(|p| volumes_of(p).any(|v| v.as_str() == name)),
            _ => self.pods_that(|p| images_of(p).any(|i| i.as_str() == name)),
        }
    }

    fn pods_that(&self, test: impl Fn(&Resource<Pod>) -> bool) -> Vec<PodId> {
        self.pods.iter().filter(|(_, pod)| test(pod)).map(|(name, _)| PodId::new(name.clone())).collect()
    }

    /// Reads everything anew; the revision to watch from.
    async fn list(client: &Client) -> Result<(Self, u64), ApiError> {
        let (pods, endpoints) = (client.list::<Pod>().await?, client.list::<Endpoint>().await?);
        let (volumes, images) = (client.list::<Volume>().await?, client.list::<Image>().await?);
        let revision = pods.revision.min(endpoints.revision).min(volumes.revision).min(images.revision);
        let world = Self {
            pods: keep(pods.items),
            endpoints: keep(endpoints.items),
            volumes: keep(volumes.items),
            images: keep(images.items),
        };
        Ok((world, revision))
    }
}

fn keep<K: Kind>(items: Vec<Resource<K>>) -> Kept<K> {
    items.into_iter().map(|r| (r.meta.name.clone(), Arc::new(r))).collect()
}

/// Whether the event changed anything: what is told again, or late, does not.
fn put<K: Kind>(kept: &mut Kept<K>, event: &Event, name: &str) -> bool {
    let held = kept.get(name).map(|r| r.meta.revision);
    match event {
        Event::Put { .. } => match event.resource::<K>() {
            Some(new) if held.is_none_or(|held| held < new.meta.revision) => {
                kept.insert(name.to_owned(), Arc::new(new));
                true
            }
            Some(_) => false,
            None => {
                tracing::error!(kind = K::NAME, name, "cannot read a resource; it is left aside");
                false
            }
        },
        Event::Delete { revision, .. } => held.is_some_and(|held| held <= *revision) && kept.remove(name).is_some(),
    }
}

/// Follows the state engine until its database is another one than `zone`'s. `tell` is called with the complete copy at first, and again after each change, with
/// the pods concerned; after a gap, all that were and all that are.
pub async fn follow(client: Client, zone: &str, mut tell: impl FnMut(&World, BTreeSet<PodId>)) {
    let mut pause = Duration::from_millis(50);
    let mut known = BTreeSet::new();
    loop {
        let listed = match client.zone_id().await {
            Ok(id) if id == zone => World::list(&client).await,
            // To this copy every pod would be gone.
            Ok(id) => {
                tracing::error!(zone, now = id, "the state engine's database is another one than before");
                return;
            }
            Err(error) => Err(error),
        };
        let error = match listed {
            Ok((mut world, revision)) => {
                pause = Duration::from_millis(50);
                known.extend(world.pods());
                let result = follow_from(&client, &mut world, revision, &mut known, &mut tell).await;
                known = world.pods().collect();
                result
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "the state engine is away");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Follows from `revision` on; returns when the resources must be listed again.
async fn follow_from(
    client: &Client,
    world: &mut World,
    revision: u64,
    known: &mut BTreeSet<PodId>,
    tell: &mut impl FnMut(&World, BTreeSet<PodId>),
) -> ApiError {
    let kinds = [Pod::NAME, Endpoint::NAME, Volume::NAME, Image::NAME];
    let mut complete = false;
    let mut watch = match client.watch(&kinds, revision).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    loop {
        let changes = match watch.next().await {
            Ok(Some(changes)) => changes,
            Ok(None) => return ApiError::new(ErrorKind::Unavailable, "a watch has ended"),
            Err(error) => return error,
        };
        let concerned = world.take(&changes);
        if complete {
            if !concerned.is_empty() {
                tell(world, concerned);
            }
        } else if changes.events.is_empty() {
            complete = true;
            known.extend(world.pods());
            tell(world, std::mem::take(known));
        } else {
            known.extend(concerned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, name: &str, revision: u64, spec: &serde_json::Value) -> Changes {
        let meta = json!({"kind": kind, "name": name, "revision": revision, "generation": 1, "created_ns": 1});
        let event = Event::Put { revision, object: json!({"meta": meta, "spec": spec}) };
        Changes { revision, events: vec![event] }
    }

    fn pod(name: &str, revision: u64, volume: &str) -> Changes {
        let mount = json!({"type": "volume", "volume": volume, "target": "/v", "read_only": false});
        let container = json!({"id": name, "name": "c", "image": "sha256:1", "image_ref": "i", "args": [], "env": [], "cwd": "",
            "user": "", "tty": false, "open_stdin": false, "stdin_once": false, "mounts": [mount]});
        let spec =
            json!({"containers": [container], "desired": "stopped", "memory_mib": 64, "vcpus": 1, "hostname": "h"});
        event("pod", name, revision, &spec)
    }

    #[test]
    fn a_volumes_change_concerns_the_pods_that_mount_it_and_no_others() {
        let mut world = World::default();
        world.take(&pod("a", 1, "data"));
        world.take(&pod("b", 2, "other"));
        let concerned = world.take(&event("volume", "data", 3, &json!({"driver": "local"})));
        assert_eq!(concerned, BTreeSet::from([PodId::new("a")]));
        let view = world.view(&PodId::new("a")).unwrap();
        assert!(view.volumes.contains_key(&VolumeName::new("data")));
    }

    #[test]
    fn what_is_told_again_changes_nothing() {
        let mut world = World::default();
        assert_eq!(world.take(&pod("a", 5, "data")).len(), 1);
        assert!(world.take(&pod("a", 5, "data")).is_empty());
        assert!(world.take(&pod("a", 4, "older")).is_empty());
        assert_eq!(world.view(&PodId::new("a")).unwrap().pod.meta.revision, 5);
    }
}
