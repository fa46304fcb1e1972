//! The picture of the zone that every answer is read from: all resources, kept current by one watch of the state engine.
//!
//! Owns the in-memory copy and the waiting on it. It is never written but by the watch: a handler that writes goes to
//! the state engine and waits until the copy has caught up, so that the next request sees the write.
//!
//! Invariants: a copy is of one moment ([`World`] is immutable once handed out); a resource's revision only grows; pods
//! that are gone stay readable for a while ([`World::gone`]), so that a waiter learns the exit code of a pod that
//! removed itself.

use crate::errors::{Failure, Result};
use crate::events::{self, Events};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use zone::access::Revocation;
use zone::client::{Changes, Client, Event, Operation};
use zone::endpoint::Endpoint;
use zone::image::Image;
use zone::network::Network;
use zone::pod::{ContainerName, ContainerSpec, ContainerStatus, Phase, Pod};
use zone::service::Node;
use zone::volume::Volume;
use zone::{ApiError, ContainerId, ErrorKind, Kind, Resource};

/// How many removed pods are remembered.
const GONE_KEPT: usize = 1024;
/// How long a request waits for the copy to catch up with a write.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How long to wait before asking a state engine again that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// Resources of a kind by name.
pub type Map<K> = BTreeMap<String, Arc<Resource<K>>>;

/// All resources at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// It has been read at least once.
    pub loaded: bool,
    /// The state engine's revision of it.
    pub revision: u64,
    /// Pods by id.
    pub pods: Map<Pod>,
    /// Container names.
    pub names: Map<ContainerName>,
    /// Endpoints by id.
    pub endpoints: Map<Endpoint>,
    /// Networks by id.
    pub networks: Map<Network>,
    /// Images by id.
    pub images: Map<Image>,
    /// Volumes by name.
    pub volumes: Map<Volume>,
    /// The machine, named `self`.
    pub nodes: Map<Node>,
    /// Certificates that were taken back, by their holders.
    pub revocations: Map<Revocation>,
    /// The last pods that are gone, as they were last.
    pub gone: Map<Pod>,
    pub(crate) gone_order: VecDeque<String>,
}

/// A container and the pod that it is in.
#[derive(Clone, Debug)]
pub struct Container {
    /// The pod.
    pub pod: Arc<Resource<Pod>>,
    index: usize,
}

impl Container {
    /// What it should be.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.pod.spec.containers[self.index]
    }

    /// What it is.
    #[must_use]
    pub fn status(&self) -> ContainerStatus {
        self.pod.status.containers.get(&self.spec().id).cloned().unwrap_or_default()
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.spec().id
    }

    /// Its process runs, as far as is known.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.pod.status.phase, Phase::Running | Phase::Stopping)
    }

    /// Something of it is under way that a stop would end.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.pod.status.phase, Phase::Starting | Phase::Running | Phase::Stopping | Phase::Restarting)
    }

    /// Docker's word for its state.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let status = self.status();
        match self.pod.status.phase {
            Phase::Running | Phase::Stopping if status.paused => "paused",
            Phase::Running | Phase::Stopping => "running",
            Phase::Restarting => "restarting",
            // Its policy starts it again: `exited` is said only when that is over.
            Phase::Starting if self.pod.status.restart_count > 0 => "restarting",
            Phase::Pending | Phase::Created | Phase::Starting | Phase::Exited if status.started_ns == 0 => "created",
            Phase::Pending | Phase::Created | Phase::Starting | Phase::Exited => "exited",
        }
    }
}

impl World {
    /// Every container.
    pub fn containers(&self) -> impl Iterator<Item = Container> + '_ {
        self.pods.values().flat_map(containers_of)
    }

    /// The container with this id, name or unique prefix of an id.
    ///
    /// # Errors
    /// 404 when there is none, 400 when the prefix has several.
    pub fn container(&self, key: &str) -> Result<Container> {
        let absent = || Failure::not_found(format!("No such container: {key}"));
        let key = key.strip_prefix('/').unwrap_or(key);
        if key.is_empty() {
            return Err(absent());
        }
        if let Some(name) = self.names.get(key)
            && let Some(found) = self
                .pods
                .get(name.spec.pod.as_str())
                .into_iter()
                .flat_map(containers_of)
                .find(|c| *c.id() == name.spec.container)
        {
            return Ok(found);
        }
        let mut found = self.containers().filter(|c| c.id().as_str().starts_with(key));
        let first = found.next().ok_or_else(absent)?;
        if found.next().is_some() && first.id().as_str() != key {
            return Err(Failure::invalid(format!("Multiple IDs found with provided prefix: {key}")));
        }
        Ok(first)
    }

    /// The container with this full id, also when it is gone; the flag says that it is.
    #[must_use]
    pub fn container_even_gone(&self, id: &ContainerId) -> Option<(Container, bool)> {
        let by_id = |map: &Map<Pod>| map.get(id.as_str()).into_iter().flat_map(containers_of).find(|c| c.id() == id);
        by_id(&self.pods)
            .or_else(|| self.containers().find(|c| c.id() == id))
            .map(|c| (c, false))
            .or_else(|| by_id(&self.gone).map(|c| (c, true)))
    }

    /// The network with this id, name or unique prefix of an id.
    ///
    /// # Errors
    /// 404 when there is none, 400 when the prefix has several.
    pub fn network(&self, key: &str) -> Result<Arc<Resource<Network>>> {
        if let Some(found) = self.networks.get(key).or_else(|| self.networks.values().find(|n| n.spec.name == key)) {
            return Ok(found.clone());
        }
        let mut found = self.networks.values().filter(|n| !key.is_empty() && n.meta.name.starts_with(key));
        let first = found.next().ok_or_else(|| Failure::not_found(format!("network {key} not found")))?;
        if found.next().is_some() {
            return Err(Failure::invalid(format!("network {key} is ambiguous (several networks have this id prefix)")));
        }
        Ok(first.clone())
    }

    /// Applies a transaction's changes, so that no answer is from the midst of one; what clients are told of it.
    fn apply(&mut self, changes: &Changes) -> Vec<events::Message> {
        self.revision = self.revision.max(changes.revision);
        changes.events.iter().flat_map(|event| self.apply_one(event)).collect()
    }

    fn apply_one(&mut self, event: &Event) -> Vec<events::Message> {
        match event.kind() {
            Pod::NAME => {
                let (old, new) = change(&mut self.pods, event);
                if let (Some(old), None) = (&old, &new) {
                    self.bury(old.clone());
                }
                events::of_pod(self, old.as_deref(), new.as_deref())
            }
            ContainerName::NAME => {
                change(&mut self.names, event);
                Vec::new()
            }
            Endpoint::NAME => {
                change(&mut self.endpoints, event);
                Vec::new()
            }
            Network::NAME => {
                let (old, new) = change(&mut self.networks, event);
                events::of_network(old.as_deref(), new.as_deref())
            }
            Image::NAME => {
                let (old, new) = change(&mut self.images, event);
                events::of_image(old.as_deref(), new.as_deref())
            }
            Volume::NAME => {
                let (old, new) = change(&mut self.volumes, event);
                events::of_volume(old.as_deref(), new.as_deref())
            }
            Node::NAME => {
                change(&mut self.nodes, event);
                Vec::new()
            }
            Revocation::NAME => {
                change(&mut self.revocations, event);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// As the state engine tells it, for tests.
    #[cfg(test)]
    pub(crate) fn revoke(&mut self, name: &str, issued_until_s: u64) {
        let meta = zone::Meta { kind: Revocation::NAME.into(), name: name.into(), ..zone::Meta::default() };
        let spec = zone::access::RevocationSpec { issued_until_s };
        self.revocations.insert(name.into(), Arc::new(Resource { meta, spec, status: () }));
    }

    fn bury(&mut self, pod: Arc<Resource<Pod>>) {
        let name = pod.meta.name.clone();
        if self.gone.insert(name.clone(), pod).is_none() {
            self.gone_order.push_back(name);
        }
        while self.gone_order.len() > GONE_KEPT {
            if let Some(oldest) = self.gone_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }
}

fn containers_of(pod: &Arc<Resource<Pod>>) -> impl Iterator<Item = Container> + use<> {
    let pod = pod.clone();
    (0..pod.spec.containers.len()).map(move |index| Container { pod: pod.clone(), index })
}

type Change<K> = (Option<Arc<Resource<K>>>, Option<Arc<Resource<K>>>);

/// Applies an event to its map and tells what was before and what is now; nothing when the event is older than what is known.
fn change<K: Kind>(map: &mut Map<K>, event: &Event) -> Change<K> {
    let Some(resource) = event.resource::<K>() else {
        tracing::warn!(
            kind = K::NAME,
            name = event.name(),
            "cannot decode a resource; is the state engine newer than this service?"
        );
        return (None, None);
    };
    let name = resource.meta.name.clone();
    if map.get(&name).is_some_and(|known| known.meta.revision > event.revision()) {
        return (None, None);
    }
    match event {
        Event::Delete { .. } => {
            let old = map.remove(&name);
            let last = old.is_some().then(|| Arc::new(resource));
            (last, None)
        }
        _ => {
            let new = Arc::new(resource);
            let old = map.insert(name, new.clone());
            if old.as_ref().is_some_and(|old| old.meta.revision == new.meta.revision) {
                return (None, None);
            }
            (old, Some(new))
        }
    }
}

/// The state engine's client with the copy.
#[derive(Debug)]
pub struct Store {
    /// For writes.
    pub client: Client,
    world: Arc<watch::Sender<Arc<World>>>,
    /// The one project that is seen; none sees all.
    project: Option<String>,
    /// What the project saw at the revision that it was last asked for.
    seen: Arc<Mutex<Option<Arc<World>>>>,
}

impl Store {
    /// A store that knows nothing yet; [`Store::run`] fills it.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let world = Arc::new(watch::Sender::new(Arc::default()));
        Self { client, world, project: None, seen: Arc::default() }
    }

    /// The same store, of which only one project is seen.
    #[must_use]
    pub fn scoped(&self, project: Option<&str>) -> Self {
        let project = project.map(str::to_owned);
        Self { client: self.client.clone(), world: self.world.clone(), project, seen: Arc::default() }
    }

    /// The zone now, as far as the client may see it.
    #[must_use]
    pub fn world(&self) -> Arc<World> {
        let world = self.world.borrow().clone();
        self.restrict(world)
    }

    fn restrict(&self, world: Arc<World>) -> Arc<World> {
        let Some(project) = &self.project else { return world };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some(view) if view.revision == world.revision => view.clone(),
            _ => seen.insert(Arc::new(crate::project::view(&world, project))).clone(),
        }
    }

    /// For waiting on changes of what was found by [`Store::world`]; sees the whole zone.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<World>> {
        self.world.subscribe()
    }

    /// Carries out all operations or none, and waits until [`Store::world`] shows them.
    ///
    /// # Errors
    /// Those of the state engine.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<(), ApiError> {
        let result = self.client.transact(operations).await?;
        self.reach(result.revision).await;
        Ok(())
    }

    /// Changes a spec by `change` (see [`Client::modify_spec`]), and waits until [`Store::world`] shows it.
    ///
    /// # Errors
    /// Those of the state engine.
    pub async fn modify_spec<K: Kind>(
        &self,
        name: &str,
        change: impl FnMut(&mut K::Spec) -> bool,
    ) -> Result<Resource<K>, ApiError> {
        let written = self.client.modify_spec::<K>(name, change).await?;
        self.reach(written.meta.revision).await;
        Ok(written)
    }

    /// Waits until [`Store::world`] shows what anyone had written before this call.
    pub async fn barrier(&self) {
        if let Ok(list) = self.client.list::<Node>().await {
            self.reach(list.revision).await;
        }
    }

    /// The first answer that `look` gives, now or after a change; none when `limit` is over.
    pub async fn wait<T>(&self, limit: Option<Duration>, mut look: impl FnMut(&World) -> Option<T>) -> Option<T> {
        let mut receiver = self.subscribe();
        let search = async {
            loop {
                let world = receiver.borrow_and_update().clone();
                if let Some(found) = look(&self.restrict(world)) {
                    return Some(found);
                }
                receiver.changed().await.ok()?;
            }
        };
        match limit {
            Some(limit) => tokio::time::timeout(limit, search).await.ok().flatten(),
            None => search.await,
        }
    }

    async fn reach(&self, revision: u64) {
        if self.wait(Some(CATCH_UP), |world| (world.revision >= revision).then_some(())).await.is_none() {
            tracing::warn!(revision, "the watch lags behind");
        }
    }

    /// Keeps the copy current, without end.
    pub async fn run(&self, events: &Events) {
        let mut from = None;
        loop {
            let revision = match from {
                Some(revision) => revision,
                None => match self.relist(events).await {
                    Ok(revision) => revision,
                    Err(error) => {
                        tracing::warn!(%error, "cannot list");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            from = Some(revision);
            if let Err(error) = self.follow(events, &mut from).await {
                if error.kind == ErrorKind::Gone {
                    from = None;
                } else {
                    tracing::warn!(%error, "the watch broke off");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn follow(&self, events: &Events, from: &mut Option<u64>) -> Result<(), ApiError> {
        const KINDS: [&str; 8] = [
            Pod::NAME,
            ContainerName::NAME,
            Endpoint::NAME,
            Network::NAME,
            Image::NAME,
            Volume::NAME,
            Node::NAME,
            Revocation::NAME,
        ];
        let mut watch = self.client.watch(&KINDS, from.unwrap_or_default()).await?;
        while let Some(changes) = watch.next().await? {
            *from = Some(changes.revision);
            let mut messages = Vec::new();
            self.world.send_modify(|world| messages = Arc::make_mut(world).apply(&changes));
            messages.into_iter().for_each(|m| events.send(m));
        }
        Ok(())
    }

    /// Reads everything anew; the revision to watch from, which no list is older than.
    async fn relist(&self, events: &Events) -> Result<u64, ApiError> {
        let pods = self.client.list::<Pod>().await?;
        let revision = pods.revision;
        let mut fresh = World {
            loaded: true,
            revision,
            pods: map(pods.items),
            names: map(self.client.list::<ContainerName>().await?.items),
            endpoints: map(self.client.list::<Endpoint>().await?.items),
            networks: map(self.client.list::<Network>().await?.items),
            images: map(self.client.list::<Image>().await?.items),
            volumes: map(self.client.list::<Volume>().await?.items),
            nodes: map(self.client.list::<Node>().await?.items),
            revocations: map(self.client.list::<Revocation>().await?.items),
            ..World::default()
        };
        let old = self.world();
        fresh.gone.clone_from(&old.gone);
        fresh.gone_order.clone_from(&old.gone_order);
        let mut messages = Vec::new();
        for (name, pod) in &old.pods {
            if !fresh.pods.contains_key(name) {
                fresh.bury(pod.clone());
                messages.extend(events::of_pod(&fresh, Some(pod), None));
            }
        }
        self.world.send_replace(Arc::new(fresh));
        messages.into_iter().for_each(|m| events.send(m));
        Ok(revision)
    }
}

fn map<K: Kind>(items: Vec<Resource<K>>) -> Map<K> {
    items.into_iter().map(|item| (item.meta.name.clone(), Arc::new(item))).collect()
}
