//! Volumes and their snapshots.

use crate::ids::VolumeName;
use crate::resource::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The resource kind `volume`, named by [`VolumeName`].
#[derive(Clone, Debug)]
pub struct Volume;

impl Kind for Volume {
    const NAME: &'static str = "volume";
    type Spec = VolumeSpec;
    type Status = VolumeStatus;
}

/// What a volume should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// `local` and `nfs` are files on a dataset; `lv2` is a block device for one pod at a time.
    pub driver: String,
    /// Driver options; `size` (bytes or `10G`) is the quota of files, the size of a block device; `snapshots` (`10m`, `1h`,
    /// `off`) is how often one is taken.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Made for a container without a name.
    #[serde(default)]
    pub anonymous: bool,
    /// The last request to make the volume what it was.
    #[serde(default)]
    pub rollback: Option<Rollback>,
}

/// A request to make a volume what it was when a snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Counts the requests, from 1.
    pub request: u64,
    /// The snapshot's name, without the volume's.
    pub snapshot: String,
}

/// How a request to roll back ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Which request.
    pub request: u64,
    /// Why it could not be, for people; then nothing has changed.
    #[serde(default)]
    pub error: Option<String>,
}

/// How a volume reaches a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum VolumeAccess {
    /// A directory, shared by virtiofs.
    Directory {
        /// On the host.
        path: PathBuf,
    },
    /// A block device, for one pod at a time. `storage` formats it (ext4) when it makes it.
    Block {
        /// On the host.
        device: PathBuf,
    },
}

/// What a volume is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    /// It can be attached.
    pub ready: bool,
    /// Why it cannot be, for people.
    #[serde(default)]
    pub error: Option<String>,
    /// How it reaches a pod.
    #[serde(default)]
    pub access: Option<VolumeAccess>,
    /// Bytes used.
    #[serde(default)]
    pub used_bytes: u64,
    /// How the last request to roll back ended.
    #[serde(default)]
    pub rolled_back: Option<RolledBack>,
}

/// The resource kind `snapshot`, named by [`crate::SnapshotId`].
#[derive(Clone, Debug)]
pub struct Snapshot;

impl Kind for Snapshot {
    const NAME: &'static str = "snapshot";
    type Spec = SnapshotSpec;
    type Status = SnapshotStatus;
}

/// What a snapshot should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpec {
    /// Of which volume.
    pub volume: VolumeName,
    /// Taken by the schedule, and removed by it.
    #[serde(default)]
    pub automatic: bool,
}

/// What a snapshot is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotStatus {
    /// It is there.
    pub ready: bool,
    /// Why it is not, for people.
    #[serde(default)]
    pub error: Option<String>,
    /// When it was taken, nanoseconds since the Unix epoch.
    #[serde(default)]
    pub taken_ns: u64,
    /// Bytes that only it holds.
    #[serde(default)]
    pub used_bytes: u64,
}
