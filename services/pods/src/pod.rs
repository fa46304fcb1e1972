//! A pod's task: asks [`crate::machine`] what comes next and does it, one thing after the other.
//!
//! Woken by its resources, by its unit's end and by its log; never by a clock alone but for the deadlines that the
//! machine names. Ends when the resource is deleted and everything of the pod is removed.

use crate::machine::{Action, Facts, Needs, Step, Stop, Unit, decide, next_backoff};
use crate::plan::{self, Plan};
use crate::shared::Shared;
use crate::world::View;
use crate::{agent, disk, follow, launch, nets, remove, unit};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use zone::log::LogReader;
use zone::pod::{Desired, Interface, Phase, PodStatus};
use zone::time::now_ns;
use zone::{EndpointId, ErrorKind, PodId};

/// What was found of a pod when this process started.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Its monitor's unit is there.
    pub alive: bool,
    /// Units of its file servers, or its run directory, may be there.
    pub dirty: bool,
    /// The machine has booted since.
    pub booted: bool,
    /// The file servers' units.
    pub fs_units: Vec<String>,
}

/// A pod's task.
pub struct PodTask {
    id: PodId,
    shared: Arc<Shared>,
    views: watch::Receiver<Option<View>>,
    ends: mpsc::UnboundedReceiver<String>,
    view: View,
    status: PodStatus,
    facts: Facts,
    plan: Option<Plan>,
    log: Option<Log>,
    changed: Arc<Notify>,
    fs_units: Vec<String>,
}

struct Log {
    reader: LogReader,
    _following: follow::Following,
}

/// The pod's resource is gone.
struct Gone;

impl PodTask {
    /// A task for the pod of `view`.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        view: View,
        views: watch::Receiver<Option<View>>,
        ends: mpsc::UnboundedReceiver<String>,
        found: Found,
    ) -> Self {
        let status = view.pod.status.clone();
        let unit = if found.alive { Unit::Alive } else { Unit::Absent };
        // For a guest that had not powered off when this process was killed, the time to do so begins now.
        let ended_ms = found.alive.then(|| shared.now_ms());
        let facts = Facts { unit, dirty: found.dirty, booted: found.booted, ended_ms, ..Facts::default() };
        let id = PodId::new(view.pod.meta.name.clone());
        let (fs_units, changed) = (found.fs_units, Arc::default());
        Self { id, shared, views, ends, view, status, facts, plan: None, log: None, changed, fs_units }
    }

    /// Runs until the pod is deleted and removed.
    pub async fn run(mut self) {
        if self.facts.unit == Unit::Alive {
            // What runs has its memory and block volumes already.
            self.shared.promise(&self.id, self.view.pod.spec.memory_mib);
            self.make_plan();
            if let Some(plan) = &self.plan
                && let Err((volume, holder)) = self.shared.claim(&self.id, plan.blocks.iter())
            {
                tracing::error!(pod = self.id.short(), %volume, holder = holder.short(), "two pods use a block volume");
            }
        }
        while let Ok(()) = self.turn().await {}
        self.tear_down().await;
        tracing::info!(pod = self.id.short(), "removed");
    }

    async fn turn(&mut self) -> Result<(), Gone> {
        self.read_log();
        self.look_at_needs();
        let now = self.shared.now_ms();
        match decide(&self.view.pod.spec, &self.status, &self.facts, now) {
            Step::Status(mut new) => {
                if new.phase == Phase::Running && self.status.phase == Phase::Starting {
                    new.interfaces = self.first_interfaces();
                }
                self.write(*new).await
            }
            Step::Act(action) => self.act(action).await,
            Step::Wait(until) => {
                if self.match_interfaces().await? {
                    return Ok(());
                }
                let pause =
                    until.map_or(Duration::from_secs(86_400), |at| Duration::from_millis(at.saturating_sub(now)));
                self.wait(pause).await
            }
        }
    }

    /// What the guest started with. Read from its bundle: this process may be another one than started it.
    fn first_interfaces(&self) -> BTreeMap<EndpointId, Interface> {
        let file = self.shared.places(&self.id).run.join(zone::bundle::BUNDLE_FILE);
        let bundle = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        bundle.map(|bundle| nets::of_bundle(&bundle, &self.view)).unwrap_or_default()
    }

    /// Connects or disconnects one network of a running pod; true when there was something to do.
    async fn match_interfaces(&mut self) -> Result<bool, Gone> {
        if self.status.phase != Phase::Running || self.facts.unit != Unit::Alive {
            return Ok(false);
        }
        let Some(change) = nets::changes(&self.view, &self.status.interfaces) else { return Ok(false) };
        let run = self.shared.places(&self.id).run;
        let mut new = self.status.clone();
        match change {
            nets::Change::Detach(id, interface) => {
                if !interface.device.is_empty() {
                    nets::detach(&run, &interface.device, interface.plugged).await;
                }
                tracing::info!(pod = self.id.short(), endpoint = %id, "a network was disconnected");
                new.interfaces.remove(&id);
            }
            nets::Change::Attach(id, endpoint) => {
                let default_route = !new.interfaces.values().any(|i| i.default_route);
                let attached = nets::attach(&run, &endpoint, default_route).await;
                let error = attached.as_ref().err().map(|error| format!("{error:#}"));
                tracing::info!(pod = self.id.short(), endpoint = %id, error, "a network was connected");
                let device = attached.unwrap_or_default();
                let default_route = default_route && error.is_none();
                new.interfaces.insert(id, Interface { device, plugged: true, default_route, error });
            }
            nets::Change::Default(id, mut interface, endpoint) => {
                let set = nets::appear(&run, &interface.device, &endpoint, true).await;
                if let Err(error) = set {
                    tracing::warn!(
                        pod = self.id.short(),
                        error = format!("{error:#}"),
                        "the default route cannot be set"
                    );
                }
                // Not tried again: the flag says where it was last asked to be.
                new.interfaces.values_mut().for_each(|i| i.default_route = false);
                interface.default_route = true;
                new.interfaces.insert(id, interface);
            }
        }
        self.write(new).await?;
        Ok(true)
    }

    async fn wait(&mut self, pause: Duration) -> Result<(), Gone> {
        tokio::select! {
            change = self.views.changed() => {
                let view = self.views.borrow_and_update().clone();
                match (change, view) {
                    (Ok(()), Some(view)) => self.take_view(view),
                    _ => return Err(Gone),
                }
            }
            Some(result) = self.ends.recv() => self.unit_ended(result).await,
            () = self.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        Ok(())
    }

    fn take_view(&mut self, view: View) {
        let newer = view.pod.meta.revision >= self.view.pod.meta.revision;
        let pod = if newer { view.pod.clone() } else { self.view.pod.clone() };
        self.view = View { pod, ..view };
    }

    async fn unit_ended(&mut self, result: String) {
        // A unit of that name may be there again, or the signal was of a mere look at it.
        match self.shared.systemd.exists(&unit::pod_unit(&self.id)).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(pod = self.id.short(), error = chain(&error), "cannot look for a unit"),
        }
        if self.facts.unit == Unit::Alive {
            self.read_log();
            tracing::info!(pod = self.id.short(), result, "the monitor has ended");
            self.facts.unit = Unit::Ended { result };
            self.facts.ended_ns = Some(now_ns());
        }
    }

    fn live(&self) -> bool {
        matches!(self.status.phase, Phase::Starting | Phase::Running | Phase::Stopping)
    }

    /// Takes in what the log has got since the last look; opens it when it matters.
    fn read_log(&mut self) {
        let matters = self.live() || self.view.pod.spec.desired == Desired::Running;
        if self.log.is_none() && self.facts.prepared && matters {
            let files = self.shared.places(&self.id).logs();
            match self.shared.follower.follow(&files, &self.changed) {
                Ok(following) => self.log = Some(Log { reader: LogReader::new(files), _following: following }),
                Err(error) => tracing::error!(pod = self.id.short(), %error, "cannot follow the log"),
            }
        }
        let Some(log) = &mut self.log else { return };
        let had_ended = self.view.pod.spec.containers.iter().all(|c| self.facts.log.end_of(&c.id).is_some());
        loop {
            let records = match log.reader.read() {
                Ok(records) => records,
                Err(error) => {
                    tracing::error!(pod = self.id.short(), %error, "cannot read the log");
                    return;
                }
            };
            if records.is_empty() {
                break;
            }
            for record in &records {
                self.facts.last_run = self.facts.last_run.max(record.run);
                if record.run == self.status.run {
                    self.facts.log.take(record);
                }
            }
        }
        let ended = self.view.pod.spec.containers.iter().all(|c| self.facts.log.end_of(&c.id).is_some());
        if ended && !had_ended {
            self.facts.ended_ms = Some(self.shared.now_ms());
        }
    }

    fn make_plan(&mut self) {
        let places = self.shared.places(&self.id);
        let plan = plan::plan(&self.view, &places, self.status.run, now_ns());
        self.take_plan(plan);
    }

    fn take_plan(&mut self, plan: Result<Plan, Needs>) {
        match plan {
            Ok(plan) => {
                self.plan = Some(plan);
                self.facts.needs = Needs::Ready;
            }
            Err(needs) => {
                self.plan = None;
                self.facts.needs = needs;
            }
        }
    }

    fn look_at_needs(&mut self) {
        if self.status.phase == Phase::Starting && self.facts.unit == Unit::Absent && self.facts.prepared {
            self.make_plan();
            let now = self.shared.now_ms();
            self.facts.waiting_since_ms.get_or_insert(now);
        } else if self.files_are_wanted() {
            let places = self.shared.places(&self.id);
            let plan = plan::files_plan(&self.view, &places, now_ns());
            self.take_plan(plan);
            let now = self.shared.now_ms();
            self.facts.waiting_since_ms.get_or_insert(now);
        } else {
            self.facts.waiting_since_ms = None;
        }
    }

    fn files_are_wanted(&self) -> bool {
        !self.live()
            && self.facts.prepared
            && self.facts.unit != Unit::Alive
            && (self.facts.files_fresh || self.view.pod.spec.files_asks > self.status.files.asks)
    }

    async fn write(&mut self, new: PodStatus) -> Result<(), Gone> {
        let (old, name) = (self.status.phase, self.id.as_str().to_owned());
        let mut pause = Duration::from_millis(20);
        let mut result = self.shared.client.update_status(&self.view.pod, &new).await;
        loop {
            match result {
                Ok(pod) => {
                    self.view.pod = Arc::new(pod);
                    break;
                }
                Err(error) if error.kind == ErrorKind::NotFound => return Err(Gone),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => {
                    tracing::warn!(pod = self.id.short(), %error, "cannot write a status; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
            let set = |status: &mut PodStatus| {
                *status = new.clone();
                true
            };
            result = self.shared.client.modify_status::<zone::pod::Pod>(&name, set).await;
        }
        if new.phase != old {
            tracing::info!(pod = self.id.short(), phase = ?new.phase, run = new.run, "phase");
        }
        let opened = new.files.up && !self.status.files.up;
        self.status = new;
        if opened {
            self.facts.begin_run();
            self.facts.files_fresh = true;
        }
        self.entered(old);
        Ok(())
    }

    /// Facts that a change of the phase makes.
    fn entered(&mut self, old: Phase) {
        if self.status.phase == old {
            return;
        }
        self.shared.templates.starts(&self.id, self.status.phase == Phase::Starting);
        match self.status.phase {
            Phase::Starting => self.facts.begin_run(),
            Phase::Restarting => {
                let now = self.shared.now_ms();
                let ran = self.facts.launched_ms.map_or(0, |at| now.saturating_sub(at));
                self.facts.backoff_ms = next_backoff(self.facts.backoff_ms, ran);
                self.facts.restart_ms = Some(now + if self.facts.booted { 0 } else { self.facts.backoff_ms });
            }
            _ => {}
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), Gone> {
        match action {
            Action::AssignUid => {
                let uid = self.shared.take_uid();
                let mut new = self.status.clone();
                new.uid = Some(uid);
                let result = self.write(new).await;
                if result.is_err() {
                    self.shared.free_uid(uid);
                }
                return result;
            }
            Action::Prepare => self.prepare().await,
            Action::Launch => self.launch().await,
            Action::OpenFiles => {
                self.facts.files_fresh = false;
                self.launch().await;
            }
            Action::CloseFiles => self.close_files(),
            Action::Limit => self.limit().await,
            Action::Signal => self.signal(),
            Action::Kill => {
                self.facts.stop = Stop::Killed { at_ms: self.shared.now_ms() };
                if let Err(error) = self.shared.systemd.kill(&unit::pod_unit(&self.id)).await {
                    tracing::error!(pod = self.id.short(), error = chain(&error), "cannot kill the monitor");
                }
            }
            Action::CleanUp => self.clean_up().await,
            Action::Remove => {
                if let Err(error) = remove::remove(&self.shared.client, &self.view).await {
                    tracing::error!(pod = self.id.short(), %error, "cannot remove a pod that has exited");
                    self.wait(Duration::from_secs(1)).await?;
                } else {
                    self.wait(Duration::from_secs(5)).await?;
                }
            }
        }
        Ok(())
    }

    async fn prepare(&mut self) {
        let dir = self.shared.places(&self.id).data;
        let sizes: Vec<u64> = self.view.pod.spec.containers.iter().map(|c| c.rootfs_size).collect();
        let (disks, uid) = (self.shared.config.disks.clone(), self.status.uid.unwrap_or(crate::shared::FIRST_UID));
        let result = tokio::task::spawn_blocking(move || disks.prepare(&dir, uid, &sizes)).await;
        match result.map_err(anyhow::Error::from).and_then(|r| r) {
            Ok(()) => self.facts.prepared = true,
            Err(error) => {
                let why = disk::explain(&error);
                // Said once for each reason: it is tried again for as long as the pool is full.
                if self.facts.prepare_again.as_ref().is_none_or(|(_, before)| *before != why) {
                    tracing::error!(pod = self.id.short(), error = why, "cannot prepare a pod's files");
                }
                self.facts.prepare_again = Some((self.shared.now_ms() + 1000, why));
            }
        }
    }

    async fn launch(&mut self) {
        let (Some(plan), Some(uid)) = (self.plan.take(), self.status.uid) else { return };
        self.facts.dirty = true;
        self.facts.launched_ms = Some(self.shared.now_ms());
        self.facts.limits = Some(self.view.pod.spec.cpu);
        self.fs_units = (0..plan.dirs.len()).map(|i| unit::fs_unit(&self.id, i)).collect();
        self.facts.unit = match launch::launch(&self.shared, &self.id, uid, &plan, self.view.pod.spec.cpu).await {
            Ok(()) => Unit::Alive,
            Err(error) => {
                tracing::error!(pod = self.id.short(), error = format!("{error:#}"), "cannot start a pod");
                self.facts.ended_ns = Some(now_ns());
                Unit::Failed { message: format!("{error:#}") }
            }
        };
    }

    async fn limit(&mut self) {
        let cpu = self.view.pod.spec.cpu;
        // Tried once: what systemd refuses it refuses again.
        self.facts.limits = Some(cpu);
        if let Err(error) = self.shared.systemd.set(&unit::pod_unit(&self.id), unit::cpu(cpu)).await {
            tracing::error!(pod = self.id.short(), error = chain(&error), "cannot limit a pod's CPU time");
        }
    }

    fn signal(&mut self) {
        self.facts.stop = Stop::Asked { at_ms: self.shared.now_ms() };
        let socket = self.shared.places(&self.id).run.join("agent.sock");
        for container in &self.view.pod.spec.containers {
            let (socket, id) = (socket.clone(), container.id.clone());
            let signal =
                if container.stop_signal.is_empty() { "SIGTERM".to_owned() } else { container.stop_signal.clone() };
            tokio::spawn(async move {
                if let Err(error) = agent::kill(&socket, &id, &signal).await {
                    tracing::warn!(container = id.short(), error = format!("{error:#}"), "cannot send the stop signal");
                }
            });
        }
    }

    fn close_files(&mut self) {
        self.facts.stop = Stop::Asked { at_ms: self.shared.now_ms() };
        let (socket, pod) = (self.shared.places(&self.id).run.join("agent.sock"), self.id.clone());
        tokio::spawn(async move {
            if let Err(error) = agent::shutdown(&socket).await {
                tracing::warn!(pod = pod.short(), error = format!("{error:#}"), "cannot end the helper for files");
            }
        });
    }

    async fn clean_up(&mut self) {
        for unit in std::mem::take(&mut self.fs_units) {
            if let Err(error) = self.shared.systemd.stop(&unit).await {
                tracing::error!(unit, error = chain(&error), "cannot stop a file server");
            }
        }
        self.shared.release(&self.id);
        self.log = None;
        if let Err(error) = disk::remove_dir(&self.shared.places(&self.id).run) {
            tracing::error!(pod = self.id.short(), error = format!("{error:#}"), "cannot remove a bundle");
        }
        self.facts.dirty = false;
    }

    async fn tear_down(&mut self) {
        self.shared.templates.starts(&self.id, false);
        let unit = unit::pod_unit(&self.id);
        while self.facts.unit == Unit::Alive {
            if let Err(error) = self.shared.systemd.kill(&unit).await {
                tracing::error!(pod = self.id.short(), error = chain(&error), "cannot kill the monitor");
            }
            match tokio::time::timeout(Duration::from_secs(10), self.ends.recv()).await {
                Ok(Some(result)) => self.unit_ended(result).await,
                Ok(None) => break,
                Err(_) => {}
            }
        }
        self.clean_up().await;
        let dir = self.shared.places(&self.id).data;
        let result = tokio::task::spawn_blocking(move || disk::remove_dir(&dir)).await;
        if let Err(error) = result.map_err(anyhow::Error::from).and_then(|r| r) {
            tracing::error!(pod = self.id.short(), error = format!("{error:#}"), "cannot remove a pod's files");
        }
        if let Some(uid) = self.status.uid {
            self.shared.free_uid(uid);
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
