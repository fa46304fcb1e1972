//! What this machine is, written as the resource `node`, named `self`.

use crate::resources::Writer;
use serde::Deserialize;
use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use zone::service::{Node, NodeStatus};

const EVERY: Duration = Duration::from_secs(10);
/// Changes of free memory and pool below this are none.
const STEP: u64 = 16 << 20;

/// What `storage` says of the pool.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pool {
    #[serde(alias = "pool_bytes")]
    bytes: u64,
    #[serde(alias = "pool_free_bytes")]
    free_bytes: u64,
    health: String,
    troubles: Vec<String>,
}

/// Where facts are read.
#[derive(Clone, Debug)]
pub struct Places {
    /// `storage`'s file about the pool.
    pub pool: PathBuf,
    /// os-release(5).
    pub os_release: PathBuf,
    /// What was noted of the firmware at the boot's beginning.
    pub firmware: PathBuf,
}

/// What is noted of the firmware.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Firmware {
    secure_boot: String,
}

/// Writes the machine's facts for ever: when the addresses change, and every ten seconds if something did.
pub async fn run(places: Places, mut addresses: watch::Receiver<Vec<IpAddr>>, mut writer: Writer) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = addresses.changed() => {}
        }
        let now = addresses.borrow().clone();
        writer.put::<Node>("self", &look(&places, &now), same).await;
    }
}

/// The machine's host name.
#[must_use]
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() || name == "localhost" || name == "(none)" { "kraudbox".into() } else { name }
}

fn same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let near = |a: u64, b: u64| a.abs_diff(b) < STEP;
    let quiet = NodeStatus {
        memory_available_bytes: new.memory_available_bytes,
        pool_free_bytes: new.pool_free_bytes,
        ..old.clone()
    };
    near(old.memory_available_bytes, new.memory_available_bytes)
        && near(old.pool_free_bytes, new.pool_free_bytes)
        && quiet == *new
}

fn look(places: &Places, addresses: &[IpAddr]) -> NodeStatus {
    let memory = fields(&read("/proc/meminfo"), ':');
    let kib =
        |name: &str| memory.get(name).and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10;
    let release = fields(&fs::read_to_string(&places.os_release).unwrap_or_default(), '=');
    let of = |name: &str| release.get(name).map(|v| v.trim_matches('"').to_owned());
    let firmware: Firmware =
        fs::read(&places.firmware).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default();
    let pool: Pool = fs::read(&places.pool).ok().and_then(|t| serde_json::from_slice(&t).ok()).unwrap_or_default();
    let booted =
        read("/proc/stat").lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<u64>().ok()).unwrap_or(0);
    NodeStatus {
        hostname: hostname(),
        machine_id: read("/etc/machine-id").trim().to_owned(),
        version: of("IMAGE_VERSION").or_else(|| of("VERSION_ID")).unwrap_or_default(),
        variant: of("VARIANT_ID").unwrap_or_else(|| "release".into()),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: kib("MemTotal"),
        memory_available_bytes: kib("MemAvailable"),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        pool_bytes: pool.bytes,
        pool_free_bytes: pool.free_bytes,
        pool_health: pool.health,
        pool_troubles: pool.troubles,
        secure_boot: firmware.secure_boot,
        booted_ns: booted.saturating_mul(1_000_000_000),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn fields(text: &str, between: char) -> HashMap<String, String> {
    text.lines()
        .filter_map(|l| l.split_once(between))
        .map(|(n, v)| (n.trim().to_owned(), v.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_knows_itself() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let places = Places { pool: at("pool.json"), os_release: at("os-release"), firmware: at("firmware.json") };
        fs::write(&places.firmware, r#"{"secure_boot":"on"}"#).unwrap();
        fs::write(&places.pool, r#"{"pool_bytes":100,"pool_free_bytes":40,"health":"ONLINE","more":1}"#).unwrap();
        fs::write(&places.os_release, "IMAGE_VERSION=7\nVARIANT_ID=\"development\"\n").unwrap();
        let status = look(&places, &["10.0.0.1".parse().unwrap()]);
        assert_eq!((status.pool_bytes, status.pool_free_bytes, status.pool_health.as_str()), (100, 40, "ONLINE"));
        assert_eq!((status.version.as_str(), status.variant.as_str()), ("7", "development"));
        assert_eq!(status.secure_boot, "on");
        assert!(status.cpus > 0 && status.memory_bytes > status.memory_available_bytes && status.booted_ns > 0);
    }

    #[test]
    fn a_little_memory_more_or_less_is_nothing_to_write_about() {
        let old = NodeStatus { memory_available_bytes: 1 << 30, hostname: "a".into(), ..NodeStatus::default() };
        assert!(same(&old, &NodeStatus { memory_available_bytes: (1 << 30) + 5, ..old.clone() }));
        assert!(!same(&old, &NodeStatus { memory_available_bytes: 1 << 29, ..old.clone() }));
        assert!(!same(&old, &NodeStatus { hostname: "b".into(), ..old.clone() }));
    }
}
