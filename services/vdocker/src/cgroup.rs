//! Control groups (version 2): one per container, with its limits; freezing; what is counted.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zone::guest::GuestContainer;

/// A container's control group.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group `name` below the mounted hierarchy and sets the container's limits.
    ///
    /// # Errors
    /// When the group cannot be made, or a limit that was asked for cannot be set.
    pub fn create(hierarchy: &Path, name: &str, container: &GuestContainer) -> io::Result<Self> {
        let group = Self { path: hierarchy.join(name) };
        fs::create_dir_all(&group.path)?;
        if container.memory_limit > 0 {
            group.write("memory.max", &container.memory_limit.to_string())?;
            let _ = group.write("memory.swap.max", "0");
        }
        if container.pids_limit > 0 {
            group.write("pids.max", &container.pids_limit.to_string())?;
        }
        Ok(group)
    }

    /// Changes the limits; 0 takes one away.
    ///
    /// # Errors
    /// When one cannot be set.
    pub fn limit(&self, memory: u64, pids: u64) -> io::Result<()> {
        let text = |value: u64| if value == 0 { "max".to_owned() } else { value.to_string() };
        self.write("memory.max", &text(memory))?;
        self.write("pids.max", &text(pids))
    }

    /// The file that takes process ids.
    ///
    /// # Errors
    /// When the group is gone.
    pub fn procs(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(self.path.join("cgroup.procs"), crate::process::CGROUP_FLAGS, rustix::fs::Mode::empty())?)
    }

    /// Stops or continues all processes; returns when they have stopped.
    ///
    /// # Errors
    /// When the group cannot be written, or does not freeze within five seconds.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let value = if frozen { 1 } else { 0 };
        self.write("cgroup.freeze", &value.to_string())?;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while self.value("cgroup.events", "frozen") != Some(value) {
            if std::time::Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the processes do not stop within 5 s"));
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether the kernel has killed one of its processes for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.value("memory.events", "oom_kill").is_some_and(|n| n > 0)
    }

    /// A file's text; empty when its controller is not there.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    /// A file's only number; None for `max` or when it is not there.
    pub fn number(&self, file: &str) -> Option<u64> {
        self.read(file).trim().parse().ok()
    }

    /// The number after `key` in a file of `key value` lines.
    pub fn value(&self, file: &str, key: &str) -> Option<u64> {
        lines(&self.read(file)).into_iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Process ids in the group and the ones below it.
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect(&self.path, &mut pids, 0);
        pids
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }
}

fn collect(group: &Path, pids: &mut Vec<u32>, depth: u32) {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()));
    if depth < 16
        && let Ok(entries) = fs::read_dir(group)
    {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            collect(&entry.path(), pids, depth + 1);
        }
    }
}

/// `key value` lines.
pub fn lines(text: &str) -> Vec<(String, u64)> {
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)))
        .collect()
}

/// Mounts the hierarchy and gives its controllers to the groups below; None when the kernel has no control groups.
pub fn mount_hierarchy(place: &Path) -> Option<PathBuf> {
    fs::create_dir_all(place).ok()?;
    let flags =
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("cgroup2", place, "cgroup2", flags, None).ok()?;
    let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
    let control = place.join("cgroup.subtree_control");
    if fs::write(&control, wanted.join(" ")).is_err() {
        // All or nothing: one that cannot be passed on must not keep the others away.
        for one in wanted {
            let _ = fs::write(&control, one);
        }
    }
    Some(place.to_owned())
}
