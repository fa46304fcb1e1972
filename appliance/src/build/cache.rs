//! The content-addressed cache of finished steps, outside the checkout.
//!
//! `STEP/KEY/` is an entry; it appears by one rename when it is whole, so that a build killed at any time leaves nothing
//! half-made in use. What was begun lies in `tmp/` and is removed by the next build that is alone. Builds share the cache: each
//! step is made by one of them while others that need it wait.
//!
//! `builds/` holds a list for each checkout and kind of image: what its last whole build was made from. Collecting removes what is
//! on none of them; it waits for no build and is refused while one runs.

use super::debs;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::Key;
use super::lock::Lock;
use super::trees::DEBS;
use super::{Outcome, Progress};
use rustix::fs::{FlockOperation, flock};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Room that a cold build needs, which begins with a tree.
const COLD_MIB: u64 = 9 * 1024;
/// Room that any later step needs with those after it.
const STEP_MIB: u64 = 3 * 1024;
/// The folder of the lists of what is needed.
const BUILDS: &str = "builds";

/// An open cache; it is not collected as long as this lives.
pub struct Cache {
    root: PathBuf,
    host: Host,
    lock: File,
    /// Whether no other build was there when this one began: it has the plain names of logs.
    first: bool,
    /// The entries that this build has used, as `STEP/KEY`.
    used: RefCell<BTreeSet<String>>,
    /// Where our programs are compiled, when not where cargo does by itself.
    compiled: Option<PathBuf>,
}

/// What collecting has done.
#[derive(Debug, Default)]
pub struct Collected {
    /// The entries that are gone.
    pub removed: Vec<PathBuf>,
    /// How many stay.
    pub kept: usize,
    /// Files of the local package cache that no lock names, which are gone.
    pub packages: usize,
    /// How much more room the disk has.
    pub freed_mib: u64,
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
        let cache = Self { root, host, lock, first, used: RefCell::default(), compiled: None };
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

    /// Compiles our programs in here too, from nothing.
    #[must_use]
    pub fn with_programs(self) -> Self {
        let compiled = Some(self.root.join("target"));
        Self { compiled, ..self }
    }

    /// Where our programs are compiled.
    #[must_use]
    pub fn target(&self, workspace: &Path) -> PathBuf {
        let chosen = self.compiled.clone().or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from));
        chosen.unwrap_or_else(|| workspace.join("target"))
    }

    /// Fails unless the disk has room for a step and what comes after it.
    fn check_space(&self, step: &str) -> Result<()> {
        let needed_mib = if step.starts_with("tree-") { COLD_MIB } else { STEP_MIB };
        let free_mib = self.free_mib()?;
        if free_mib < needed_mib {
            return Err(Error::NoSpace { path: self.root.clone(), free_mib, needed_mib });
        }
        Ok(())
    }

    fn free_mib(&self) -> Result<u64> {
        host::free_mib(&self.root).at("measure", &self.root)
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
        self.used.borrow_mut().insert(format!("{step}/{hex}"));
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
        self.check_space(step)?;
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

    /// The entry of `step` for `key`, when it is there.
    #[must_use]
    pub fn find(&self, step: &str, key: &Key) -> Option<PathBuf> {
        let entry = self.root.join(step).join(key.clone().hex());
        entry.is_dir().then_some(entry)
    }

    /// Notes that the last whole build of `what` in `workspace` is made from the entries that were used since the cache was opened.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub fn keep_for(&self, workspace: &Path, what: &str) -> Result<()> {
        let name = Key::new(BUILDS, 1).text("workspace", &workspace.to_string_lossy()).text("what", what).hex();
        let lines: Vec<_> = self.used.borrow().iter().cloned().collect();
        let path = self.kept(BUILDS)?.join(&name);
        let new = self.root.join("tmp").join(name);
        fs::write(&new, format!("{}\n{}\n", workspace.display(), lines.join("\n"))).at("write", &new)?;
        fs::rename(&new, &path).at("write", &path)
    }

    /// The entries that the last builds need, and the locks of their checkouts; forgets the builds of checkouts that are gone.
    fn needed(&self) -> Result<(BTreeSet<String>, Vec<Lock>)> {
        let dir = self.kept(BUILDS)?;
        let (mut needed, mut locks) = (BTreeSet::new(), Vec::new());
        for list in fs::read_dir(&dir).at("read", &dir)?.flatten() {
            let text = host::read(&list.path())?;
            let mut lines = text.lines();
            let recipes = Path::new(lines.next().unwrap_or_default()).join("image-recipes");
            if recipes.is_dir() {
                locks.push(Lock::read(&recipes.join("packages.lock"))?);
                needed.extend(lines.map(str::to_owned));
            } else {
                fs::remove_file(list.path()).at("remove", list.path())?;
            }
        }
        if needed.is_empty() { Err(Error::NothingNeeded { path: self.root.clone() }) } else { Ok((needed, locks)) }
    }

    /// Removes entries that no checkout's last build needs and no build has used for `age`.
    ///
    /// # Errors
    /// When a build runs or none was ever whole, the cache cannot be read, or an entry cannot be removed.
    pub fn collect(&self, age: Duration) -> Result<Collected> {
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::CacheInUse { path: self.root.clone() });
        }
        let ((needed, locks), before) = (self.needed()?, self.free_mib()?);
        let old = |path: &Path| {
            let used = fs::metadata(path).and_then(|meta| meta.modified());
            used.is_ok_and(|used| SystemTime::now().duration_since(used).is_ok_and(|idle| idle >= age))
        };
        let mut collected = Collected::default();
        for step in fs::read_dir(&self.root).at("read", &self.root)?.flatten().filter(|e| e.path().is_dir()) {
            for entry in fs::read_dir(step.path()).at("read", step.path())?.flatten() {
                let (path, used) = (entry.path(), entry.path().join(".used"));
                if !used.exists() {
                    continue;
                }
                let name = format!("{}/{}", step.file_name().display(), entry.file_name().display());
                if needed.contains(&name) || !old(&used) {
                    collected.kept += 1;
                    continue;
                }
                // Away by one rename first: whenever this is killed, no entry is half there.
                let gone = self.root.join("tmp").join(format!("gone-{}", entry.file_name().display()));
                fs::rename(&path, &gone).at("remove", &path)?;
                self.host.remove(&gone)?;
                collected.removed.push(path);
            }
        }
        for log in fs::read_dir(self.root.join("logs")).at("read", &self.root)?.flatten().filter(|e| old(&e.path())) {
            fs::remove_file(log.path()).at("remove", log.path())?;
        }
        collected.packages = debs::collect(&self.kept(DEBS)?, locks.iter().flat_map(Lock::all))?;
        collected.freed_mib = self.free_mib()?.saturating_sub(before);
        Ok(collected)
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

    fn made(cache: &Cache, key: u32) -> PathBuf {
        cache.step(&mut Quiet, "step", Key::new("step", key), |_, _| Ok(())).unwrap()
    }

    #[test]
    fn nothing_is_collected_while_a_build_runs() {
        let dir = tempfile::tempdir().unwrap();
        let build = open(dir.path());
        made(&build, 1);
        assert!(matches!(open(dir.path()).collect(Duration::ZERO), Err(Error::CacheInUse { .. })));
    }

    #[test]
    fn what_the_last_build_of_a_checkout_needs_stays() {
        let (dir, checkout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(checkout.path().join("image-recipes")).unwrap();
        let build = |keys: &[u32]| {
            let cache = open(dir.path());
            let entries: Vec<_> = keys.iter().map(|key| made(&cache, *key)).collect();
            cache.keep_for(checkout.path(), "release").unwrap();
            entries
        };
        let (before, after) = (build(&[1, 2]), build(&[2, 3]));
        assert!(open(dir.path()).collect(Duration::from_secs(3600)).unwrap().removed.is_empty());
        let collected = open(dir.path()).collect(Duration::ZERO).unwrap();
        assert_eq!((&collected.removed[..], collected.kept), (&before[..1], 2));
        assert!(after.iter().all(|entry| entry.is_dir()));
    }

    #[test]
    fn a_cache_without_a_whole_build_is_left_alone() {
        let (dir, checkout) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let entry = {
            let cache = open(dir.path());
            cache.keep_for(checkout.path(), "release of a checkout that is gone").unwrap();
            made(&cache, 1)
        };
        assert!(matches!(open(dir.path()).collect(Duration::ZERO), Err(Error::NothingNeeded { .. })));
        assert!(entry.is_dir());
    }
}
