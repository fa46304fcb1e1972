//! What all threads share: the log, the containers, the count of what still goes on.

use crate::console;
use crate::container::Container;
use crate::exec::Execs;
use crate::log::Log;
use crate::platform::Platform;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zone::guest::GuestSpec;

/// How long clients may take to read the last output before the power goes.
const STREAM_LIMIT: Duration = Duration::from_secs(5);
/// How long an agent that only has files waits for a request.
const FILES_IDLE: Duration = Duration::from_secs(5);
/// How long it goes on with requests after it was told to end.
const FILES_LIMIT: Duration = Duration::from_secs(55);
/// Stacks are small: the guest may have little memory, and nothing here recurses deeply.
const STACK: usize = 256 * 1024;

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// Where it runs.
    pub platform: Platform,
    /// What it was told.
    pub spec: GuestSpec,
    /// The log.
    pub log: Log,
    /// Processes that were started besides.
    pub execs: Execs,
    /// The containers whose files could be mounted, by id.
    pub containers: BTreeMap<String, Arc<Container>>,
    /// Why the files of the others could not be mounted.
    pub failures: BTreeMap<String, String>,
    activity: Mutex<Activity>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Activity {
    running: usize,
    streams: usize,
    connections: usize,
    shutdown: bool,
}

impl Agent {
    /// An agent with nothing running.
    pub fn new(
        platform: Platform,
        spec: GuestSpec,
        log: Log,
        containers: BTreeMap<String, Arc<Container>>,
        failures: BTreeMap<String, String>,
    ) -> Self {
        Self {
            platform,
            spec,
            log,
            execs: Execs::default(),
            containers,
            failures,
            activity: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Activity)) {
        change(&mut self.activity());
        self.changed.notify_all();
    }

    /// A container runs.
    pub fn container_started(&self) {
        self.change(|a| a.running += 1);
    }

    /// A container has exited and its last record is sent.
    pub fn container_ended(&self) {
        self.change(|a| a.running -= 1);
    }

    /// Somebody wants the power off.
    pub fn request_shutdown(&self) {
        self.change(|a| a.shutdown = true);
    }

    /// Whether anything is left that a request could be about.
    pub fn needs_server(&self) -> bool {
        self.spec.files_only || self.activity().running > 0
    }

    /// Waits until the last container has exited; with `files_only`, until nobody has asked for a while or the shutdown was
    /// asked for, and what was asked is done.
    pub fn wait_for_containers(&self) {
        if self.spec.files_only {
            return self.wait_for_requests();
        }
        let mut activity = self.activity();
        while activity.running > 0 {
            activity = self.changed.wait(activity).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the last container for this long; true when some still run.
    pub fn still_runs_after(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut activity = self.activity();
        while activity.running > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return true };
            (activity, _) = self.changed.wait_timeout(activity, left).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    fn wait_for_requests(&self) {
        let mut deadline = Instant::now() + FILES_IDLE;
        let mut limited = false;
        let mut activity = self.activity();
        loop {
            if activity.shutdown && !std::mem::replace(&mut limited, true) {
                deadline = Instant::now() + FILES_LIMIT;
            }
            if activity.shutdown && activity.streams == 0 {
                return;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            if activity.connections > 0 && !limited {
                activity = self.changed.wait(activity).unwrap_or_else(PoisonError::into_inner);
                deadline = Instant::now() + FILES_IDLE;
            } else {
                (activity, _) = self.changed.wait_timeout(activity, left).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Counts a client's connection, until the guard is dropped.
    pub fn connection(self: &Arc<Self>) -> ConnectionGuard {
        self.change(|a| a.connections += 1);
        ConnectionGuard(Arc::clone(self))
    }

    /// Counts a client that output is sent to, until the guard is dropped.
    pub fn stream(self: &Arc<Self>) -> StreamGuard {
        self.change(|a| a.streams += 1);
        StreamGuard(Arc::clone(self))
    }

    /// Waits, not for long, until all clients have read what was sent to them.
    pub fn wait_for_streams(&self) {
        let deadline = Instant::now() + STREAM_LIMIT;
        let mut activity = self.activity();
        while activity.streams > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            (activity, _) = self.changed.wait_timeout(activity, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A client that output is sent to.
#[derive(Debug)]
pub struct StreamGuard(Arc<Agent>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.change(|a| a.streams -= 1);
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<Agent>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.change(|a| a.connections -= 1);
    }
}

/// Runs `work` on a thread of its own. Returns false when there is no memory for one.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> bool {
    match std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work) {
        Ok(_) => true,
        Err(error) => {
            console::say(&format!("cannot start the thread {name}: {error}"));
            false
        }
    }
}
