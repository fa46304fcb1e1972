//! Following a container's log files: their records now, and each that is written later.
//!
//! Owns the waiting. It wakes by inotify on the folder, and by the zone's changes as long as there is no folder yet.
//! A record is in the file before the status tells of the exit, so whoever sees the exit reads once more and has all.

use crate::state::{Container, World};
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zone::ContainerId;
use zone::log::{LogReader, Record};

/// Looks again after this long, should a file system not tell of changes.
const SAFETY: Duration = Duration::from_secs(2);

/// About how much is read at once of what was just written.
const NEW: usize = 64 * 1024;

/// Which exits had been there when following began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Baseline {
    finished_ns: u64,
    starts: u64,
    run: u32,
}

impl Baseline {
    /// As the container is now.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let pod = &container.pod.status;
        Self { finished_ns: container.status().finished_ns, starts: pod.starts, run: pod.run }
    }

    /// Whether the container has exited, or failed to start, since.
    #[must_use]
    pub fn is_past(&self, now: &Container) -> bool {
        let exited = now.pod.status.phase == zone::pod::Phase::Exited;
        let later = Self::of(now);
        later.finished_ns != self.finished_ns || (exited && (later.starts, later.run) != (self.starts, self.run))
    }
}

/// The files are made first and given to the group next, and they go with the container.
fn not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
}

/// A container's log, as it grows.
pub struct Follower {
    reader: Option<LogReader>,
    dir: PathBuf,
    events: Option<EventStream<Vec<u8>>>,
    watched: bool,
    /// All that was there has been read: what comes is new, and still in memory.
    at_end: bool,
    changes: watch::Receiver<Arc<World>>,
    container: ContainerId,
}

impl Follower {
    /// Follows the container's log from its beginning, or from its end.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn new(
        container: ContainerId,
        files: [PathBuf; 2],
        at_end: bool,
        changes: watch::Receiver<Arc<World>>,
    ) -> io::Result<Self> {
        let dir = files[0].parent().map(PathBuf::from).unwrap_or_default();
        let events = Inotify::init().and_then(|i| i.into_event_stream(vec![0; 4096])).ok();
        let make = move || match at_end.then(|| LogReader::at_end(files.clone())) {
            Some(Err(error)) if not_yet(&error) => Ok(LogReader::new(files)),
            Some(reader) => reader,
            None => Ok(LogReader::new(files)),
        };
        let mut follower = Self { reader: None, dir, events, watched: false, at_end, changes, container };
        follower.watch();
        follower.reader = Some(tokio::task::spawn_blocking(make).await.map_err(io::Error::other)??);
        Ok(follower)
    }

    fn watch(&mut self) {
        if self.watched {
            return;
        }
        if let Some(events) = &self.events {
            self.watched =
                events.watches().add(&self.dir, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::ATTRIB).is_ok();
            if !self.watched && self.dir.exists() {
                tracing::debug!(dir = %self.dir.display(), "a log's folder cannot be watched yet");
            }
        }
    }

    /// The container's next records; empty when there are no more for now.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn read(&mut self) -> io::Result<Vec<Record>> {
        let Some(mut reader) = self.reader.take() else { return Ok(Vec::new()) };
        // What was just written needs no other thread, which would cost more than to read it.
        let (reader, records) = if self.at_end {
            let records = reader.read_about(NEW);
            (reader, records)
        } else {
            tokio::task::spawn_blocking(move || {
                let records = reader.read();
                (reader, records)
            })
            .await
            .map_err(io::Error::other)?
        };
        self.reader = Some(reader);
        self.at_end = records.as_ref().is_ok_and(|records| self.at_end || records.is_empty());
        let mut records = match records {
            Err(error) if not_yet(&error) => Vec::new(),
            other => other?,
        };
        records.retain(|r| r.container == self.container.as_str());
        Ok(records)
    }

    /// The container as it is now; the flag says that it is gone. Marks the state as seen.
    pub fn container(&mut self) -> Option<(Container, bool)> {
        let world = self.changes.borrow_and_update().clone();
        world.container_even_gone(&self.container)
    }

    /// Waits until there may be something new in the log, or in the zone.
    pub async fn changed(&mut self) {
        let had = self.watched;
        self.watch();
        if self.watched && !had {
            // What was written before the watch has no event.
            return;
        }
        let written = async {
            match &mut self.events {
                Some(events) => drop(events.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = written => {}
            _ = self.changes.changed() => {}
            () = tokio::time::sleep(SAFETY) => {}
        }
    }
}
