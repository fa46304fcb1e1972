//! The bundle: reads `cradle.json`, checks its limits, and opens what it names.
//!
//! A name is an absolute path, a path relative to the bundle's directory, or `fd:NAME`, a descriptor that was passed in
//! (sd_listen_fds(3)). Nothing else of the host is ever opened, but /dev/kvm and /dev/net/tun when they were not passed.

use crate::virtio::net;
use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::fs::{File, OpenOptions};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use zone::bundle::{BUNDLE_FILE, Bundle};

/// The first descriptor that systemd passes.
const FIRST_FD: RawFd = 3;
/// A guest has at most this many disks, interfaces and shares together.
pub const MAX_DEVICES: usize = 60;
const MAX_BUNDLE_BYTES: u64 = 1 << 20;
const MAX_PASSED: usize = 1024;

/// Resolves a bundle's names. What was passed and not taken is closed with it.
#[derive(Debug)]
pub struct Names {
    dir: PathBuf,
    passed: Vec<(String, OwnedFd)>,
}

/// Reads and checks `DIR/cradle.json`.
///
/// # Errors
/// When it cannot be read, is no bundle, or asks for more than there can be.
pub fn load(dir: &Path) -> Result<(Bundle, Names)> {
    let passed = passed_descriptors(
        std::env::var("LISTEN_PID").ok().as_deref(),
        std::env::var("LISTEN_FDS").ok().as_deref(),
        std::env::var("LISTEN_FDNAMES").ok().as_deref(),
    );
    let passed = passed.into_iter().filter_map(|(name, fd)| Some((name, own(fd)?))).collect();
    let names = Names { dir: dir.to_owned(), passed };
    let (file, path) = match names.descriptor(dir)? {
        Some(fd) => (File::from(fd), dir.to_owned()),
        None => {
            let path = dir.join(BUNDLE_FILE);
            (File::open(&path).with_context(|| format!("cannot open {}", path.display()))?, path)
        }
    };
    if file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len() > MAX_BUNDLE_BYTES {
        bail!("{} is larger than {MAX_BUNDLE_BYTES} bytes", path.display());
    }
    let text = std::io::read_to_string(file).with_context(|| format!("cannot read {}", path.display()))?;
    let bundle = parse(&text).with_context(|| format!("{} cannot be booted", path.display()))?;
    Ok((bundle, names))
}

/// Reads and checks a bundle's text.
///
/// # Errors
/// When it is no bundle, or asks for more than there can be.
pub fn parse(text: &str) -> Result<Bundle> {
    let bundle = serde_json::from_str(text).context("it is no bundle")?;
    check(&bundle)?;
    Ok(bundle)
}

fn check(bundle: &Bundle) -> Result<()> {
    if !(1..=64).contains(&bundle.vcpus) {
        bail!("vcpus is {}, must be 1 to 64", bundle.vcpus);
    }
    if !(32..=(1 << 20)).contains(&bundle.memory_mib) {
        bail!("memory_mib is {}, must be 32 to 1048576", bundle.memory_mib);
    }
    let devices = bundle.disks.len() + bundle.nets.len() + bundle.shares.len() + usize::from(bundle.spare_slots);
    if devices > MAX_DEVICES {
        bail!("{devices} disks, interfaces, shares and spare slots are too many, at most {MAX_DEVICES} fit");
    }
    for (index, disk) in bundle.disks.iter().enumerate() {
        if disk.extents.is_empty() {
            bail!("disk {index} has no extents");
        }
        if !disk.read_only && disk.extents.len() != 1 {
            bail!("disk {index} is writable and has {} extents, must have one", disk.extents.len());
        }
    }
    if let Some(log) = &bundle.log
        && log.max_bytes < 4096
    {
        bail!("log.max_bytes is {}, must be at least 4096", log.max_bytes);
    }
    Ok(())
}

fn passed_descriptors(pid: Option<&str>, count: Option<&str>, names: Option<&str>) -> Vec<(String, RawFd)> {
    // LISTEN_PID absent is taken as "for us": a launcher that cannot know our pid beforehand leaves it out.
    if pid.is_some_and(|pid| pid != std::process::id().to_string()) {
        return Vec::new();
    }
    let count: usize = count.and_then(|c| c.parse().ok()).unwrap_or(0);
    names
        .unwrap_or("")
        .split(':')
        .take(count.min(MAX_PASSED))
        .enumerate()
        .map(|(i, name)| (name.to_owned(), FIRST_FD + i as RawFd))
        .collect()
}

/// Takes a passed descriptor over; none when it is not open.
fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: asks for a flag of a number, whatever it is.
    let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
    // SAFETY: it is open, and the launcher's list gives it to this process; a bundle is loaded once, before anything is opened
    // at the list's numbers, so nobody else owns it.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Names {
    fn descriptor(&self, name: &Path) -> Result<Option<OwnedFd>> {
        let Some(wanted) = name.to_str().and_then(|n| n.strip_prefix("fd:")) else { return Ok(None) };
        let (_, fd) = self
            .passed
            .iter()
            .find(|(name, _)| name == wanted)
            .with_context(|| format!("no descriptor was passed under the name {wanted:?}, check LISTEN_FDNAMES"))?;
        fd.try_clone().with_context(|| format!("cannot take the descriptor {wanted:?}")).map(Some)
    }

    /// Another descriptor than the bundle names, passed under a name like `fd:NAME`.
    #[must_use]
    pub fn beside(&self, name: &Path, suffix: &str) -> Option<OwnedFd> {
        let mut name = name.as_os_str().to_owned();
        name.push(suffix);
        self.descriptor(Path::new(&name)).ok().flatten()
    }

    /// Opens `DIR/file`, or what was passed as `fd:NAME-file` when `dir` is `fd:NAME`; made anew when `write`.
    ///
    /// # Errors
    /// When it cannot be opened so.
    pub fn open_in(&self, dir: &Path, file: &str, write: bool) -> Result<File> {
        if dir.to_str().is_some_and(|n| n.starts_with("fd:")) {
            let fd = self.beside(dir, &format!("-{file}"));
            return fd.map(File::from).with_context(|| format!("no descriptor was passed under the name {file:?}"));
        }
        let path = self.path(dir).join(file);
        let how = if write { "make" } else { "open" };
        let opened = if write { File::create(&path) } else { File::open(&path) };
        opened.with_context(|| format!("cannot {how} {}", path.display()))
    }

    /// KVM: the passed one, or the device.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn kvm(&self, name: Option<&Path>) -> Result<OwnedFd> {
        match name {
            Some(name) => Ok(self.open(name, true)?.into()),
            None => {
                let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
                let why = "cannot open /dev/kvm; load kvm-amd or kvm-intel and let this user open it";
                Ok(kvm.context(why)?.into())
            }
        }
    }

    /// What a tap is attached through: the passed one, or the device.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn tun(&self, name: Option<&Path>) -> Result<File> {
        let Some(name) = name else { return net::open_tun() };
        let tun = self.open(name, true)?;
        rustix::fs::fcntl_setfl(&tun, rustix::fs::OFlags::NONBLOCK).context("cannot set up the tap")?;
        Ok(tun)
    }

    /// The path behind a name that is no descriptor.
    pub fn path(&self, name: &Path) -> PathBuf {
        self.dir.join(name)
    }

    /// Opens a file that exists.
    ///
    /// # Errors
    /// When it cannot be opened so.
    pub fn open(&self, name: &Path, write: bool) -> Result<File> {
        if let Some(fd) = self.descriptor(name)? {
            return Ok(File::from(fd));
        }
        let path = self.path(name);
        let how = if write { "for writing" } else { "for reading" };
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(&path)
            .with_context(|| format!("cannot open {} {how}", path.display()))
    }

    /// Opens a file to append to, made when absent.
    ///
    /// # Errors
    /// When it cannot be opened so.
    pub fn append(&self, name: &Path) -> Result<File> {
        if let Some(fd) = self.descriptor(name)? {
            return Ok(File::from(fd));
        }
        let path = self.path(name);
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("cannot open {} for writing", path.display()))
    }

    /// A listening socket: the passed one, or a new one at the path (an old socket there is replaced).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn listen(&self, name: &Path) -> Result<UnixListener> {
        if let Some(fd) = self.descriptor(name)? {
            return Ok(UnixListener::from(fd));
        }
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot replace the socket {}", path.display())),
        }
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
    }

    /// The control socket: the passed one, or a new one at the path, for this user alone.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn listen_for_control(&self, name: &Path) -> Result<OwnedFd> {
        if let Some(fd) = self.descriptor(name)? {
            return Ok(fd);
        }
        let path = self.path(name);
        let make = || -> std::io::Result<OwnedFd> {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            listen(&socket, 8)?;
            Ok(socket)
        };
        make().with_context(|| format!("cannot listen on {}", path.display()))
    }

    /// A connection to a daemon's socket: the passed one, or a new one to the path.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self, name: &Path) -> Result<UnixStream> {
        if let Some(fd) = self.descriptor(name)? {
            return Ok(UnixStream::from(fd));
        }
        let path = self.path(name);
        UnixStream::connect(&path).with_context(|| format!("cannot connect to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zone::bundle::{Disk, Extent};

    fn bundle() -> Bundle {
        serde_json::from_str(r#"{"vcpus":1,"memory_mib":64,"kernel":"k","initramfs":"i","guest_spec":"s","agent":"a"}"#)
            .unwrap()
    }

    fn problem(change: impl FnOnce(&mut Bundle)) -> String {
        let mut bundle = bundle();
        change(&mut bundle);
        check(&bundle).unwrap_err().to_string()
    }

    #[test]
    fn a_bundle_beyond_the_limits_is_refused_with_the_field_named() {
        check(&bundle()).unwrap();
        assert!(problem(|b| b.vcpus = 0).contains("vcpus"));
        assert!(problem(|b| b.memory_mib = 8).contains("memory_mib"));
        assert!(problem(|b| b.disks = vec![Disk { read_only: true, ..Disk::default() }]).contains("disk 0"));
        let extent = Extent { path: "x".into(), offset: 0, len: 0 };
        let two = Disk { extents: vec![extent.clone(), extent], ..Disk::default() };
        assert!(problem(|b| b.disks = vec![two]).contains("writable"));
    }

    #[test]
    fn descriptors_are_named_in_order_and_only_for_this_process() {
        let me = std::process::id().to_string();
        let list = passed_descriptors(Some(&me), Some("2"), Some("log0:log1:more"));
        assert_eq!(list, [("log0".to_owned(), 3), ("log1".to_owned(), 4)]);
        assert!(passed_descriptors(Some("1"), Some("2"), Some("a:b")).is_empty());
        assert!(passed_descriptors(Some(&me), None, Some("a:b")).is_empty());
    }
}
