//! File areas: what a bind source is looked for in. Each project has one, an ordinary volume.
//!
//! Here is only the look whether something is there, so that a request can be refused as Docker refuses it. What is
//! mounted in the end is opened by `pods`, which decides anew. Must not: follow a link (the files are guests' work), or
//! write.

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;
use std::path::Path;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A folder, a file, or something that cannot be looked at from here.
    Something,
    /// Nothing.
    Nothing,
}

/// Looks for `path` in the volume `area` below `volumes`.
#[must_use]
pub fn look(volumes: &Path, area: &str, path: &str) -> Found {
    let root = match open(volumes.join(area), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(root) => root,
        // The area is made with the first container that needs it.
        Err(Errno::NOENT) => return if path == "/" { Found::Something } else { Found::Nothing },
        Err(_) => return Found::Something,
    };
    let relative = path.trim_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOENT) => Found::Nothing,
        _ => Found::Something,
    }
}

/// Paths that programs expect of any host, and that a microVM has of its own: nothing has to be mounted.
#[must_use]
pub fn is_the_guests_own(source: &str, target: &str) -> bool {
    const OWN: [&str; 6] = ["/proc", "/sys", "/dev", "/sys/fs/cgroup", "/lib/modules", "/dev/shm"];
    source == target && (OWN.contains(&source) || source.starts_with("/dev/") || source.starts_with("/sys/"))
}

/// Files of a host that images have a use for, and do without: they are left out when the area has none.
#[must_use]
pub fn is_a_hosts_setting(source: &str, target: &str) -> bool {
    source == target && ["/etc/localtime", "/etc/timezone"].contains(&source)
}

/// The Docker API's own socket.
#[must_use]
pub fn is_docker_socket(source: &str) -> bool {
    ["/var/run/docker.sock", "/run/docker.sock"].contains(&source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_missing_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("files-p/home/me")).unwrap();
        symlink("/etc", dir.path().join("files-p/out")).unwrap();
        for (path, found) in [
            ("/home/me", Found::Something),
            ("/home/me/", Found::Something),
            ("/", Found::Something),
            ("/home/you", Found::Nothing),
            // Not followed: pods says what is wrong with it.
            ("/out/passwd", Found::Something),
        ] {
            assert_eq!(look(dir.path(), "files-p", path), found, "{path}");
        }
        assert_eq!(look(dir.path(), "files-q", "/x"), Found::Nothing);
    }

    #[test]
    fn what_every_guest_has_is_told_from_what_somebody_wants_mounted() {
        assert!(is_the_guests_own("/sys/fs/cgroup", "/sys/fs/cgroup") && is_the_guests_own("/dev/null", "/dev/null"));
        assert!(!is_the_guests_own("/dev", "/host/dev") && !is_the_guests_own("/srv", "/srv"));
    }
}
