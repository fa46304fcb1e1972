//! A directory that paths are resolved in as if it were `/`: no symbolic link and no `..` leads out of it (openat2(2)).

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, mkdirat, open, openat, openat2};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A root directory.
#[derive(Debug)]
pub struct InRoot(OwnedFd);

impl InRoot {
    /// Takes `directory` as the root.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self(open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens `path` inside; a last component that is a symbolic link is followed unless `flags` say otherwise.
    pub fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            // A rename elsewhere makes the kernel give up with EAGAIN when `..` is in the path.
            match openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// A handle of `path`, links followed, that can only be named.
    pub fn handle(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlags::PATH)
    }

    /// A handle of `path`; no link is followed anywhere in it.
    pub fn beneath(&self, path: &Path) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }

    /// What `path` is, links followed.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(self.handle(path)?)?)
    }

    /// A directory, made with its parents when absent.
    pub fn make_dir_all(&self, path: &Path, mode: u32) -> io::Result<OwnedFd> {
        match self.resolve(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let mut done = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else {
                if part == Component::ParentDir {
                    done.pop();
                }
                continue;
            };
            let parent = self.resolve(&done, OFlags::PATH | OFlags::DIRECTORY)?;
            match mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
                // Made with the exact mode, whatever the umask.
                Ok(()) => rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            done.push(name);
        }
        self.resolve(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// A handle of a file, made empty with its parents when absent.
    pub fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.handle(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        let parent = self.make_dir_all(parent, 0o755)?;
        // A symbolic link that leads nowhere is replaced: what it points to may lie in a mount that is not there yet.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&parent, name, rustix::fs::AtFlags::empty())?;
                openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
            }
            result => drop(result?),
        }
        self.handle(path)
    }

    /// A whole small file, links followed; empty when it is absent or longer than `limit`.
    pub fn read_small(&self, path: &Path, limit: u64) -> Vec<u8> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        if let Ok(fd) = self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            let file = std::fs::File::from(fd);
            if file.metadata().is_ok_and(|m| m.is_file() && m.len() <= limit)
                && file.take(limit).read_to_end(&mut bytes).is_err()
            {
                bytes.clear();
            }
        }
        bytes
    }

    /// Where `path` leads to, as seen from inside.
    pub fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        let root = rustix::fs::readlinkat(CWD, proc_path(self.0.as_fd()), Vec::new())?;
        let full = rustix::fs::readlinkat(CWD, proc_path(self.handle(path)?.as_fd()), Vec::new())?;
        let root = Path::new(std::ffi::OsStr::from_bytes(root.as_bytes())).to_owned();
        let full = Path::new(std::ffi::OsStr::from_bytes(full.as_bytes())).to_owned();
        Ok(Path::new("/").join(full.strip_prefix(&root).unwrap_or(&full)))
    }
}

/// A path by which a mount can be put on what a descriptor stands for.
pub fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (PathBuf, InRoot) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("vdocker-inroot-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let root = InRoot::open(&dir).unwrap();
        (dir, root)
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (dir, root) = root();
        std::fs::create_dir(dir.join("etc")).unwrap();
        std::fs::write(dir.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", dir.join("absolute")).unwrap();
        symlink("../../../../../../etc/passwd", dir.join("etc/up")).unwrap();
        for path in ["/absolute", "etc/up", "/../../etc/passwd", "/etc/../etc/passwd"] {
            assert_eq!(root.read_small(Path::new(path), 100), b"inside", "{path}");
        }
    }

    #[test]
    fn a_directory_is_made_behind_a_link() {
        let (dir, root) = root();
        std::fs::create_dir_all(dir.join("run")).unwrap();
        std::fs::create_dir_all(dir.join("var")).unwrap();
        symlink("/run", dir.join("var/run")).unwrap();
        root.make_dir_all(Path::new("/var/run/a/b"), 0o700).unwrap();
        assert!(dir.join("run/a/b").is_dir());
        assert_eq!(root.real_path(Path::new("/var/run/a")).unwrap(), Path::new("/run/a"));
    }

    #[test]
    fn a_file_replaces_a_link_that_leads_nowhere() {
        let (dir, root) = root();
        std::fs::create_dir(dir.join("etc")).unwrap();
        symlink("../run/none/resolv.conf", dir.join("etc/resolv.conf")).unwrap();
        root.make_file(Path::new("/etc/resolv.conf")).unwrap();
        assert!(dir.join("etc/resolv.conf").symlink_metadata().unwrap().is_file());
    }
}
