//! What the records of one run say of a pod's containers; output is left aside.

use std::collections::BTreeMap;
use zone::ContainerId;
use zone::health::Health;
use zone::log::{Data, Record};
use zone::pod::StartError;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its process has exited.
    Exited {
        /// The exit code.
        code: i32,
        /// Killed for want of memory.
        oom_killed: bool,
    },
    /// Its process could not be started.
    Failed(StartError),
}

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its process id and when it started.
    pub started: Option<(u32, u64)>,
    /// What was last said of its health.
    pub health: Option<Health>,
    /// How and when it ended.
    pub end: Option<(End, u64)>,
}

/// What is known of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunLog {
    containers: BTreeMap<ContainerId, Seen>,
    /// The time of the last record, nanoseconds since the Unix epoch.
    pub last_ns: u64,
}

impl RunLog {
    /// Takes a record of this run into account.
    pub fn take(&mut self, record: &Record) {
        self.last_ns = record.time_ns;
        let id = ContainerId::new(record.container.clone());
        match &record.data {
            Data::Started { pid } => self.containers.entry(id).or_default().started = Some((*pid, record.time_ns)),
            Data::Health(health) => self.containers.entry(id).or_default().health = Some(health.clone()),
            Data::Exited { code, oom_killed } => {
                let end = End::Exited { code: *code, oom_killed: *oom_killed };
                self.containers.entry(id).or_default().end = Some((end, record.time_ns));
            }
            Data::Failed(error) => {
                self.containers.entry(id).or_default().end = Some((End::Failed(error.clone()), record.time_ns));
            }
            Data::Out(_) | Data::Err(_) | Data::OutB64(_) | Data::ErrB64(_) => {}
        }
    }

    /// Nothing has been written in this run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last_ns == 0 && self.containers.is_empty()
    }

    /// What is known of a container.
    #[must_use]
    pub fn of(&self, id: &ContainerId) -> Option<&Seen> {
        self.containers.get(id)
    }

    /// How a container ended.
    #[must_use]
    pub fn end_of(&self, id: &ContainerId) -> Option<&End> {
        self.of(id).and_then(|s| s.end.as_ref()).map(|(end, _)| end)
    }

    /// The container's process has been started.
    #[must_use]
    pub fn started(&self, id: &ContainerId) -> bool {
        self.of(id).is_some_and(|s| s.started.is_some())
    }

    /// Any container's process has been started.
    #[must_use]
    pub fn any_started(&self) -> bool {
        self.containers.values().any(|s| s.started.is_some())
    }
}
