//! The content-addressed cache of finished steps, outside the checkout.
//!
//! `STEP/KEY/` is an entry; it appears by one rename when it is whole, so that a build killed at any time leaves nothing
//! half-made in use. What was begun lies in `tmp/` and is removed by the next build that is alone. Builds share the cache: each
//! step is made by one of them while others that need it wait. Collecting waits until nobody builds.

use super::error::{At, Error, Result};
use super::host::Host;
use super::key::Key;
use super::{Outcome, Progress};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Room that a cold build needs.
const NEEDED_MIB: u64 = 9 * 1024;

/// An open cache; it is not collected as long as this lives.
pub struct Cache {
    root: PathBuf,
    host: Host,
    lock: File,
    /// Whether no other build was there when this one began: it has the plain names of logs.
    first: bool,
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
    /// Opens the cache at `root`, makes it when it is not there, and clears what a killed build left.
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
        let first = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let cache = Self { root, host, lock, first };
        if first {
            for left in fs::read_dir(cache.root.join("tmp")).at("read", &cache.root)?.flatten() {
                cache.host.remove(&left.path())?;
            }
        }
        if flock(&cache.lock, FlockOperation::NonBlockingLockShared).is_err() {
            progress.note(&format!("{} is being cleaned up: waiting until that ends", cache.root.display()));
            flock(&cache.lock, FlockOperation::LockShared).at("lock", &path)?;
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
        let other = if self.first { String::new() } else { format!("-{}", std::process::id()) };
        self.root.join("logs").join(format!("{step}{other}.log"))
    }

    /// Keeps other builds from making `name` until what it returns is dropped; waits for one that does.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    pub fn alone(&self, name: &str, progress: &mut dyn Progress) -> Result<File> {
        let path = self.root.join("tmp").join(format!("{name}.lock"));
        let lock = File::create(&path).at("open", &path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            progress.note(&format!("another build makes {name}: waiting until it ends"));
            flock(&lock, FlockOperation::LockExclusive).at("lock", &path)?;
        }
        Ok(lock)
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
        let name = format!("{step}-{hex}");
        let _alone = if entry.is_dir() { None } else { Some(self.alone(&name, progress)?) };
        if entry.is_dir() {
            let used = entry.join(".used");
            let _ = fs::write(used, b"");
            progress.finished(step, Outcome::Cached, started.elapsed());
            return Ok(entry);
        }
        let parent = self.root.join(step);
        fs::create_dir_all(&parent).at("make", &parent)?;
        self.check_space()?;
        let temp = self.root.join("tmp").join(name);
        if temp.exists() {
            // A build was killed while others went on.
            self.host.remove(&temp)?;
        }
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

    /// Removes entries that no build has used for `age`, when no build runs; returns what it removed.
    ///
    /// # Errors
    /// When a build runs, the cache cannot be read, or an entry cannot be removed.
    pub fn collect(&self, age: Duration) -> Result<Vec<PathBuf>> {
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::CacheInUse { path: self.root.clone() });
        }
        let mut removed = Vec::new();
        for step in fs::read_dir(&self.root).at("read", &self.root)?.flatten().filter(|e| e.path().is_dir()) {
            for entry in fs::read_dir(step.path()).at("read", step.path())?.flatten() {
                let used = fs::metadata(entry.path().join(".used")).and_then(|m| m.modified());
                let Ok(used) = used else { continue };
                if SystemTime::now().duration_since(used).is_ok_and(|idle| idle >= age) {
                    // Away by one rename first: whenever this is killed, no entry is half there.
                    let gone = self.root.join("tmp").join(format!("gone-{}", entry.file_name().display()));
                    fs::rename(entry.path(), &gone).at("remove", entry.path())?;
                    self.host.remove(&gone)?;
                    removed.push(entry.path());
                }
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Quiet;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn open(root: &Path) -> Cache {
        Cache::open(root.to_owned(), Host::detect().unwrap(), &mut Quiet).unwrap()
    }

    #[test]
    fn builds_that_need_the_same_step_make_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = AtomicU32::new(0);
        let build = || {
            let cache = open(dir.path());
            let entry = cache.step(&mut Quiet, "step", Key::new("step", 1), |dir, _| {
                made.fetch_add(1, Ordering::SeqCst);
                fs::write(dir.join("file"), "whole").at("write", dir)
            });
            assert_eq!(fs::read_to_string(entry.unwrap().join("file")).unwrap(), "whole");
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(build);
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_a_killed_build_left_is_not_used_while_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let _other = open(dir.path());
        let cache = open(dir.path());
        let left = dir.path().join("tmp").join(format!("step-{}", Key::new("step", 1).hex()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("half"), "").unwrap();
        let entry = cache.step(&mut Quiet, "step", Key::new("step", 1), |_, _| Ok(())).unwrap();
        assert!(!entry.join("half").exists());
    }

    #[test]
    fn nothing_is_collected_while_a_build_runs() {
        let dir = tempfile::tempdir().unwrap();
        let build = open(dir.path());
        build.step(&mut Quiet, "step", Key::new("step", 1), |_, _| Ok(())).unwrap();
        assert!(matches!(open(dir.path()).collect(Duration::ZERO), Err(Error::CacheInUse { .. })));
        drop(build);
        assert_eq!(open(dir.path()).collect(Duration::ZERO).unwrap().len(), 1);
    }
}
