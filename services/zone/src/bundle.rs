//! What `kcradle run` boots: the file `cradle.json` in a bundle's directory.
//!
//! Every path is absolute, relative to the bundle's directory, or `fd:NAME`: a descriptor that the monitor was started
//! with under that name (`LISTEN_FDNAMES`, sd_listen_fds(3)).

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The file's name in the bundle's directory.
pub const BUNDLE_FILE: &str = "cradle.json";

/// A microVM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bundle {
    /// KVM; none opens /dev/kvm.
    #[serde(default)]
    pub kvm: Option<PathBuf>,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// The guest's kernel: an uncompressed ELF `vmlinux` with a PVH note.
    pub kernel: PathBuf,
    /// The initramfs with the agent as `/init`: an uncompressed cpio archive (newc).
    pub initramfs: PathBuf,
    /// What the agent shall do ([`crate::guest::GuestSpec`]); the monitor appends it to the initramfs as `/spec.json`.
    pub guest_spec: PathBuf,
    /// Added to the kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Disks, in the guest's order: `vda`, `vdb`, …
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces, in the guest's order: `eth0`, `eth1`, …
    #[serde(default)]
    pub nets: Vec<Net>,
    /// Directories shared by virtiofs.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// A unix socket (`SOCK_STREAM`): each connection to it becomes a connection to the guest's vsock port 1. When it is a path,
    /// the monitor creates the socket; connections wait until the guest has connected to the host's port 3 ("ready").
    pub agent: PathBuf,
    /// Where the guest's log goes (vsock port 2 of the host, [`crate::log`]).
    #[serde(default)]
    pub log: Option<LogFiles>,
    /// A directory that `kcradle template` has filled for this kernel, initramfs and memory: the guest goes on from there instead
    /// of booting, where that is possible (one vCPU, no console, nothing added to the command line).
    #[serde(default)]
    pub template: Option<PathBuf>,
    /// Where the serial console's output goes; none = nowhere.
    #[serde(default)]
    pub console: Option<PathBuf>,
    /// A unix socket (`SOCK_SEQPACKET`) for [`crate::control`]: what is changed while the guest runs.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// Empty slots, for devices that come while the guest runs. One costs the guest three exits at its start.
    #[serde(default)]
    pub spare_slots: u8,
}

/// A disk: a list of pieces shown to the guest as one flat device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The pieces, in order. A writable disk has exactly one.
    pub extents: Vec<Extent>,
    /// The guest cannot write.
    pub read_only: bool,
    /// How fast it may be read.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub read: Rate,
    /// How fast it may be written, discarded and flushed.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub write: Rate,
}

/// How fast something may be used; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests or packets.
    #[serde(default)]
    pub operations_per_second: u64,
    /// Bytes of data.
    #[serde(default)]
    pub bytes_per_second: u64,
}

impl Rate {
    /// Neither limit is there.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// A piece of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The file or block device.
    pub path: PathBuf,
    /// Where the piece starts in it, bytes, a multiple of 512.
    #[serde(default)]
    pub offset: u64,
    /// Bytes, a multiple of 512; 0 = up to the end of the file, rounded up to 4096 with zeroes.
    #[serde(default)]
    pub len: u64,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The name of a tap that exists and that the monitor's uid owns.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: String,
    /// An open /dev/net/tun to attach the tap through; none opens it.
    #[serde(default)]
    pub tun: Option<PathBuf>,
    /// How fast the guest may receive.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub receive: Rate,
    /// How fast the guest may send.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub send: Rate,
}

/// A directory shared by virtiofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The name under which the guest mounts it; at most 36 bytes.
    pub tag: String,
    /// The vhost-user socket of the daemon that serves it.
    pub socket: PathBuf,
}

/// The two files that a log takes turns on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFiles {
    /// The files; both exist.
    pub files: [PathBuf; 2],
    /// How large each may become, bytes.
    pub max_bytes: u64,
}

/// The guest's vsock port where its agent answers HTTP.
pub const AGENT_PORT: u32 = 1;
/// The host's vsock port that the guest's log goes to.
pub const LOG_PORT: u32 = 2;
/// The host's vsock port that the agent connects to, once, when it answers on its own.
pub const READY_PORT: u32 = 3;
