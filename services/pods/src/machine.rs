//! What to do next for a pod: a pure function of what is wanted, what is known and the time.
//!
//! ```text
//! pending ─prepare→ created ─start→ starting ─started→ running ─exited→ exited ─┐
//!                      ↑               │                  │ stop                │ policy
//!                      └── (next start request) ←── exited ←── stopping        restarting ─back-off→ starting
//! ```
//! Invariants: a status is decided before the action that it is about, so that a service that was killed in between
//! finds out what it wanted; each call either changes the status, or names one action, or says what to wait for.
//! Must not: do anything, read a clock, or know of systemd.

use crate::runlog::{End, RunLog};
use zone::health::Health;
use zone::pod::{
    CpuLimits, Desired, FilesStatus, Mount, Phase, PodSpec, PodStatus, RestartPolicy, StartError, StartErrorKind,
};

/// How long a start waits for volumes, endpoints and images before it fails.
pub const NEEDS_PATIENCE_MS: u64 = 30_000;
/// How long a guest whose containers have all exited may take to power off.
pub const LINGER_MS: u64 = 5_000;
/// How long a start waits for copies of the pod's files that are under way.
pub const FILES_PATIENCE_MS: u64 = 60_000;
/// How long the unit may take to end after a kill before it is killed again.
pub const KILL_AGAIN_MS: u64 = 10_000;
const BACKOFF_FIRST_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 60_000;
/// A pod that ran this long starts its back-off anew.
const SETTLED_MS: u64 = 10_000;

/// What is known of the pod's systemd unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// There is none, and this process did not see one end.
    #[default]
    Absent,
    /// It is there.
    Alive,
    /// It has ended, and the log has been read to its end since.
    Ended {
        /// systemd's word for it: `success`, `exit-code`, `oom-kill`, `signal`…
        result: String,
    },
    /// It could not be started at all.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// Nobody has asked.
    #[default]
    No,
    /// The stop signal was sent then.
    Asked {
        /// Milliseconds of the monotonic clock.
        at_ms: u64,
    },
    /// The unit was killed then.
    Killed {
        /// Milliseconds of the monotonic clock.
        at_ms: u64,
    },
}

/// Whether everything that a start needs is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Yes.
    #[default]
    Ready,
    /// Not yet; why, for people.
    Waiting(String),
    /// Never; why, for people.
    Failed(String),
}

/// What this process knows of a pod beside its resource.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Data directory, writable layers and log files are there.
    pub prepared: bool,
    /// Preparing failed; try again at this time, and why, for people.
    pub prepare_again: Option<(u64, String)>,
    /// The unit.
    pub unit: Unit,
    /// Units of file servers, the run directory or claims on block volumes may be there.
    pub dirty: bool,
    /// What the log says of the run in the status.
    pub log: RunLog,
    /// The highest run that the log knows.
    pub last_run: u32,
    /// How far a stop has come.
    pub stop: Stop,
    /// Whether the volumes, endpoints and images are there.
    pub needs: Needs,
    /// Since when this start waits for them.
    pub waiting_since_ms: Option<u64>,
    /// The machine has booted since the pod was last looked at.
    pub booted: bool,
    /// The helper for the pod's files is to be started by this process, and is not yet.
    pub files_fresh: bool,
    /// The limits that the unit has; none when this process does not know.
    pub limits: Option<CpuLimits>,
    /// When the current run was launched.
    pub launched_ms: Option<u64>,
    /// When the last container exited, while the unit was alive.
    pub ended_ms: Option<u64>,
    /// When the unit ended or was found to be gone, nanoseconds since the Unix epoch.
    pub ended_ns: Option<u64>,
    /// The back-off before the last automatic restart.
    pub backoff_ms: u64,
    /// When the next automatic restart is due.
    pub restart_ms: Option<u64>,
}

impl Facts {
    /// Forgets what belonged to the run before; for a new one.
    pub fn begin_run(&mut self) {
        self.unit = Unit::Absent;
        self.files_fresh = false;
        self.log = RunLog::default();
        self.stop = Stop::No;
        self.waiting_since_ms = None;
        self.launched_ms = None;
        self.ended_ms = None;
        self.ended_ns = None;
        self.restart_ms = None;
        self.booted = false;
    }
}

/// The next step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Write this status, then ask again.
    Status(Box<PodStatus>),
    /// Do this, note its outcome in the facts, then ask again.
    Act(Action),
    /// Nothing until something happens or this time has come.
    Wait(Option<u64>),
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Choose a uid and write it into the status.
    AssignUid,
    /// Make the data directory, the writable layers and the log files.
    Prepare,
    /// Start the microVM of the run in the status.
    Launch,
    /// Start the helper that reaches the pod's files.
    OpenFiles,
    /// Have the helper end once it has done what it was asked.
    CloseFiles,
    /// Give the unit the limits of the spec.
    Limit,
    /// Send the stop signal to the containers.
    Signal,
    /// Kill the unit.
    Kill,
    /// Stop file servers, remove the run directory, give up claims.
    CleanUp,
    /// Delete the pod with its name, endpoints and anonymous volumes.
    Remove,
}

/// Decides what comes next for a pod whose resource is still there.
#[must_use]
pub fn decide(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    if status.uid.is_none() {
        return Step::Act(Action::AssignUid);
    }
    if !facts.prepared {
        return unprepared(spec, status, facts, now_ms);
    }
    match status.phase {
        Phase::Pending => change(status, |s| {
            s.phase = Phase::Created;
            s.message = None;
        }),
        Phase::Starting | Phase::Running | Phase::Stopping => live(spec, status, facts, now_ms),
        Phase::Created | Phase::Restarting | Phase::Exited => at_rest(spec, status, facts, now_ms),
    }
}

/// Its files are not there. When they cannot be made, as on a full pool, who waits for its start is told so; nothing waits for ever.
fn unprepared(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    let Some((at, why)) = &facts.prepare_again else { return Step::Act(Action::Prepare) };
    if spec.desired == Desired::Running && spec.starts > status.starts {
        return change(status, |s| {
            s.starts = spec.starts;
            s.run = s.run.max(facts.last_run) + 1;
            fail(spec, s, why);
        });
    }
    if is_removed(status, spec) {
        return Step::Act(Action::Remove);
    }
    if now_ms < *at { Step::Wait(Some(*at)) } else { Step::Act(Action::Prepare) }
}

/// The start that was asked for has failed.
fn fail(spec: &PodSpec, status: &mut PodStatus, message: &str) {
    for container in &spec.containers {
        let entry = status.containers.entry(container.id.clone()).or_default();
        entry.error = Some(StartError { kind: StartErrorKind::Other, message: message.to_owned() });
        entry.exit_code = 128;
    }
    status.message = Some(message.to_owned());
    status.phase = Phase::Exited;
}

fn change(status: &PodStatus, edit: impl FnOnce(&mut PodStatus)) -> Step {
    let mut new = status.clone();
    edit(&mut new);
    Step::Status(Box::new(new))
}

fn live(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    let mut new = status.clone();
    fold_log(spec, &mut new, &facts.log);
    if ended(spec, facts) {
        return settle(spec, new, facts);
    }
    let fresh = status.phase == Phase::Starting && facts.unit == Unit::Absent && facts.log.is_empty();
    if fresh {
        return launch(spec, status, facts, now_ms);
    }
    if facts.unit != Unit::Alive {
        fill_lost(spec, &mut new, facts);
        return settle(spec, new, facts);
    }
    if status.phase == Phase::Starting && facts.log.any_started() {
        new.phase = Phase::Running;
        new.message = None;
    }
    if spec.desired == Desired::Stopped {
        new.phase = Phase::Stopping;
    } else if new.phase == Phase::Running {
        // A request to start what runs already is answered by what there is.
        new.starts = spec.starts;
    }
    if new.phase != status.phase || new.starts != status.starts || new.containers != status.containers {
        return Step::Status(Box::new(new));
    }
    if status.phase == Phase::Stopping {
        return stop(spec, facts, now_ms);
    }
    if facts.limits != Some(spec.cpu) {
        return Step::Act(Action::Limit);
    }
    Step::Wait(None)
}

fn launch(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    if spec.desired == Desired::Stopped {
        return change(status, |s| {
            s.phase = Phase::Exited;
            s.message = None;
        });
    }
    match &facts.needs {
        Needs::Ready => Step::Act(Action::Launch),
        Needs::Failed(why) => change(status, |s| fail(spec, s, why)),
        Needs::Waiting(why) => {
            let since = facts.waiting_since_ms.unwrap_or(now_ms);
            let until = since + NEEDS_PATIENCE_MS;
            // After a boot the pool and the networks may take their time, and nobody waits for an answer.
            let patient = status.restart_count > 0;
            if !patient && now_ms >= until {
                let why = format!("{why}: still so after {} s", NEEDS_PATIENCE_MS / 1000);
                return change(status, |s| fail(spec, s, &why));
            }
            if status.message.as_deref() != Some(why) {
                return change(status, |s| s.message = Some(why.clone()));
            }
            Step::Wait(if patient { None } else { Some(until) })
        }
    }
}

fn stop(spec: &PodSpec, facts: &Facts, now_ms: u64) -> Step {
    match facts.stop {
        Stop::No if spec.stop_grace_s == 0 => Step::Act(Action::Kill),
        Stop::No => Step::Act(Action::Signal),
        Stop::Asked { at_ms } => match u64::try_from(spec.stop_grace_s) {
            Err(_) => Step::Wait(None),
            Ok(grace_s) => {
                let until = at_ms.saturating_add(grace_s.saturating_mul(1000));
                if now_ms >= until { Step::Act(Action::Kill) } else { Step::Wait(Some(until)) }
            }
        },
        Stop::Killed { at_ms } => kill_again(at_ms, now_ms),
    }
}

fn kill_again(at_ms: u64, now_ms: u64) -> Step {
    let until = at_ms + KILL_AGAIN_MS;
    if now_ms >= until { Step::Act(Action::Kill) } else { Step::Wait(Some(until)) }
}

fn at_rest(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    if status.files.up {
        return with_files(spec, status, facts, now_ms);
    }
    if facts.unit == Unit::Alive {
        if is_removed(status, spec) && keeps_nothing(spec) {
            return Step::Act(Action::Remove);
        }
        if let Stop::Killed { at_ms } = facts.stop {
            return kill_again(at_ms, now_ms);
        }
        let until = facts.ended_ms.unwrap_or(now_ms) + LINGER_MS;
        return if now_ms >= until { Step::Act(Action::Kill) } else { Step::Wait(Some(until)) };
    }
    if facts.dirty {
        return Step::Act(Action::CleanUp);
    }
    match due(spec, status, facts, now_ms) {
        Step::Wait(until) if spec.files_asks > status.files.asks => match status.phase {
            // It starts again soon, and is asked itself then.
            Phase::Restarting => Step::Wait(until),
            _ => open_files(spec, status, facts, now_ms),
        },
        step => step,
    }
}

/// The pod's disks have one user at a time: the unit has the same name, and everything else waits until it is gone.
fn with_files(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    match (&facts.unit, facts.stop) {
        (Unit::Absent, _) if facts.files_fresh => Step::Act(Action::OpenFiles),
        (Unit::Alive, Stop::No) if spec.files_asks > status.files.asks => {
            change(status, |s| s.files.asks = spec.files_asks)
        }
        (Unit::Alive, Stop::No) => match due(spec, status, facts, now_ms) {
            Step::Wait(until) => Step::Wait(until),
            _ => Step::Act(Action::CloseFiles),
        },
        (Unit::Alive, Stop::Asked { at_ms }) => {
            let until = at_ms + FILES_PATIENCE_MS;
            if now_ms >= until { Step::Act(Action::Kill) } else { Step::Wait(Some(until)) }
        }
        (Unit::Alive, Stop::Killed { at_ms }) => kill_again(at_ms, now_ms),
        (Unit::Failed { message }, _) => change(status, |s| {
            s.files = FilesStatus { asks: spec.files_asks, up: false, error: Some(message.clone()) };
        }),
        (Unit::Absent | Unit::Ended { .. }, _) => change(status, |s| s.files.up = false),
    }
}

fn open_files(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    match &facts.needs {
        // Answered when it is there.
        Needs::Ready => change(status, |s| s.files = FilesStatus { asks: s.files.asks, up: true, error: None }),
        Needs::Waiting(_) if facts.waiting_since_ms.is_none_or(|since| now_ms < since + NEEDS_PATIENCE_MS) => {
            Step::Wait(Some(facts.waiting_since_ms.unwrap_or(now_ms) + NEEDS_PATIENCE_MS))
        }
        Needs::Waiting(why) | Needs::Failed(why) => change(status, |s| {
            s.files = FilesStatus { asks: spec.files_asks, up: false, error: Some(why.clone()) };
        }),
    }
}

/// What a pod without a microVM is to do of its own.
fn due(spec: &PodSpec, status: &PodStatus, facts: &Facts, now_ms: u64) -> Step {
    if is_removed(status, spec) {
        return Step::Act(Action::Remove);
    }
    if spec.desired == Desired::Stopped {
        return match status.phase {
            Phase::Restarting => change(status, |s| s.phase = Phase::Exited),
            _ => Step::Wait(None),
        };
    }
    if spec.starts > status.starts {
        if facts.booted && facts.last_run > status.run {
            // The log knows a run that the status does not: the start was carried out, and a power cut took the status.
            return change(status, |s| {
                s.phase = Phase::Running;
                s.starts = spec.starts;
                s.run = facts.last_run;
            });
        }
        return begin(spec, status, facts, 0);
    }
    if facts.booted
        && spec.starts > 0
        && matches!(spec.restart_policy, RestartPolicy::Always | RestartPolicy::UnlessStopped)
    {
        return begin(spec, status, facts, status.restart_count + 1);
    }
    if status.phase == Phase::Restarting {
        let at = facts.restart_ms.unwrap_or(now_ms);
        return if now_ms >= at { begin(spec, status, facts, status.restart_count + 1) } else { Step::Wait(Some(at)) };
    }
    Step::Wait(None)
}

fn is_removed(status: &PodStatus, spec: &PodSpec) -> bool {
    status.phase == Phase::Exited && spec.auto_remove && status.run > 0
}

/// What its guest still does after the last container's exit is of no use to anybody: nobody needs to wait for it.
/// A volume may get what is in the guest's page cache, and must not have another user before.
fn keeps_nothing(spec: &PodSpec) -> bool {
    let kept = |mount: &Mount| mount.volume().is_some();
    !spec.containers.iter().any(|container| container.mounts.iter().any(kept))
}

fn begin(spec: &PodSpec, status: &PodStatus, facts: &Facts, restart_count: u32) -> Step {
    change(status, |s| {
        s.phase = Phase::Starting;
        s.starts = spec.starts;
        // A status may be older than the log after a power cut; runs must never repeat.
        s.run = s.run.max(facts.last_run) + 1;
        s.restart_count = restart_count;
        s.message = None;
        s.interfaces.clear();
        for container in &spec.containers {
            let entry = s.containers.entry(container.id.clone()).or_default();
            entry.error = None;
            entry.oom_killed = false;
            entry.paused = false;
        }
    })
}

fn ended(spec: &PodSpec, facts: &Facts) -> bool {
    spec.containers.iter().all(|c| facts.log.end_of(&c.id).is_some())
}

fn fold_log(spec: &PodSpec, status: &mut PodStatus, log: &RunLog) {
    for container in &spec.containers {
        let Some(seen) = log.of(&container.id) else { continue };
        let entry = status.containers.entry(container.id.clone()).or_default();
        if let Some((pid, at)) = seen.started {
            entry.pid = pid;
            entry.started_ns = at;
            entry.health = seen.health.clone().or_else(|| container.health.as_ref().map(|_| Health::default()));
        }
        let Some((end, at)) = &seen.end else { continue };
        entry.pid = 0;
        entry.finished_ns = *at;
        match end {
            End::Exited { code, oom_killed } => {
                entry.exit_code = *code;
                entry.oom_killed = *oom_killed;
            }
            End::Failed(error) => {
                entry.exit_code = match error.kind {
                    StartErrorKind::NotFound => 127,
                    StartErrorKind::NotExecutable => 126,
                    StartErrorKind::Other => 128,
                };
                entry.error = Some(error.clone());
            }
        }
    }
}

/// The unit is gone and the log does not say how the containers ended.
fn fill_lost(spec: &PodSpec, status: &mut PodStatus, facts: &Facts) {
    let killed = matches!(facts.stop, Stop::Killed { .. });
    let (oom, why) = match &facts.unit {
        Unit::Failed { message } => (false, message.clone()),
        Unit::Ended { result } => (
            result == "oom-kill",
            format!("the microVM ended without a word ({result}): the journal of its unit says more"),
        ),
        Unit::Absent | Unit::Alive => (false, "the microVM is gone, as after a power cut".to_owned()),
    };
    for container in &spec.containers {
        if facts.log.end_of(&container.id).is_some() {
            continue;
        }
        let started = facts.log.started(&container.id) || status.phase == Phase::Running;
        let entry = status.containers.entry(container.id.clone()).or_default();
        entry.pid = 0;
        entry.oom_killed = oom;
        entry.exit_code = if killed || oom { 137 } else { 255 };
        entry.finished_ns = facts.ended_ns.unwrap_or(facts.log.last_ns);
        if !started && !killed {
            entry.error = Some(StartError { kind: StartErrorKind::Other, message: why.clone() });
        }
    }
    if !killed {
        status.message = Some(why);
    }
}

fn settle(spec: &PodSpec, mut status: PodStatus, facts: &Facts) -> Step {
    let first = spec.containers.first().and_then(|c| status.containers.get(&c.id));
    let failed_start = status.containers.values().any(|c| c.error.is_some());
    let code = first.map_or(0, |c| c.exit_code);
    // The user who asked for a start that fails gets the error; only what ran before is started again by itself.
    let may = spec.desired == Desired::Running
        && spec.starts == status.starts
        && !(failed_start && status.restart_count == 0);
    let again =
        may && match spec.restart_policy {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { max_retries } => {
                code != 0 && (max_retries == 0 || status.restart_count < max_retries)
            }
        } && !spec.auto_remove;
    status.phase = if again || (facts.booted && may && boots(spec)) { Phase::Restarting } else { Phase::Exited };
    Step::Status(Box::new(status))
}

fn boots(spec: &PodSpec) -> bool {
    matches!(spec.restart_policy, RestartPolicy::Always | RestartPolicy::UnlessStopped)
}

/// The back-off before the next automatic restart: 100 ms, doubling to a minute, from the start again after a run of
/// ten seconds.
#[must_use]
pub fn next_backoff(last_ms: u64, ran_ms: u64) -> u64 {
    if last_ms == 0 || ran_ms >= SETTLED_MS { BACKOFF_FIRST_MS } else { (last_ms * 2).min(BACKOFF_MAX_MS) }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
