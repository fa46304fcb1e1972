//! The payload's view of files: a tmpfs of its own with the image in it, and what the options show of the host.
//!
//! Everything that is shown is opened before the root is attached, so no path of the host is resolved
//! inside the image and no path of the image on the host. The view is a mount namespace of this process alone: it
//! vanishes with the last process in it. What the host mounts later under a shown folder appears here too
//! (mount_namespaces(7), slave); nothing goes the other way, unless a bind is asked for as `shared`.

#![allow(unsafe_code)]

use super::{Options, RunError};
use crate::error::Error;
use crate::image::Image;
use crate::tree::clean;
use crate::unpack::{make_dir, unpack_at};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root, umask};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const WALK: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// `[-]SRC[:DST][:OPTION…]`: a file or folder of the host. `-` in front: skipped when it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// In the payload's root, absolute.
    pub target: PathBuf,
    /// `ro`: nothing below can be written.
    pub read_only: bool,
    /// `shared`: what the payload mounts below appears on the host.
    pub shared: bool,
    /// Skip it when it is not there.
    pub optional: bool,
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, optional) = text.strip_prefix('-').map_or((text, false), |rest| (rest, true));
        let mut parts = path.split(':').peekable();
        let source = PathBuf::from(parts.next().unwrap_or_default());
        let target = parts.next_if(|part| part.starts_with('/')).map_or_else(|| source.clone(), PathBuf::from);
        let mut bind = Self { source, target, read_only: false, shared: false, optional };
        for option in parts {
            match option {
                "ro" => bind.read_only = true,
                "rw" => bind.read_only = false,
                "shared" => bind.shared = true,
                other => return Err(format!("{text:?}: {other:?} is neither an absolute path nor ro, rw, shared")),
            }
        }
        if !bind.source.is_absolute() {
            return Err(format!("{text:?}: the path must be absolute, like /run/kraud or /run/kraud:/run/kraud:ro"));
        }
        Ok(bind)
    }
}

/// What is mounted.
enum Source {
    /// A detached mount.
    Mount(OwnedFd),
    /// A file or folder of the host, opened as a path, and the flags of its mount. It is copied just before it is attached:
    /// what the host mounts below meanwhile does not reach a copy that is attached nowhere.
    Path(OwnedFd, u64),
}

/// What is shown, and where it goes.
struct Shown {
    target: String,
    source: Source,
    is_dir: bool,
    // A tmpfs of the payload alone: mount points may be made in it.
    own: bool,
}

impl Shown {
    fn copy(&mut self) -> std::io::Result<()> {
        if let Source::Path(path, flags) = &self.source {
            let clone = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_EMPTY_PATH;
            let mount = open_tree(path, "", clone)?;
            set_flags(mount.as_fd(), *flags, true)?;
            self.source = Source::Mount(mount);
        }
        Ok(())
    }

    fn descriptor(&self) -> &OwnedFd {
        match &self.source {
            Source::Mount(mount) | Source::Path(mount, _) => mount,
        }
    }
}

/// A root under construction.
pub(super) struct Mounts {
    root: OwnedFd,
    shown: Vec<Shown>,
    caller_umask: Mode,
}

impl Mounts {
    /// Leaves the caller's mount namespace and opens all that will be shown.
    pub(super) fn new(options: &Options) -> Result<Self, RunError> {
        // SAFETY: NEWNS alone; the table of descriptors stays shared, and this process has one thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(RunError::step("make a mount namespace; bali run must be started as root"))?;
        let caller_umask = umask(Mode::from_raw_mode(0o022));
        let mut mounts = Self { root: tmpfs("0755")?, shown: Vec::new(), caller_umask };
        // Before the rest of the tree is cut off from the host, so that these stay its peers.
        for bind in options.binds.iter().filter(|bind| bind.shared) {
            mounts.open_bind(bind)?;
        }
        mounts.copy()?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(RunError::step("cut the mount namespace off from the host's"))?;
        mounts.open_system(options)?;
        for bind in options.binds.iter().filter(|bind| !bind.shared) {
            mounts.open_bind(bind)?;
        }
        // systemd's socket for READY=1 is a path unless it begins with `@` (sd_notify(3)).
        if let Some(path) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from).filter(|path| path.is_absolute()) {
            mounts.open(&path, &path, 0)?;
        }
        Ok(mounts)
    }

    /// Puts the image's files into the root.
    pub(super) fn unpack(&self, image: &mut Image) -> Result<(), Error> {
        unpack_at(image, self.root.as_fd())
    }

    /// Attaches everything and makes it this process' root.
    pub(super) fn enter(mut self, options: &Options) -> Result<(), RunError> {
        self.link_host(options)?;
        self.copy()?;
        let place = ["/tmp", "/run", "/mnt", "/var"].into_iter().find(|dir| Path::new(dir).is_dir());
        let place =
            place.ok_or_else(|| Error::Invalid("the host has none of /tmp, /run, /mnt, /var to mount on".into()))?;
        move_mount(&self.root, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(RunError::step(format!("mount the image's root on {place}")))?;
        for shown in &self.shown {
            self.attach(shown).map_err(RunError::step(format!("show /{} to the image", shown.target)))?;
        }
        if !options.writable {
            set_flags(self.root.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
                .map_err(RunError::step("make the image's root read only"))?;
        }
        let failed = || RunError::step("change to the image's root");
        fchdir(&self.root).map_err(failed())?;
        // pivot_root(2), "pivot_root(".", ".")": the old root is on top of the new one, until it is unmounted.
        pivot_root(".", ".").map_err(failed())?;
        unmount(".", UnmountFlags::DETACH).map_err(failed())?;
        chdir("/").map_err(failed())?;
        umask(self.caller_umask);
        Ok(())
    }

    /// Makes detached mounts of what is only opened.
    fn copy(&mut self) -> Result<(), RunError> {
        for shown in &mut self.shown {
            shown.copy().map_err(RunError::step(format!("show /{} of the host to the image", shown.target)))?;
        }
        Ok(())
    }

    fn open_system(&mut self, options: &Options) -> Result<(), RunError> {
        let processes = if options.all_processes { "off" } else { "invisible" };
        let safe = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let proc = file_system("proc", &[("hidepid", processes)], safe | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
        self.push(Path::new("/proc"), Source::Mount(proc), true, false)?;
        self.push(Path::new("/tmp"), Source::Mount(tmpfs("1777")?), true, true)?;
        for path in &options.tmpfs {
            self.push(path, Source::Mount(tmpfs("1777")?), true, true)?;
        }
        if options.sys {
            self.open(Path::new("/sys"), Path::new("/sys"), libc::MOUNT_ATTR_RDONLY)?;
        }
        if options.host_usr {
            for path in ["/usr", "/etc"] {
                self.open(Path::new(path), Path::new(path), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)?;
            }
        }
        for path in DEVICES.iter().map(Path::new).chain(options.devices.iter().map(PathBuf::as_path)) {
            let kind =
                path.metadata().map_err(RunError::step(format!("show the device {}", path.display())))?.file_type();
            if !kind.is_char_device() && !kind.is_block_device() {
                return Err(Error::Invalid(format!("{} is not a device", path.display())).into());
            }
            self.open(path, path, 0)?;
        }
        Ok(())
    }

    fn open_bind(&mut self, bind: &Bind) -> Result<(), RunError> {
        if bind.optional && !bind.source.exists() {
            return Ok(());
        }
        self.open(&bind.source, &bind.target, if bind.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 })
    }

    fn open(&mut self, source: &Path, target: &Path, flags: u64) -> Result<(), RunError> {
        let step = || format!("show {} of the host to the image", source.display());
        let is_dir = source.metadata().map_err(RunError::step(step()))?.is_dir();
        let path = open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(RunError::step(step()))?;
        self.push(target, Source::Path(path, flags | libc::MOUNT_ATTR_NOSUID), is_dir, false)
    }

    fn push(&mut self, target: &Path, source: Source, is_dir: bool, own: bool) -> Result<(), RunError> {
        let text = target.to_str().filter(|t| t.starts_with('/'));
        let text = text.ok_or_else(|| Error::Invalid(format!("{} is not an absolute path", target.display())))?;
        let target = clean(text)?;
        if target.is_empty() {
            return Err(
                Error::Invalid("the root itself is the image's: show the host's folders below it".into()).into()
            );
        }
        self.shown.push(Shown { target, source, is_dir, own });
        Ok(())
    }

    fn attach(&self, shown: &Shown) -> std::io::Result<()> {
        let below =
            |own: &&Shown| own.own && shown.target.strip_prefix(&own.target).is_some_and(|rest| rest.starts_with('/'));
        let own = self.shown.iter().filter(below).max_by_key(|own| own.target.len());
        let (root, path) = own.map_or((&self.root, 0), |own| (own.descriptor(), own.target.len() + 1));
        let point = mount_point(root.as_fd(), &shown.target[path..], shown.is_dir)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(shown.descriptor(), "", &point, "", flags)?)
    }

    /// The links that programs expect, as far as the image has no such files itself.
    fn link_host(&self, options: &Options) -> Result<(), RunError> {
        let root = self.root.as_fd();
        let dev = make_dir(root, "dev").map_err(RunError::step("make /dev"))?;
        for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
            link(dev.as_fd(), name, &format!("../proc/self/fd{target}"))?;
        }
        if !options.host_usr {
            return Ok(());
        }
        // An image with a /bin of its own keeps it; host scripts still need their interpreter there.
        if let Ok(bin) = openat2(root, "bin", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), WALK) {
            link(bin.as_fd(), "sh", "../usr/bin/sh")?;
        }
        ["bin", "sbin", "lib", "lib64"].into_iter().try_for_each(|name| link(root, name, &format!("usr/{name}")))
    }
}

fn link(dir: BorrowedFd<'_>, name: &str, target: &str) -> Result<(), RunError> {
    match symlinkat(target, dir, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(RunError::step(format!("link {name} to {target}"))(error)),
    }
}

fn tmpfs(mode: &str) -> Result<OwnedFd, RunError> {
    file_system("tmpfs", &[("mode", mode)], MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
}

fn file_system(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, RunError> {
    let failed = || RunError::step(format!("make a {kind}"));
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed())?;
    for (name, value) in options {
        fsconfig_set_string(context.as_fd(), *name, *value).map_err(failed())?;
    }
    fsconfig_create(context.as_fd()).map_err(failed())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(failed())
}

/// Opens the place of a mount, and makes it if it is missing in the image's own tmpfs; nothing is made in what is shown of
/// the host.
fn mount_point(root: BorrowedFd<'_>, path: &str, is_dir: bool) -> std::io::Result<OwnedFd> {
    let open = || openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), WALK);
    match open() {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    if is_dir {
        return make_dir(root, path);
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = make_dir(root, parent)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat2(&parent, name, flags, Mode::from_raw_mode(0o644), WALK)?;
    Ok(open()?)
}

/// Sets flags of a mount and, if `recursive`, of all mounts below it (mount_setattr(2)).
fn set_flags(mount: BorrowedFd<'_>, flags: u64, recursive: bool) -> std::io::Result<()> {
    let attributes = libc::mount_attr { attr_set: flags, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let at = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is an empty C string, and the kernel reads `size` bytes of `attributes`,
    // which lives until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            at,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_read_as_they_are_documented() {
        let bind = |s: &str, t: &str, read_only, shared, optional| Bind {
            source: s.into(),
            target: t.into(),
            read_only,
            shared,
            optional,
        };
        for (text, expected) in [
            ("/a", bind("/a", "/a", false, false, false)),
            ("/a:ro", bind("/a", "/a", true, false, false)),
            ("/a:/b:ro", bind("/a", "/b", true, false, false)),
            ("-/a:/b", bind("/a", "/b", false, false, true)),
            ("/zone:shared", bind("/zone", "/zone", false, true, false)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["a", "", "/a:b", "/a:/b:no"] {
            assert!(text.parse::<Bind>().is_err(), "{text}");
        }
    }
}
