//! A pod: one microVM with one or more containers that share its network and IPC.
//!
//! ```text
//! docker-api writes the spec           pods writes the status
//!   desired = stopped, starts = 0   →  pending → created
//!   desired = running, starts = 1   →  starting → running → exited
//!   desired = stopped               →  stopping → exited
//!   deleted                         →  (everything of the pod is removed)
//! ```
//! `starts` counts the requests to start, so that a start after an exit is told apart from the one before it:
//! the answer to start request N is the first status with `starts == N` that is `running` or `exited`.

use crate::bundle::Rate;
use crate::health::{Health, HealthCheck};
use crate::ids::{ContainerId, EndpointId, ImageId, PodId, VolumeName};
use crate::resource::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The resource kind `pod`, named by [`PodId`].
#[derive(Clone, Debug)]
pub struct Pod;

impl Kind for Pod {
    const NAME: &'static str = "pod";
    type Spec = PodSpec;
    type Status = PodStatus;
}

/// The resource kind `containername`: reserves a container's name (without `/`) for a pod. Created and deleted in one
/// transaction with the pod, so that two containers can never have one name.
#[derive(Clone, Debug)]
pub struct ContainerName;

impl Kind for ContainerName {
    const NAME: &'static str = "containername";
    type Spec = ContainerNameSpec;
    type Status = ();
}

/// Who holds a container's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNameSpec {
    /// The pod that the container is in.
    pub pod: PodId,
    /// The container.
    pub container: ContainerId,
}

/// Whether the pod should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Not running, or to be stopped.
    #[default]
    Stopped,
    /// Running; after an exit the restart policy decides.
    Running,
}

/// When to start a pod again that has exited (Docker's restart policies).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always, and after a boot of the machine.
    Always,
    /// Unless somebody stopped it; `desired` remembers that.
    UnlessStopped,
    /// After an exit code other than 0, at most `max_retries` times; 0 means without limit.
    OnFailure {
        /// How often at most; 0 means without limit.
        max_retries: u32,
    },
}

/// What a pod should be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSpec {
    /// At least one; the first one's id is the pod's.
    pub containers: Vec<ContainerSpec>,
    /// Whether it should run.
    pub desired: Desired,
    /// How many requests to start it there have been.
    #[serde(default)]
    pub starts: u64,
    /// How many requests there were to reach its files while it does not run; each is answered by a status with that number
    /// in [`FilesStatus`].
    #[serde(default)]
    pub files_asks: u64,
    /// What happens after an exit.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Remove the pod, its writable layer and its anonymous volumes after it has exited (`docker run --rm`).
    #[serde(default)]
    pub auto_remove: bool,
    /// How long a stop waits between the stop signal and the kill, in seconds; a stop request may change it. A negative value
    /// waits without limit.
    #[serde(default = "default_stop_grace_s")]
    pub stop_grace_s: i64,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// How fast each of its disks may be read.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub disk_read: Rate,
    /// How fast each of its disks may be written.
    #[serde(default, skip_serializing_if = "Rate::is_unlimited")]
    pub disk_write: Rate,
    /// How much CPU time its monitor gets; changes while it runs.
    #[serde(default)]
    pub cpu: CpuLimits,
    /// Its places on networks, in the order of the guest's interfaces; empty means no network.
    #[serde(default)]
    pub endpoints: Vec<EndpointId>,
    /// The guest's host name.
    pub hostname: String,
    /// The guest's domain name, often empty.
    #[serde(default)]
    pub domainname: String,
    /// Lines `NAME:IP` for the guest's /etc/hosts.
    #[serde(default)]
    pub extra_hosts: Vec<String>,
    /// Lines like them of the containers that it is linked to, written anew at each request to start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub link_hosts: Vec<String>,
    /// Name servers asked instead of the network's own.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Search domains for resolv.conf.
    #[serde(default)]
    pub dns_search: Vec<String>,
    /// Options for resolv.conf.
    #[serde(default)]
    pub dns_options: Vec<String>,
}

/// How much CPU time a microVM gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuLimits {
    /// At most so many microseconds in a second; 0 means no limit.
    pub us_per_s: u64,
    /// Its share against others when CPUs are short, 1 to 10000; 0 means the usual 100.
    pub weight: u64,
}

fn default_stop_grace_s() -> i64 {
    10
}

/// One container of a pod, resolved: the image's configuration and the request are merged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's id.
    pub id: ContainerId,
    /// The container's name, without `/`.
    pub name: String,
    /// The image.
    pub image: ImageId,
    /// The image as the user named it.
    pub image_ref: String,
    /// Program and arguments: entrypoint and command, merged.
    pub args: Vec<String>,
    /// `NAME=VALUE`, image and request merged.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub cwd: String,
    /// `USER[:GROUP]`, names or numbers, resolved in the guest; empty means root.
    pub user: String,
    /// More groups, names or numbers.
    #[serde(default)]
    pub group_add: Vec<String>,
    /// A terminal is the container's stdin, stdout and stderr.
    pub tty: bool,
    /// stdin is open, even with nobody attached.
    pub open_stdin: bool,
    /// stdin closes when the first client that attached it leaves.
    pub stdin_once: bool,
    /// The signal that asks it to stop, like `SIGTERM` or `15`; empty means SIGTERM.
    #[serde(default)]
    pub stop_signal: String,
    /// The root file system cannot be written.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// A small init reaps orphans as PID 1 of the container.
    #[serde(default)]
    pub init: bool,
    /// All capabilities and devices, inside the microVM.
    #[serde(default)]
    pub privileged: bool,
    /// Capabilities added, like `NET_ADMIN` or `ALL`.
    #[serde(default)]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(default)]
    pub cap_drop: Vec<String>,
    /// `no_new_privs` is set.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Resource limits.
    #[serde(default)]
    pub ulimits: Vec<Ulimit>,
    /// Kernel settings, `net.core.somaxconn` → value.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Size of /dev/shm, bytes; 0 means 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
    /// Memory limit inside the guest, bytes; 0 means none but the guest's memory.
    #[serde(default)]
    pub memory_limit: u64,
    /// How many processes at most; 0 means no limit.
    #[serde(default)]
    pub pids_limit: i64,
    /// Devices of the guest that it gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// How to see whether it is well.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// What is mounted into it.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Size of the writable layer, bytes; 0 means the default.
    #[serde(default)]
    pub rootfs_size: u64,
    /// How large the log file may become, bytes; 0 means the default.
    #[serde(default)]
    pub log_max_bytes: u64,
    /// What `inspect` shows of the request that created it: Docker's Config, merged with the image's, with the completed
    /// HostConfig and NetworkingConfig.
    #[serde(default)]
    pub docker: serde_json::Value,
}

/// A resource limit (setrlimit(2)); -1 means unlimited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// The soft limit.
    pub soft: i64,
    /// The hard limit.
    pub hard: i64,
}

/// A device of the guest's that a container gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path in the guest, below /dev.
    pub source: String,
    /// Its path in the container.
    pub target: String,
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Mount {
    /// A volume.
    Volume {
        /// Which one.
        volume: VolumeName,
        /// Where in the container.
        target: String,
        /// Not writable.
        read_only: bool,
        /// Do not copy what the image has at `target` into an empty volume.
        #[serde(default)]
        no_copy: bool,
        /// Made for this container without a name: removed with it.
        #[serde(default)]
        anonymous: bool,
        /// The part of it that is mounted; empty means all. It must be there when the pod starts.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// A path in a project's file area.
    Bind {
        /// The volume that is the area.
        area: VolumeName,
        /// The path in it, as the user wrote it: absolute, a folder or a file.
        source: String,
        /// Where in the container.
        target: String,
        /// Not writable.
        read_only: bool,
        /// A folder is made when nothing is there.
        #[serde(default)]
        create: bool,
    },
    /// An image's files, not writable.
    Image {
        /// Which one.
        image: ImageId,
        /// Where in the container.
        target: String,
        /// The part of it that is mounted; empty means all.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        subpath: String,
    },
    /// A socket that answers with the zone's Docker API, restricted to the container's project.
    DockerSocket {
        /// Where in the container.
        target: String,
    },
    /// Memory.
    Tmpfs {
        /// Where in the container.
        target: String,
        /// Bytes; 0 means half of the guest's memory.
        size: u64,
        /// Permission bits; 0 means 1777 (octal).
        mode: u32,
        /// More options of tmpfs, comma separated (`noexec`, `uid=1000`).
        #[serde(default)]
        options: String,
    },
}

impl Mount {
    /// Where in the container.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Volume { target, .. }
            | Self::Bind { target, .. }
            | Self::Image { target, .. }
            | Self::DockerSocket { target }
            | Self::Tmpfs { target, .. } => target,
        }
    }

    /// The volume that it needs: the one mounted, or the file area.
    #[must_use]
    pub fn volume(&self) -> Option<&VolumeName> {
        match self {
            Self::Volume { volume, .. } | Self::Bind { area: volume, .. } => Some(volume),
            Self::Image { .. } | Self::DockerSocket { .. } | Self::Tmpfs { .. } => None,
        }
    }
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Something that it needs is not ready; `message` says what.
    #[default]
    Pending,
    /// Ready to start, never started.
    Created,
    /// The microVM starts.
    Starting,
    /// The containers' processes run.
    Running,
    /// Was asked to stop.
    Stopping,
    /// Exited; waits for its back-off before the restart policy starts it again.
    Restarting,
    /// Exited, or could not be started.
    Exited,
}

/// What a pod is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// Where it stands.
    pub phase: Phase,
    /// The start request that this status is of.
    #[serde(default)]
    pub starts: u64,
    /// The user id that the pod's monitor runs under; set once, before the pod's devices are made.
    #[serde(default)]
    pub uid: Option<u32>,
    /// How often the restart policy has started it again since the last request to start.
    #[serde(default)]
    pub restart_count: u32,
    /// Counts every boot of its microVM; the run number in the log file ([`crate::log`]).
    #[serde(default)]
    pub run: u32,
    /// Its containers.
    #[serde(default)]
    pub containers: BTreeMap<ContainerId, ContainerStatus>,
    /// Why it waits or failed, for people.
    #[serde(default)]
    pub message: Option<String>,
    /// The guest's interfaces while it runs.
    #[serde(default)]
    pub interfaces: BTreeMap<EndpointId, Interface>,
    /// The helper that reaches the files of a pod that does not run.
    pub files: FilesStatus,
}

/// An interface of a running guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// The device's name in the guest; empty when it could not be plugged.
    pub device: String,
    /// It came while the guest ran, into a slot that can be emptied.
    pub plugged: bool,
    /// The guest's default route goes there.
    pub default_route: bool,
    /// Why it does not work, for people.
    pub error: Option<String>,
}

/// The helper microVM that has the disks of a pod that does not run mounted, and answers for its files at the same socket as
/// the agent of a running one. It ends by itself when nobody has asked for a while, and before the pod starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesStatus {
    /// The request that this answers.
    pub asks: u64,
    /// The helper is there, or about to be.
    pub up: bool,
    /// Why it could not be, for people.
    pub error: Option<String>,
}

/// What a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Process id inside the guest; 0 when it does not run.
    pub pid: u32,
    /// The last exit code; 0 before the first exit. 128 + signal number after a signal.
    pub exit_code: i32,
    /// Killed for want of memory.
    pub oom_killed: bool,
    /// Processes are frozen.
    #[serde(default)]
    pub paused: bool,
    /// Why it could not be started.
    pub error: Option<StartError>,
    /// Whether it is well; none without a check.
    pub health: Option<Health>,
    /// When it last started; 0 = never. Nanoseconds since the Unix epoch.
    pub started_ns: u64,
    /// When it last exited; 0 = never. Nanoseconds since the Unix epoch.
    pub finished_ns: u64,
}

/// Why a container's process could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// What callers branch on.
    pub kind: StartErrorKind,
    /// What a person reads.
    pub message: String,
}

/// Kinds of start errors, with the exit codes that the docker CLI makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartErrorKind {
    /// The program is not there: exit code 127.
    NotFound,
    /// The program cannot be executed: exit code 126.
    NotExecutable,
    /// The user, working directory, a mount… is wrong: exit code 125 to 128.
    Other,
}
