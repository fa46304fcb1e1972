//! Tells when files change: one inotify instance for all pods' logs.
//!
//! Must not: read the files. A notice says no more than "look again".

use futures_util::StreamExt as _;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

type Waiting = Arc<Mutex<HashMap<WatchDescriptor, Arc<Notify>>>>;

/// Watches files. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    watches: Watches,
    waiting: Waiting,
}

/// Some files under watch; dropping it ends the watch.
pub struct Following {
    follower: Follower,
    descriptors: Vec<WatchDescriptor>,
}

impl Follower {
    /// Starts to watch nothing yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance.
    pub fn start() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let follower = Self { watches: inotify.watches(), waiting: Waiting::default() };
        let waiting = follower.waiting.clone();
        let mut events = inotify.into_event_stream(vec![0; 16 * 1024])?;
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(event) = event else { continue };
                let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Notices were lost: everybody looks again.
                    waiting.values().for_each(|n| n.notify_one());
                } else if let Some(notify) = waiting.get(&event.wd) {
                    notify.notify_one();
                }
            }
        });
        Ok(follower)
    }

    /// Has `notify` told of every change of the files from now on.
    ///
    /// # Errors
    /// When a file is not there.
    pub fn follow(&self, files: &[PathBuf], notify: &Arc<Notify>) -> io::Result<Following> {
        let mut following = Following { follower: self.clone(), descriptors: Vec::new() };
        for file in files {
            let descriptor = self.watches.clone().add(file, WatchMask::MODIFY)?;
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(descriptor.clone(), notify.clone());
            following.descriptors.push(descriptor);
        }
        Ok(following)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for descriptor in self.descriptors.drain(..) {
            self.follower.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&descriptor);
            // The file may be gone already, and its watch with it.
            let _ = self.follower.watches.clone().remove(descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::time::Duration;

    #[tokio::test]
    async fn a_write_is_told_and_files_of_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, other) = (dir.path().join("log.0"), dir.path().join("other"));
        let mut file = std::fs::File::create(&mine).unwrap();
        std::fs::write(&other, "").unwrap();
        let follower = Follower::start().unwrap();
        let (notify, never) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let following = follower.follow(&[mine], &notify).unwrap();
        let _others = follower.follow(&[other], &never).unwrap();
        file.write_all(b"x").unwrap();
        tokio::time::timeout(Duration::from_secs(10), notify.notified()).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), never.notified()).await.is_err());
        drop(following);
        assert_eq!(follower.waiting.lock().unwrap().len(), 1);
    }
}
