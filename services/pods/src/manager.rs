//! Gives every pod a task, and removes what has no pod.

use crate::pod::{Found, PodTask};
use crate::shared::Shared;
use crate::systemd::UnitEnd;
use crate::unit::{self, FS_UNITS, POD_UNITS};
use crate::world::{self, World};
use crate::{belongs, disk, world::View};
use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use zone::PodId;

/// The file that says that this service has looked at all pods since the machine booted.
const MARKER: &str = ".since-boot";

struct Task {
    views: watch::Sender<Option<View>>,
    ends: mpsc::UnboundedSender<String>,
}

type Tasks = Arc<Mutex<BTreeMap<PodId, Task>>>;

struct Manager {
    shared: Arc<Shared>,
    tasks: Tasks,
    units: Vec<String>,
    booted: bool,
    first: bool,
    /// What runs and has no pod may be stopped and removed.
    collects: bool,
}

/// Runs all pods, for ever.
///
/// # Errors
/// When systemd cannot be asked, or the bus is gone, or the state engine's database is another one: start again then.
pub async fn run(shared: Arc<Shared>, ends: &mut mpsc::Receiver<UnitEnd>) -> anyhow::Result<()> {
    let units = shared.systemd.list(&[POD_UNITS, FS_UNITS]).await?;
    let tasks = Tasks::default();
    let marker = shared.config.run.join(MARKER);
    let booted = !marker.exists();
    let (zone, collects) = belongs::ensure(&shared.client, &shared.config.data, units.is_empty()).await;
    let (shared_, tasks_) = (shared.clone(), tasks.clone());
    let mut manager = Manager { shared: shared_, tasks: tasks_, units, booted, first: true, collects };
    let follow = world::follow(shared.client.clone(), &zone, move |world, concerned| manager.tell(world, concerned));
    std::fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
    shared.templates.begin(&shared.systemd, &shared.config).await;
    tokio::select! {
        () = follow => bail!("the state engine answers for another zone"),
        () = route(ends, &tasks, &shared) => bail!("the bus has closed the connection"),
    }
}

/// Hands each unit's end to its pod.
async fn route(ends: &mut mpsc::Receiver<UnitEnd>, tasks: &Tasks, shared: &Shared) {
    while let Some(end) = ends.recv().await {
        if shared.templates.ended(&end) {
            continue;
        }
        let Some(pod) = unit::pod_of(&end.unit).filter(|p| unit::pod_unit(p) == end.unit) else { continue };
        if let Some(task) = tasks.lock().unwrap_or_else(PoisonError::into_inner).get(&pod) {
            let _ = task.ends.send(end.result);
        }
    }
}

impl Manager {
    fn tell(&mut self, world: &World, concerned: BTreeSet<PodId>) {
        if std::mem::take(&mut self.first) {
            self.start(world);
        }
        for pod in concerned {
            match world.view(&pod) {
                Some(view) => self.put(&pod, view),
                None => {
                    if let Some(task) = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).get(&pod) {
                        let _ = task.views.send(None);
                    }
                }
            }
        }
    }

    /// Uids first: a pod without one must not take another's.
    fn start(&mut self, world: &World) {
        let pods: BTreeSet<PodId> = world.pods().collect();
        for view in pods.iter().filter_map(|p| world.view(p)) {
            if let Some(uid) = view.pod.status.uid {
                self.shared.keep_uid(uid);
            }
        }
        if !self.collects {
            return;
        }
        let orphans: Vec<String> =
            self.units.iter().filter(|u| unit::pod_of(u).is_some_and(|p| !pods.contains(&p))).cloned().collect();
        let shared = self.shared.clone();
        tokio::spawn(async move {
            for unit in orphans {
                tracing::warn!(unit, "a unit has no pod; it is stopped");
                if let Err(error) = shared.systemd.stop(&unit).await {
                    tracing::error!(unit, %error, "cannot stop it");
                }
            }
        });
        for dir in [&self.shared.config.run, &self.shared.config.data] {
            remove_orphans(dir, &pods);
        }
    }

    fn put(&mut self, pod: &PodId, view: View) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = tasks.get(pod) {
            task.views.send_replace(Some(view));
            return;
        }
        let (views, views_rx) = watch::channel(Some(view.clone()));
        let (ends, ends_rx) = mpsc::unbounded_channel();
        let task = PodTask::new(self.shared.clone(), view, views_rx, ends_rx, self.found(pod));
        tasks.insert(pod.clone(), Task { views, ends });
        let (all, pod) = (self.tasks.clone(), pod.clone());
        tokio::spawn(async move {
            task.run().await;
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod);
        });
    }

    fn found(&self, pod: &PodId) -> Found {
        let monitor = unit::pod_unit(pod);
        let of_pod = |u: &&String| unit::pod_of(u).as_ref() == Some(pod) && **u != monitor;
        let fs_units: Vec<String> = self.units.iter().filter(of_pod).cloned().collect();
        let dirty = !fs_units.is_empty() || self.shared.places(pod).run.exists();
        Found { alive: self.units.contains(&monitor), dirty, booted: self.booted, fs_units }
    }
}

fn remove_orphans(dir: &Path, pods: &BTreeSet<PodId>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || pods.contains(&PodId::new(name.clone())) || !entry.path().is_dir() {
            continue;
        }
        tracing::warn!(name, dir = %dir.display(), "files have no pod; they are removed");
        if let Err(error) = disk::remove_dir(&entry.path()) {
            tracing::error!(name, error = format!("{error:#}"), "cannot remove them");
        }
    }
}
