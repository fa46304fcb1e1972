//! Where things lie on the machine. One place, so that no two services disagree.
//!
//! `/run/kraud` is gone after a boot; `/var/lib/kraud` is on the state partition and there before the pool is;
//! `/zone` is the pool.

use crate::ids::PodId;
use std::path::{Path, PathBuf};

/// Sockets and everything that a boot may forget.
pub const RUN: &str = "/run/kraud";
/// The state engine's HTTP interface.
pub const MACRO_SOCKET: &str = "/run/kraud/macro/macro.sock";
/// The content store's HTTP interface: load, save, pull.
pub const IMAGES_SOCKET: &str = "/run/kraud/images/images.sock";
/// `node`'s HTTP interface: pairing code, client bundles.
pub const NODE_SOCKET: &str = "/run/kraud/node/node.sock";
/// The Docker API inside the machine.
pub const DOCKER_SOCKET: &str = "/run/kraud/docker/docker.sock";
/// The state engine's database.
pub const MACRO_STATE: &str = "/var/lib/kraud/macro";
/// The zone's own certificate authority and the pairing code; only `node` can read it.
pub const PKI: &str = "/var/lib/kraud/pki";
/// The server's certificate (`server.pem`), its key (`server-key.pem`) and the authority's certificate (`ca.pem`), for the
/// services that speak TLS; `node` writes them.
pub const TLS: &str = "/run/kraud/tls";
/// Signed images of the release's services.
pub const SERVICES: &str = "/usr/lib/kraud/services";
/// Keys that a signed image may be signed with, one `NAME.pub` each.
pub const KEYS: &str = "/usr/lib/kraud/keys";
/// Monitor, agent and guest kernel (`kcradle`, `vmlinux`, `initramfs.cpio`), unpacked once by `pods`.
pub const CRADLE: &str = "/run/kraud/cradle";
/// The pool's name.
pub const POOL: &str = "zone";
/// Where the pool is mounted.
pub const POOL_MOUNT: &str = "/zone";
/// The content store.
pub const IMAGES: &str = "/zone/images";
/// Writable layers and log files.
pub const PODS: &str = "/zone/pods";
/// File volumes.
pub const VOLUMES: &str = "/zone/volumes";

/// What a pod's microVM is started from and its sockets; gone after a boot.
#[must_use]
pub fn pod_run(pod: &PodId) -> PathBuf {
    Path::new(RUN).join("pods").join(pod.as_str())
}

/// The socket whose bytes go to the guest's port 1.
#[must_use]
pub fn agent_socket(pod: &PodId) -> PathBuf {
    pod_run(pod).join("agent.sock")
}

/// A pod's writable layers and log files.
#[must_use]
pub fn pod_data(pod: &PodId) -> PathBuf {
    Path::new(PODS).join(pod.as_str())
}

/// The two files of a pod's log ([`crate::log`]).
#[must_use]
pub fn log_files(pod: &PodId) -> [PathBuf; 2] {
    let dir = pod_data(pod);
    [dir.join("log.0"), dir.join("log.1")]
}
