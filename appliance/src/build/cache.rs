//! The content-addressed cache of finished steps, outside the checkout.
//!
//! `STEP/KEY/` is an entry; it appears by one rename when it is whole, so that a build killed at any time leaves nothing
//! half-made in use. What was begun lies in `tmp/` and is removed by the next build. One build at a time holds the lock.

use super::error::{At, Error, Result};
use super::host::Host;
use super::key::Key;
use super::{Outcome, Progress};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Room that a cold build needs.
const NEEDED_MIB: u64 = 9 * 1024;

/// An open cache; the lock is held as long as this lives.
pub struct Cache {
    root: PathBuf,
    host: Host,
    _lock: File,
}

/// Where the cache lies when the caller does not say.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn default_root() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|base| base.join("kraudbox"))
        .ok_or(Error::NoHome)
}

impl Cache {
    /// Opens the cache at `root`, makes it when it is not there, and clears what a killed build left. Waits for another build.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn open(root: PathBuf, host: Host, progress: &mut dyn Progress) -> Result<Self> {
        for dir in ["tmp", "logs"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).at("make", &dir)?;
        }
        let path = root.join("lock");
        let lock = File::create(&path).at("open", &path)?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            progress.note(&format!("another build uses {}: waiting until it ends", root.display()));
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).at("lock", &path)?;
        }
        let cache = Self { root, host, _lock: lock };
        for left in fs::read_dir(cache.root.join("tmp")).at("read", &cache.root)?.flatten() {
            cache.host.remove(&left.path())?;
        }
        Ok(cache)
    }

    /// Fails unless the disk has room for a cold build.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub fn check_space(&self) -> Result<()> {
        let fs = rustix::fs::statvfs(&self.root).at("measure", &self.root)?;
        let free_mib = fs.f_bavail.saturating_mul(fs.f_frsize) >> 20;
        if free_mib < NEEDED_MIB {
            return Err(Error::NoSpace { path: self.root.clone(), free_mib, needed_mib: NEEDED_MIB });
        }
        Ok(())
    }

    /// A file for a step's output.
    #[must_use]
    pub fn log(&self, step: &str) -> PathBuf {
        self.root.join("logs").join(format!("{step}.log"))
    }

    /// A folder that is kept and not keyed: signing keys.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn kept(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).at("make", &dir)?;
        Ok(dir)
    }

    /// The entry of `step` for `key`: the one that is there, or what `make` puts into the folder it is given.
    ///
    /// # Errors
    /// Those of `make`; nothing is kept then.
    pub fn step(
        &self,
        progress: &mut dyn Progress,
        step: &str,
        key: Key,
        make: impl FnOnce(&Path, &mut dyn Progress) -> Result<()>,
    ) -> Result<PathBuf> {
        let hex = key.hex();
        let entry = self.root.join(step).join(&hex);
        let started = Instant::now();
        progress.started(step);
        if entry.is_dir() {
            let used = entry.join(".used");
            let _ = fs::write(used, b"");
            progress.finished(step, Outcome::Cached, started.elapsed());
            return Ok(entry);
        }
        let parent = self.root.join(step);
        fs::create_dir_all(&parent).at("make", &parent)?;
        self.check_space()?;
        let temp = self.root.join("tmp").join(format!("{step}-{hex}"));
        fs::create_dir(&temp).at("make", &temp)?;
        let _ = fs::remove_file(self.log(step));
        if let Err(error) = make(&temp, progress) {
            self.host.remove(&temp)?;
            return Err(error);
        }
        fs::write(temp.join(".used"), b"").at("write", &temp)?;
        fs::rename(&temp, &entry).at("put in place", &entry)?;
        progress.finished(step, Outcome::Built, started.elapsed());
        Ok(entry)
    }

    /// Moves an entry to another key, unless that is there already.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn rekey(&self, step: &str, entry: &Path, key: Key) -> Result<()> {
        let to = self.root.join(step).join(key.hex());
        if to.exists() { self.host.remove(entry) } else { fs::rename(entry, &to).at("put in place", &to) }
    }

    /// Removes entries that no build has used for `age`; returns what it removed.
    ///
    /// # Errors
    /// When the cache cannot be read or an entry cannot be removed.
    pub fn collect(&self, age: Duration) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for step in fs::read_dir(&self.root).at("read", &self.root)?.flatten().filter(|e| e.path().is_dir()) {
            for entry in fs::read_dir(step.path()).at("read", step.path())?.flatten() {
                let used = fs::metadata(entry.path().join(".used")).and_then(|m| m.modified());
                let Ok(used) = used else { continue };
                if SystemTime::now().duration_since(used).is_ok_and(|idle| idle >= age) {
                    self.host.remove(&entry.path())?;
                    removed.push(entry.path());
                }
            }
        }
        Ok(removed)
    }
}
