//! The machine and its services, as `node` sees them.

use crate::resource::Kind;
use serde::{Deserialize, Serialize};

/// The resource kind `service`: one per service of the zone, named like its unit without `.service`.
#[derive(Clone, Debug)]
pub struct Service;

impl Kind for Service {
    const NAME: &'static str = "service";
    type Spec = ();
    type Status = ServiceStatus;
}

/// What a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    /// systemd's ActiveState: `active`, `failed`, …
    pub active: String,
    /// systemd's SubState: `running`, `dead`, …
    pub sub: String,
    /// Since when, nanoseconds since the Unix epoch.
    pub since_ns: u64,
    /// The id of the signed image that it runs (`bali id`).
    #[serde(default)]
    pub image_id: String,
    /// How often systemd has restarted it.
    #[serde(default)]
    pub restarts: u32,
    /// Bytes of memory that its control group uses.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// The resource kind `node`, one resource named `self`: this machine.
#[derive(Clone, Debug)]
pub struct Node;

impl Kind for Node {
    const NAME: &'static str = "node";
    type Spec = ();
    type Status = NodeStatus;
}

/// What this machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The machine's host name.
    pub hostname: String,
    /// 32 hexadecimal digits (machine-id(5)).
    pub machine_id: String,
    /// The image's version.
    pub version: String,
    /// `development` has the exec door, `release` has not.
    pub variant: String,
    /// The kernel's release.
    pub kernel: String,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of memory that are free for use (MemAvailable).
    pub memory_available_bytes: u64,
    /// Addresses of the uplink.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Bytes of the pool.
    #[serde(default)]
    pub pool_bytes: u64,
    /// Bytes of the pool that are free.
    #[serde(default)]
    pub pool_free_bytes: u64,
    /// `ONLINE`, `DEGRADED`, …
    #[serde(default)]
    pub pool_health: String,
    /// What is wrong with the pool's disks, for people.
    #[serde(default)]
    pub pool_troubles: Vec<String>,
    /// What the firmware does with programs that are not signed: `on`, `off`, `setup` (it has no keys), `absent`; empty when unknown.
    #[serde(default)]
    pub secure_boot: String,
    /// When the machine booted, nanoseconds since the Unix epoch.
    #[serde(default)]
    pub booted_ns: u64,
}
