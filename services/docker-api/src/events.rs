//! `GET /events`: what happened, told from changes of resources.
//!
//! Owns the comparison of a resource before and after, and the short memory for `since`. Events that no resource shows
//! (kill, exec, attach) are sent by the handlers.

pub mod calls;

use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::{Filters, Params, stream_time};
use crate::names::familiar;
use crate::project;
use crate::state::World;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{broadcast, mpsc};
use zone::Resource;
use zone::image::Image;
use zone::network::Network;
use zone::pod::{ContainerSpec, Mount, Phase, Pod};
use zone::time::now_ns;
use zone::volume::Volume;

/// How many events are remembered for `since`.
const REMEMBERED: usize = 1024;
/// The exit code of what SIGKILL has ended.
const KILLED: i32 = 137;

/// An event as it goes over the wire.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    scope: &'static str,
    time: u64,
    #[serde(rename = "timeNano")]
    time_nano: u64,
    /// Whose it is; none for what belongs to all.
    #[serde(skip)]
    project: Option<String>,
    /// It is told of a container that was stopped, and not of one that was killed.
    #[serde(skip)]
    of_stop: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: BTreeMap<String, String>,
}

impl Message {
    fn new(kind: &'static str, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let now = now_ns();
        let legacy = matches!(kind, "container" | "image");
        Self {
            status: legacy.then(|| action.to_owned()),
            id: legacy.then(|| id.to_owned()),
            from: attributes.get("image").filter(|_| kind == "container").cloned(),
            kind,
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes },
            scope: "local",
            time: now / 1_000_000_000,
            time_nano: now,
            project: None,
            of_stop: false,
        }
    }

    fn of_stop(mut self) -> Self {
        self.of_stop = true;
        self
    }

    fn of_project(mut self, project: String) -> Self {
        self.project = Some(project);
        self
    }

    /// An event of a container.
    #[must_use]
    pub fn container(spec: &ContainerSpec, action: &str, more: &[(&str, String)]) -> Self {
        let mut attributes: BTreeMap<String, String> = spec.docker["Labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
            .collect();
        attributes.insert("image".into(), spec.image_ref.clone());
        attributes.insert("name".into(), spec.name.clone());
        attributes.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        let project = project::of_json(&spec.docker["Labels"]);
        Self::new("container", action, spec.id.as_str(), attributes).of_project(project)
    }

    /// The end of a prune.
    #[must_use]
    pub fn prune(kind: &'static str, reclaimed: u64) -> Self {
        Self::new(kind, "prune", "", owned(&[("reclaimed", reclaimed.to_string())]))
    }

    fn matches(&self, filters: &Filters) -> bool {
        let names = |key: &str| {
            let name = self.actor.attributes.get("name").map_or("", String::as_str);
            filters.any(key, |v| self.kind == key && (self.actor.id.starts_with(v) || name == v))
        };
        filters.any("type", |v| v == self.kind)
            && filters.any("event", |v| v == self.action || self.action.split(':').next() == Some(v))
            && filters.any("scope", |v| v == self.scope)
            && filters.any("image", |v| {
                let image = self.actor.attributes.get("image").map_or("", String::as_str);
                v == image || v == self.actor.id || image.split(':').next() == Some(v)
            })
            && names("container")
            && names("network")
            && names("volume")
            && filters.labels(|key| self.actor.attributes.get(key).cloned())
    }
}

/// The stream of events and its short memory.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Message>>,
    past: Mutex<VecDeque<Arc<Message>>>,
    /// Containers that a client has killed: their end is no stop, though the pod comes down in the same way.
    killed: Mutex<BTreeSet<String>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(REMEMBERED), past: Mutex::default(), killed: Mutex::default() }
    }
}

impl Events {
    /// A client sends a signal to a container: to kill it, or else to stop it or for its own use.
    pub fn signal(&self, spec: &ContainerSpec, number: u32, kills: bool) {
        self.send(Message::container(spec, "kill", &[("signal", number.to_string())]));
        let mut killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        if kills {
            killed.insert(spec.id.to_string());
        } else {
            killed.remove(spec.id.as_str());
        }
    }

    /// Whether an event is to be told; a container that starts or goes was not killed any more.
    fn is_wanted(&self, message: &Message) -> bool {
        let mut killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(message.action.as_str(), "start" | "destroy") {
            killed.remove(&message.actor.id);
        }
        !(message.of_stop && killed.contains(&message.actor.id))
    }

    /// Tells an event to everyone who listens.
    pub fn send(&self, message: Message) {
        if !self.is_wanted(&message) {
            return;
        }
        let message = Arc::new(message);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.push_back(message.clone());
        if past.len() > REMEMBERED {
            past.pop_front();
        }
        // Nobody listening is fine.
        let _ = self.sender.send(message);
    }

    /// How many listen.
    #[must_use]
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// What is remembered, and everything after it.
    fn subscribe(&self) -> (Vec<Arc<Message>>, broadcast::Receiver<Arc<Message>>) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        (past.iter().cloned().collect(), self.sender.subscribe())
    }
}

/// `GET /events`.
///
/// # Errors
/// 400 for wrong parameters.
pub async fn events(State(app): State<Arc<App>>, params: Params) -> Result<Response> {
    // Docker ignores filters of events that it does not know.
    let filters = params.any_filters()?;
    let since = params.get("since").map(stream_time).transpose()?;
    let until = params.get("until").map(stream_time).transpose()?;
    if let (Some(from), Some(to)) = (since, until)
        && to < from
    {
        let said = |name| params.get(name).unwrap_or_default();
        return Err(Failure::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            said("since"),
            said("until")
        )));
    }
    let (past, mut live) = app.events.subscribe();
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    tokio::spawn(async move {
        let seen = |m: &Message| m.project.as_deref().is_none_or(|p| app.scope.sees(p));
        let wanted = |m: &Message| {
            seen(m)
                && m.matches(&filters)
                && since.is_none_or(|s| m.time_nano >= s)
                && until.is_none_or(|u| m.time_nano <= u)
        };
        for message in past.iter().filter(|m| since.is_some() && wanted(m)) {
            if sender.send(Ok(line(message))).await.is_err() {
                return;
            }
        }
        let deadline =
            until.map_or(std::time::Duration::MAX, |u| std::time::Duration::from_nanos(u.saturating_sub(now_ns())));
        let end = tokio::time::sleep(deadline.min(std::time::Duration::from_secs(365 * 86400)));
        tokio::pin!(end);
        loop {
            let message = tokio::select! {
                () = &mut end => return,
                () = sender.closed() => return,
                message = live.recv() => message,
            };
            match message {
                Ok(message) if wanted(&message) => {
                    if sender.send(Ok(line(&message))).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a client reads events too slowly");
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    Ok(crate::streams::streaming("application/json", body))
}

fn line(message: &Message) -> Bytes {
    let mut text = serde_json::to_vec(message).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// The events of a pod's change.
#[must_use]
pub fn of_pod(world: &World, old: Option<&Resource<Pod>>, new: Option<&Resource<Pod>>) -> Vec<Message> {
    let Some(pod) = new.or(old) else { return Vec::new() };
    let mut messages = Vec::new();
    for spec in &pod.spec.containers {
        let before = old.and_then(|o| o.status.containers.get(&spec.id)).cloned().unwrap_or_default();
        let after = new.and_then(|n| n.status.containers.get(&spec.id)).cloned().unwrap_or_default();
        if old.is_none() {
            messages.push(Message::container(spec, "create", &[]));
        }
        let Some(new) = new else {
            messages.push(Message::container(spec, "destroy", &[]));
            continue;
        };
        if after.started_ns != before.started_ns && after.started_ns != 0 {
            messages.extend(of_endpoints(world, new, "connect"));
            messages.extend(of_mounts(world, spec, "mount"));
            messages.push(Message::container(spec, "start", &[]));
        }
        if after.finished_ns != before.finished_ns && after.finished_ns != 0 {
            let stopped = old.is_some_and(|o| o.status.phase == Phase::Stopping);
            if stopped && after.exit_code == KILLED {
                // Its own signal was not enough.
                messages.push(Message::container(spec, "kill", &[("signal", "9".into())]).of_stop());
            }
            if after.oom_killed {
                messages.push(Message::container(spec, "oom", &[]));
            }
            messages.extend(of_endpoints(world, new, "disconnect"));
            messages.extend(of_mounts(world, spec, "unmount"));
            let seconds = after.finished_ns.saturating_sub(after.started_ns) / 1_000_000_000;
            messages.push(Message::container(
                spec,
                "die",
                &[("exitCode", after.exit_code.to_string()), ("execDuration", seconds.to_string())],
            ));
            if stopped {
                messages.push(Message::container(spec, "stop", &[]).of_stop());
            }
        }
        if let Some(health) = &after.health
            && health.state != before.health.clone().unwrap_or_default().state
            && health.state != zone::health::HealthState::Starting
        {
            messages.push(Message::container(spec, &format!("health_status: {}", health.state.as_str()), &[]));
        }
        if before.paused != after.paused {
            messages.push(Message::container(spec, if after.paused { "pause" } else { "unpause" }, &[]));
        }
        if let Some(was) =
            old.and_then(|o| o.spec.containers.iter().find(|c| c.id == spec.id)).filter(|c| c.name != spec.name)
        {
            messages.push(Message::container(spec, "rename", &[("oldName", format!("/{}", was.name))]));
        }
    }
    messages
}

fn of_mounts(world: &World, spec: &ContainerSpec, action: &str) -> Vec<Message> {
    let volumes = spec.mounts.iter().filter_map(|mount| match mount {
        Mount::Volume { volume, target, read_only, .. } => Some((volume, target, read_only)),
        _ => None,
    });
    volumes
        .map(|(volume, target, read_only)| {
            let driver = world.volumes.get(volume.as_str()).map_or("local", |v| v.spec.driver.as_str());
            let mut attributes = owned(&[("container", spec.id.to_string()), ("driver", driver.to_owned())]);
            if action == "mount" {
                attributes.insert("destination".into(), target.clone());
                attributes.insert("propagation".into(), String::new());
                attributes.insert("read/write".into(), (!read_only).to_string());
            }
            Message::new("volume", action, volume.as_str(), attributes)
        })
        .collect()
}

fn of_endpoints(world: &World, pod: &Resource<Pod>, action: &str) -> Vec<Message> {
    let networks = pod.spec.endpoints.iter().filter_map(|id| world.endpoints.get(id.as_str())).map(|e| &e.spec.network);
    networks
        .filter_map(|id| world.networks.get(id.as_str()))
        .map(|network| {
            let attributes = [
                ("container", pod.meta.name.clone()),
                ("name", network.spec.name.clone()),
                ("type", network.spec.driver.clone()),
            ];
            Message::new("network", action, &network.meta.name, owned(&attributes))
                .of_project(project::of_pod(&pod.spec))
        })
        .collect()
}

fn owned(attributes: &[(&str, String)]) -> BTreeMap<String, String> {
    attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
}

/// The events of a network's change.
#[must_use]
pub fn of_network(old: Option<&Resource<Network>>, new: Option<&Resource<Network>>) -> Vec<Message> {
    let (network, action) = match (old, new) {
        (None, Some(network)) => (network, "create"),
        (Some(network), None) => (network, "destroy"),
        _ => return Vec::new(),
    };
    let attributes = [("name", network.spec.name.clone()), ("type", network.spec.driver.clone())];
    let project = project::of_map(&network.spec.labels);
    vec![Message::new("network", action, &network.meta.name, owned(&attributes)).of_project(project)]
}

/// The events of a volume's change.
#[must_use]
pub fn of_volume(old: Option<&Resource<Volume>>, new: Option<&Resource<Volume>>) -> Vec<Message> {
    let (volume, action) = match (old, new) {
        (None, Some(volume)) => (volume, "create"),
        (Some(volume), None) => (volume, "destroy"),
        _ => return Vec::new(),
    };
    let project = project::of_map(&volume.spec.labels);
    let attributes = owned(&[("driver", volume.spec.driver.clone())]);
    vec![Message::new("volume", action, &volume.meta.name, attributes).of_project(project)]
}

/// The events of an image's change.
#[must_use]
pub fn of_image(old: Option<&Resource<Image>>, new: Option<&Resource<Image>>) -> Vec<Message> {
    let tags = |image: Option<&Resource<Image>>| image.map(|i| i.spec.tags.clone()).unwrap_or_default();
    let (before, after) = (tags(old), tags(new));
    let Some(image) = new.or(old) else { return Vec::new() };
    let message = |action: &str, name: &str| {
        Message::new("image", action, &image.meta.name, owned(&[("name", familiar(name).to_owned())]))
    };
    let mut messages: Vec<Message> =
        before.iter().filter(|t| !after.contains(t)).map(|_| message("untag", &image.meta.name)).collect();
    messages.extend(after.iter().filter(|t| !before.contains(t)).map(|t| message("tag", t)));
    if new.is_none() {
        messages.push(message("delete", &image.meta.name));
    }
    messages
}
