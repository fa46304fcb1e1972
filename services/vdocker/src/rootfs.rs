//! A container's root file system: the image, the writable layer, /dev, the files that Docker writes, its mounts.
//!
//! Everything is mounted in the agent's own mount namespace under one folder; the container's namespace is a copy of
//! it, and only what must be mounted from inside (proc, sysfs, mqueue, the control group) is left to [`crate::program`].
//! So `archive` sees what the container sees, also when no process runs.
//!
//! Must not: follow a link of the image out of the container's root.

use crate::inroot::{InRoot, proc_path};
use crate::platform::Platform;
use crate::volumes;
use rustix::fs::{CWD, FileType, Mode, OFlags, chmod, makedev, mknodat, symlink};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zone::guest::{GuestContainer, GuestSpec, Upper};
use zone::pod::Device;

const DEFAULT_SHM: u64 = 64 << 20;

/// A container's mounted root.
#[derive(Debug)]
pub struct Rootfs {
    /// Its folder in the agent's file system.
    pub path: PathBuf,
    /// The same, to resolve paths in.
    pub root: InRoot,
    /// The image alone, for `changes`.
    pub lower: PathBuf,
    /// What the container changed.
    pub upper: PathBuf,
    /// Sockets of the zone's Docker API in it.
    pub docker_sockets: Vec<OwnedFd>,
    writable: PathBuf,
}

/// What could not be mounted or made.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct RootfsError {
    what: String,
    #[source]
    source: io::Error,
}

/// Names what was tried.
pub trait Tried<T> {
    /// Puts `what` in front of the cause.
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, RootfsError>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, RootfsError> {
        self.map_err(|error| RootfsError { what: what(), source: error.into() })
    }
}

impl Rootfs {
    /// Mounts everything of one container.
    ///
    /// # Errors
    /// When a disk or share cannot be mounted, or a target cannot be made.
    pub fn prepare(
        platform: &Platform,
        spec: &GuestSpec,
        container: &GuestContainer,
        index: usize,
    ) -> Result<Self, RootfsError> {
        let base = platform.base().join(format!("c{index}"));
        let mut rootfs = mount_layers(platform, container, &base)?;
        for directory in ["/proc", "/sys", "/dev"] {
            rootfs.root.make_dir_all(Path::new(directory), 0o755).tried(|| format!("make {directory}"))?;
        }
        make_dev(&rootfs, container).tried(|| "make /dev".into())?;
        for device in &container.devices {
            add_device(&rootfs, device).tried(|| {
                format!("error gathering device information while adding custom device \"{}\"", device.source)
            })?;
        }
        if !spec.files_only {
            write_files(&rootfs, spec, &base).tried(|| "write /etc/hosts, /etc/hostname, /etc/resolv.conf".into())?;
        }
        rootfs.docker_sockets = volumes::mount_all(platform, &rootfs, container, &base)?;
        if container.readonly_rootfs {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(&rootfs.path, flags, c"")
                .tried(|| "make the root file system read-only".into())?;
        }
        Ok(rootfs)
    }

    /// Takes the file systems off, so that the writable layer is clean on its disk. Errors are of no use at this point.
    pub fn unmount(&self) {
        crate::sys::forget_file(self.root.fd());
        // Detached from the tree at once, gone with the last user: the container's processes are dead by now.
        for (place, flags) in [(&self.path, UnmountFlags::DETACH), (&self.writable, UnmountFlags::empty())] {
            if let Err(error) = unmount(place, flags) {
                crate::console::say(&format!("cannot unmount {}: {error}", place.display()));
            }
        }
    }
}

fn mount_layers(platform: &Platform, container: &GuestContainer, base: &Path) -> Result<Rootfs, RootfsError> {
    let [lower, writable, path] = ["image", "rw", "root"].map(|name| base.join(name));
    for directory in [&lower, &writable, &path] {
        fs::create_dir_all(directory).tried(|| format!("make {}", directory.display()))?;
    }
    platform
        .mount_image(container.image_disk, &lower)
        .tried(|| format!("mount the image from {}", platform.disk_name(container.image_disk)))?;
    match container.upper {
        Upper::Disk { disk } => {
            platform
                .mount_disk(disk, &writable)
                .tried(|| format!("mount the writable layer from {}", platform.disk_name(disk)))?;
        }
        Upper::Tmpfs => mount("tmpfs", &writable, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))
            .tried(|| "mount the writable layer in memory".into())?,
    }
    let [upper, work] = ["upper", "work"].map(|name| writable.join(name));
    for directory in [&upper, &work] {
        fs::create_dir_all(directory).tried(|| format!("make {}", directory.display()))?;
    }
    if let Ok(image) = fs::metadata(&lower) {
        // The root directory is the upper one's; owner and mode come from the image.
        let _ = std::os::unix::fs::chown(&upper, Some(image.uid()), Some(image.gid()));
        let _ = chmod(&upper, Mode::from_raw_mode(image.mode() & 0o7777));
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = CString::new(options).map_err(io::Error::from).tried(|| "name the layers".into())?;
    mount("overlay", &path, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .tried(|| "mount the layers as one".into())?;
    let root = InRoot::open(&path).tried(|| format!("open {}", path.display()))?;
    Ok(Rootfs { path, root, lower, upper, docker_sockets: Vec::new(), writable })
}

fn mount_at(fd: &OwnedFd, source: &str, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data).map_err(io::Error::from)?;
    Ok(mount(source, proc_path(fd.as_fd()), kind, flags, Some(data.as_c_str()))?)
}

fn make_dev(rootfs: &Rootfs, container: &GuestContainer) -> io::Result<()> {
    let dev = Path::new("/dev");
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at(&rootfs.root.handle(dev)?, "tmpfs", "tmpfs", MountFlags::NOSUID, "mode=755,size=65536k")?;
    let handle = rootfs.root.handle(dev)?;
    let at = |name: &str| proc_path(handle.as_fd()).join(name);
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        make_node(&at(name), FileType::CharacterDevice, 0o666, makedev(1, minor))?;
    }
    make_node(&at("tty"), FileType::CharacterDevice, 0o666, makedev(5, 0))?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
        ("core", "/proc/kcore"),
    ] {
        symlink(target, at(name))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(at(name))?;
    }
    mount("devpts", at("pts"), "devpts", flags, Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"))?;
    let size = if container.shm_size == 0 { DEFAULT_SHM } else { container.shm_size };
    let options = CString::new(format!("mode=1777,size={size}")).map_err(io::Error::from)?;
    mount("shm", at("shm"), "tmpfs", flags | MountFlags::NODEV, Some(options.as_c_str()))?;
    if container.tty {
        fs::write(at("console"), "")?;
    }
    if container.privileged {
        copy_devices(Path::new("/dev"), &proc_path(handle.as_fd()), 0);
    }
    Ok(())
}

/// A device that the container asked for, with the guest's own mode.
fn add_device(rootfs: &Rootfs, device: &Device) -> io::Result<()> {
    let meta = fs::metadata(&device.source)?;
    let kind = meta.file_type();
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => FileType::CharacterDevice,
        (_, true) => FileType::BlockDevice,
        _ => return Err(io::Error::other("it is not a device")),
    };
    let target = Path::new(&device.target);
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::Error::other("it has no place"));
    };
    let parent = rootfs.root.make_dir_all(parent, 0o755)?;
    let place = proc_path(parent.as_fd()).join(name);
    if fs::symlink_metadata(&place).is_ok() {
        fs::remove_file(&place)?;
    }
    make_node(&place, kind, meta.mode() & 0o777, meta.rdev())
}

fn make_node(path: &Path, kind: FileType, mode: u32, device: u64) -> io::Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device)?;
    Ok(chmod(path, Mode::from_raw_mode(mode))?)
}

/// All the guest's devices, for a privileged container; what cannot be made is left out.
fn copy_devices(from: &Path, to: &Path, depth: u32) {
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries.flatten() {
        let (Ok(meta), target) = (entry.metadata(), to.join(entry.file_name())) else { continue };
        let kind = meta.file_type();
        if kind.is_dir() && depth < 3 && !["pts", "shm", "mqueue"].iter().any(|n| entry.file_name() == *n) {
            let _ = fs::create_dir(&target);
            copy_devices(&entry.path(), &target, depth + 1);
        } else if kind.is_char_device() || kind.is_block_device() {
            let kind = if kind.is_char_device() { FileType::CharacterDevice } else { FileType::BlockDevice };
            let _ = make_node(&target, kind, meta.mode() & 0o777, meta.rdev());
        }
    }
}

/// The files that Docker writes, bind-mounted so that the image's stay as they are.
fn write_files(rootfs: &Rootfs, spec: &GuestSpec, base: &Path) -> io::Result<()> {
    let folder = base.join("etc");
    fs::create_dir_all(&folder)?;
    let files =
        [("hosts", hosts(spec)), ("hostname", format!("{}\n", spec.hostname)), ("resolv.conf", resolv_conf(spec))];
    for (name, text) in files {
        let file = folder.join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        let target = rootfs.root.make_file(&Path::new("/etc").join(name))?;
        mount_bind(&file, proc_path(target.as_fd()))?;
    }
    if rootfs.root.handle(Path::new("/.dockerenv")).is_err() {
        rootfs.root.make_file(Path::new("/.dockerenv"))?;
    }
    Ok(())
}

fn hosts(spec: &GuestSpec) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    let name = if spec.domainname.is_empty() {
        spec.hostname.clone()
    } else {
        format!("{}.{} {}", spec.hostname, spec.domainname, spec.hostname)
    };
    for nic in &spec.nics {
        text += &format!("{}\t{name}\n", nic.ipv4);
    }
    for line in &spec.hosts {
        text += &format!("{}\t{}\n", line.address, line.names.join(" "));
    }
    text
}

fn resolv_conf(spec: &GuestSpec) -> String {
    let mut text = String::new();
    for server in &spec.dns.servers {
        text += &format!("nameserver {server}\n");
    }
    for (keyword, words) in [("search", &spec.dns.search), ("options", &spec.dns.options)] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    text
}

/// The multiplexer of the container's own terminals.
///
/// # Errors
/// When /dev/pts is not there.
pub fn open_ptmx(rootfs: &Rootfs) -> io::Result<OwnedFd> {
    rootfs.root.resolve(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zone::guest::{Dns, HostsLine};

    #[test]
    fn hosts_has_the_name_then_the_extra_lines() {
        let spec = GuestSpec {
            hostname: "web".into(),
            domainname: "example.org".into(),
            nics: vec![zone::guest::Nic {
                ipv4: [10, 0, 0, 2].into(),
                prefix: 24,
                gateway: [10, 0, 0, 1].into(),
                gateway_mac: String::new(),
                default_route: true,
            }],
            hosts: vec![HostsLine { address: "10.0.0.9".into(), names: vec!["db".into(), "sql".into()] }],
            ..GuestSpec::default()
        };
        assert!(
            hosts(&spec).ends_with("ff02::2\tip6-allrouters\n10.0.0.2\tweb.example.org web\n10.0.0.9\tdb sql\n"),
            "{}",
            hosts(&spec)
        );
    }

    #[test]
    fn resolv_conf_leaves_out_what_is_not_set() {
        let dns =
            Dns { servers: vec!["10.0.0.1".into()], search: vec![], options: vec!["ndots:0".into(), "edns0".into()] };
        assert_eq!(
            resolv_conf(&GuestSpec { dns, ..GuestSpec::default() }),
            "nameserver 10.0.0.1\noptions ndots:0 edns0\n"
        );
    }
}
