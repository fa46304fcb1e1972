//! Where the agent runs: in a guest, or, for tests, as PID 1 of a set of namespaces on a developer's machine.
//!
//! Owns: every difference between the two: the transport, where disks and shares come from, how it ends. The rest of
//! the agent is the same code.
//!
//! In namespaces, `DIR` stands for the bundle: `spec.json`; `disk0`, `disk1`, … are directories in place of disks,
//! `share-TAG` in place of virtiofs; `agent.sock` is port 1, `log.sock` and `ready.sock` are the host's ports 2 and 3.

use crate::sys;
use rustix::mount::{MountFlags, mount, mount_bind};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const HOST: u32 = libc::VMADDR_CID_HOST;

/// Where the agent runs.
#[derive(Clone, Debug)]
pub struct Platform {
    namespaces: Option<PathBuf>,
}

impl Platform {
    /// In a guest.
    pub fn guest() -> Self {
        Self { namespaces: None }
    }

    /// In namespaces, with `dir` in place of the bundle.
    pub fn namespaces(dir: PathBuf) -> Self {
        Self { namespaces: Some(dir) }
    }

    /// Whether this is a guest: PID 1 owns the machine.
    pub fn is_guest(&self) -> bool {
        self.namespaces.is_none()
    }

    /// What to do.
    pub fn spec_file(&self) -> PathBuf {
        self.namespaces.as_ref().map_or_else(|| zone::guest::SPEC_FILE.into(), |dir| dir.join("spec.json"))
    }

    /// A folder for the agent's own mounts.
    pub fn base(&self) -> PathBuf {
        self.namespaces.as_ref().map_or_else(|| "/run".into(), |dir| dir.join("run"))
    }

    /// Mounts the image's disk, read-only.
    pub fn mount_image(&self, disk: usize, target: &Path) -> io::Result<()> {
        match &self.namespaces {
            Some(dir) => Ok(mount_bind(dir.join(format!("disk{disk}")), target)?),
            None => Ok(mount(disk_path(disk), target, "erofs", MountFlags::RDONLY, None)?),
        }
    }

    /// Mounts a disk with ext4.
    pub fn mount_disk(&self, disk: usize, target: &Path) -> io::Result<()> {
        match &self.namespaces {
            Some(dir) => Ok(mount_bind(dir.join(format!("disk{disk}")), target)?),
            None => Ok(mount(disk_path(disk), target, "ext4", MountFlags::NOATIME, None)?),
        }
    }

    /// Mounts a share of the host.
    pub fn mount_share(&self, tag: &str, target: &Path) -> io::Result<()> {
        match &self.namespaces {
            Some(dir) => Ok(mount_bind(dir.join(format!("share-{tag}")), target)?),
            None => {
                let tag = CString::new(tag).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                Ok(mount(&tag, target, "virtiofs", MountFlags::empty(), None)?)
            }
        }
    }

    /// The name of a disk, for messages.
    pub fn disk_name(&self, disk: usize) -> String {
        disk_path(disk)
    }

    /// Connects to a port of the host.
    pub fn connect(&self, port: u32) -> io::Result<Stream> {
        let fd = match &self.namespaces {
            Some(dir) => {
                let name = if port == zone::bundle::LOG_PORT { "log.sock" } else { "ready.sock" };
                UnixStream::connect(dir.join(name))?.into()
            }
            None => sys::vsock_connect(HOST, port)?,
        };
        Ok(Stream(fd))
    }

    /// Listens on the agent's port.
    pub fn listen(&self) -> io::Result<OwnedFd> {
        match &self.namespaces {
            Some(dir) => Ok(UnixListener::bind(dir.join("agent.sock"))?.into()),
            None => sys::vsock_listen(zone::bundle::AGENT_PORT),
        }
    }
}

/// `/dev/vda`, `/dev/vdb`, …, `/dev/vdz`, `/dev/vdaa`, …
fn disk_path(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    format!("/dev/vd{}", letters.iter().rev().collect::<String>())
}

/// A connected byte stream of any family.
#[derive(Debug)]
pub struct Stream(pub OwnedFd);

impl Stream {
    /// Ends one or both directions; errors mean that the peer is gone already.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        let _ = rustix::net::shutdown(&self.0, how);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut *buffer))?)
    }
}

impl Write for &Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(&self.0, buffer))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::disk_path;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        for (index, name) in [
            (0, "/dev/vda"),
            (25, "/dev/vdz"),
            (26, "/dev/vdaa"),
            (27, "/dev/vdab"),
            (52, "/dev/vdba"),
            (701, "/dev/vdzz"),
        ] {
            assert_eq!(disk_path(index), name);
        }
    }
}
