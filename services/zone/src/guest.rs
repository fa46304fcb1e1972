//! What the agent in a guest is told to do: the file `/spec.json` in its initramfs.

use crate::health::HealthCheck;
use crate::ids::ContainerId;
use crate::pod::{Device, Ulimit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The file's path in the initramfs.
pub const SPEC_FILE: &str = "/spec.json";

/// A program that every container has though no file system does: the agent's own, which waits and reaps until it is told
/// to end. Containers whose work is all done by exec are started with it.
pub const IDLE_PROGRAM: &str = "/dev/kraud-idle";

/// One boot of a pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Counts the pod's boots; stands in every log record.
    pub run: u32,
    /// The host's clock when this was written, nanoseconds since the Unix epoch; the guest has no clock of its own that
    /// can be trusted.
    #[serde(default)]
    pub now_ns: u64,
    /// The guest's host name.
    pub hostname: String,
    /// The guest's domain name, often empty.
    #[serde(default)]
    pub domainname: String,
    /// Interfaces, in the order `eth0`, `eth1`, …
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Lines for /etc/hosts, after the ones for localhost and the host name.
    #[serde(default)]
    pub hosts: Vec<HostsLine>,
    /// For /etc/resolv.conf.
    #[serde(default)]
    pub dns: Dns,
    /// The containers, at least one. The guest powers off when the last one has exited.
    pub containers: Vec<GuestContainer>,
    /// Start no container: mount the file systems and answer `archive` requests only (files of a stopped container).
    #[serde(default)]
    pub files_only: bool,
}

/// An interface with its routed address: a /32, everything goes to the gateway, whose MAC address is a static neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The address.
    pub ipv4: Ipv4Addr,
    /// The network's prefix length, which programs see on the interface's route.
    pub prefix: u8,
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// Its MAC address.
    pub gateway_mac: String,
    /// The default route goes here.
    pub default_route: bool,
}

/// A line of /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsLine {
    /// The address, IPv4 or IPv6.
    pub address: String,
    /// The names.
    pub names: Vec<String>,
}

/// What stands in /etc/resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses.
    pub servers: Vec<String>,
    /// Domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// Where a container's changes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Upper {
    /// An ext4 disk, by its place in the bundle's list. It comes formatted.
    Disk {
        /// Its place, from 0.
        disk: usize,
    },
    /// Memory.
    Tmpfs,
}

/// A container in the guest; see [`crate::pod::ContainerSpec`] for what is not explained here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestContainer {
    /// The id, as the HTTP paths have it.
    pub id: ContainerId,
    /// The place of the image's disk (EROFS) in the bundle's list, from 0.
    pub image_disk: usize,
    /// Where changes go.
    pub upper: Upper,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment; `PATH`, `HOME`, `HOSTNAME`, `TERM` are added when absent.
    pub env: Vec<String>,
    /// Working directory.
    #[serde(default)]
    pub cwd: String,
    /// `USER[:GROUP]`.
    #[serde(default)]
    pub user: String,
    /// More groups.
    #[serde(default)]
    pub group_add: Vec<String>,
    /// A terminal.
    #[serde(default)]
    pub tty: bool,
    /// stdin is open.
    #[serde(default)]
    pub open_stdin: bool,
    /// stdin closes when the first client that attached it leaves.
    #[serde(default)]
    pub stdin_once: bool,
    /// The root file system cannot be written.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// A small init as PID 1.
    #[serde(default)]
    pub init: bool,
    /// All capabilities.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities added.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// `no_new_privs`.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Resource limits.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// Kernel settings.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Size of /dev/shm, bytes; 0 means 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
    /// Memory limit of its control group, bytes; 0 means none.
    #[serde(default)]
    pub memory_limit: u64,
    /// Process limit of its control group; 0 or less means none.
    #[serde(default)]
    pub pids_limit: i64,
    /// Devices of the guest that it gets.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// How to see whether it is well.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Mounts, in order.
    #[serde(default)]
    pub mounts: Vec<GuestMount>,
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GuestMount {
    /// A virtiofs share.
    Share {
        /// Its tag in the bundle.
        tag: String,
        /// Where in the container; made when absent.
        target: String,
        /// Not writable.
        read_only: bool,
        /// Copy what the image has at `target` into it when it is empty.
        copy_up: bool,
        /// The part of it that is mounted, a folder or a file, reached without following links; empty means all.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// A block device with ext4; `storage` has formatted it.
    Block {
        /// Its place in the bundle's list of disks.
        disk: usize,
        /// Where in the container; made when absent.
        target: String,
        /// Not writable.
        read_only: bool,
        /// Copy what the image has at `target` into it when it is empty.
        copy_up: bool,
        /// The part of it that is mounted, a folder or a file, reached without following links; empty means all.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// Another image's disk (EROFS), not writable.
    Image {
        /// Its place in the bundle's list of disks.
        disk: usize,
        /// Where in the container; made when absent.
        target: String,
        /// The part of it that is mounted; empty means all.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// A listening unix socket; what connects to it is handed to whoever asks the agent for it (`POST /v1/docker`).
    DockerSocket {
        /// Where in the container; made when absent.
        target: String,
    },
    /// Memory.
    Tmpfs {
        /// Where in the container; made when absent.
        target: String,
        /// Bytes; 0 means half of the guest's memory.
        size: u64,
        /// Permission bits; 0 means 1777 (octal).
        mode: u32,
        /// More options, comma separated.
        options: String,
    },
}
