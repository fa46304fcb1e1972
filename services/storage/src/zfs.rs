//! The language of `zfs` and `zpool` (OpenZFS 2.3): argument lists and what their JSON means. Pure: nothing runs here.
//!
//! Invariant: every dataset that this service destroys carries the user property [`OWNER`], which it set itself.

use crate::argv;
use serde_json::Value;

/// The user property of what this service made; its value is the volume's name.
pub const OWNER: &str = "kraud:volume";
/// The user property of snapshots that this service took: `yes` when the schedule asked for it.
pub const AUTOMATIC: &str = "kraud:automatic";

/// A dataset, as `zfs list` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Its full name.
    pub name: String,
    /// Value of [`OWNER`], when it is set on the dataset itself.
    pub owner: Option<String>,
    /// It is a block device.
    pub is_block: bool,
    /// It is mounted (never for a block device).
    pub mounted: bool,
    /// Bytes that it and its snapshots use.
    pub used: u64,
    /// Bytes that can be read in it.
    pub referenced: u64,
    /// Bytes written since the newest snapshot.
    pub written: u64,
    /// The quota, 0 = none.
    pub quota: u64,
    /// A block device's size.
    pub volsize: u64,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    /// Its full name, `DATASET@NAME`.
    pub name: String,
    /// When it was taken, seconds since the Unix epoch.
    pub creation_s: u64,
    /// Bytes that only it holds.
    pub used: u64,
    /// This service took it.
    pub marked: bool,
    /// The schedule asked for it.
    pub automatic: bool,
}

impl Snap {
    /// The part after `@`.
    pub fn short(&self) -> &str {
        self.name.split_once('@').map_or("", |(_, short)| short)
    }
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pool {
    /// Bytes.
    pub pool_bytes: u64,
    /// Bytes that are free.
    pub pool_free_bytes: u64,
    /// `ONLINE`, `DEGRADED`, …
    pub health: String,
    /// What is wrong with its disks, for people.
    pub troubles: Vec<String>,
}

/// Lists the datasets right below `parent`.
pub fn list_datasets(parent: &str) -> Vec<String> {
    let columns = format!("name,used,referenced,written,refquota,volsize,mounted,{OWNER}");
    argv!["zfs", "list", "-j", "--json-int", "-p", "-d", "1", "-t", "filesystem,volume", "-o", columns, parent]
}

/// Lists the snapshots of one dataset.
pub fn list_snapshots(dataset: &str) -> Vec<String> {
    let columns = format!("name,creation,used,{AUTOMATIC}");
    argv!["zfs", "list", "-j", "--json-int", "-p", "-d", "1", "-t", "snapshot", "-o", columns, dataset]
}

/// Asks for a pool's size and health.
pub fn list_pool(pool: &str) -> Vec<String> {
    argv!["zpool", "list", "-j", "--json-int", "-p", "-o", "name,size,allocated,free,health", pool]
}

/// Makes the pool.
pub fn create_pool(pool: &str, mount: &str, device: &str) -> Vec<String> {
    argv![
        "zpool",
        "create",
        "-o",
        "ashift=12",
        "-o",
        "cachefile=none",
        "-o",
        "autotrim=on",
        "-O",
        "atime=off",
        "-O",
        "xattr=sa",
        "-O",
        "acltype=posix",
        "-O",
        "compression=lz4",
        "-O",
        "normalization=none",
        "-m",
        mount,
        pool,
        device
    ]
}

/// Makes a dataset; its parents must be there.
pub fn create_dataset(name: &str) -> Vec<String> {
    argv!["zfs", "create", name]
}

/// Makes a volume of files; `quota` 0 = none.
pub fn create_files(dataset: &str, volume: &str, quota: u64) -> Vec<String> {
    let quota = if quota == 0 { "none".to_owned() } else { quota.to_string() };
    argv![
        "zfs",
        "create",
        "-o",
        format!("{OWNER}={volume}"),
        "-o",
        format!("refquota={quota}"),
        "-o",
        "snapdir=hidden",
        dataset
    ]
}

/// Makes a sparse block device.
pub fn create_block(dataset: &str, volume: &str, size: u64) -> Vec<String> {
    argv![
        "zfs",
        "create",
        "-s",
        "-V",
        size.to_string(),
        "-o",
        "volblocksize=16K",
        "-o",
        format!("{OWNER}={volume}"),
        dataset
    ]
}

/// Sets one property.
pub fn set(dataset: &str, property: &str, value: &str) -> Vec<String> {
    argv!["zfs", "set", format!("{property}={value}"), dataset]
}

/// Mounts a dataset.
pub fn mount(dataset: &str) -> Vec<String> {
    argv!["zfs", "mount", dataset]
}

/// Destroys a dataset with its snapshots.
pub fn destroy_dataset(dataset: &str) -> Vec<String> {
    argv!["zfs", "destroy", "-r", dataset]
}

/// Takes a snapshot.
pub fn snapshot(name: &str, automatic: bool) -> Vec<String> {
    argv!["zfs", "snapshot", "-o", format!("{AUTOMATIC}={}", if automatic { "yes" } else { "no" }), name]
}

/// Makes a dataset that begins as a snapshot, not mounted; a block device when the snapshot is of one.
pub fn clone(snapshot: &str, dataset: &str, volume: &str, properties: &[(&str, String)]) -> Vec<String> {
    let mut argv = argv!["zfs", "clone", "-o", format!("{OWNER}={volume}")];
    for (name, value) in properties {
        argv.extend(argv!["-o", format!("{name}={value}")]);
    }
    argv.extend(argv![snapshot, dataset]);
    argv
}

/// Gives a dataset another name. Its mount moves along.
pub fn rename(from: &str, to: &str) -> Vec<String> {
    argv!["zfs", "rename", from, to]
}

/// Unmounts a dataset; fails when a file in it is open.
pub fn unmount(dataset: &str) -> Vec<String> {
    argv!["zfs", "unmount", dataset]
}

/// Destroys a snapshot; refuses a name without `@`, which would be a dataset.
pub fn destroy_snapshot(name: &str) -> Option<Vec<String>> {
    name.contains('@').then(|| argv!["zfs", "destroy", name])
}

/// Reads what [`list_datasets`] printed; sorted by name.
pub fn parse_datasets(json: &Value) -> Vec<Dataset> {
    let mut found: Vec<Dataset> = objects(&json["datasets"])
        .map(|(name, v)| Dataset {
            name: name.clone(),
            owner: local_text(v, OWNER),
            is_block: v["type"].as_str() == Some("VOLUME"),
            mounted: text(v, "mounted").is_some_and(|m| m == "yes"),
            used: number(v, "used"),
            referenced: number(v, "referenced"),
            written: number(v, "written"),
            quota: number(v, "refquota"),
            volsize: number(v, "volsize"),
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Reads what [`list_snapshots`] printed; oldest first.
pub fn parse_snapshots(json: &Value) -> Vec<Snap> {
    let mut found: Vec<Snap> = objects(&json["datasets"])
        .map(|(name, v)| Snap {
            name: name.clone(),
            creation_s: number(v, "creation"),
            used: number(v, "used"),
            marked: local_text(v, AUTOMATIC).is_some(),
            automatic: local_text(v, AUTOMATIC).is_some_and(|a| a == "yes"),
        })
        .collect();
    found.sort_by(|a, b| (a.creation_s, &a.name).cmp(&(b.creation_s, &b.name)));
    found
}

/// Reads what [`list_pool`] printed.
pub fn parse_pool(json: &Value, pool: &str) -> Option<Pool> {
    let v = json["pools"].get(pool)?;
    let health = text(v, "health").or_else(|| v["state"].as_str().map(str::to_owned))?;
    Some(Pool { pool_bytes: number(v, "size"), pool_free_bytes: number(v, "free"), health, troubles: Vec::new() })
}

fn objects(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(dataset: &Value, property: &str) -> Option<String> {
    dataset["properties"][property]["value"].as_str().filter(|v| *v != "-").map(str::to_owned)
}

/// A user property that is set here, not inherited from a parent.
fn local_text(dataset: &Value, property: &str) -> Option<String> {
    let source = dataset["properties"][property]["source"]["type"].as_str();
    text(dataset, property).filter(|_| source.is_none_or(|s| s.eq_ignore_ascii_case("local")))
}

/// A number, also when the tool printed it as text.
fn number(dataset: &Value, property: &str) -> u64 {
    let value = &dataset["properties"][property]["value"];
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// Reads a size as users write it: bytes, or with K, M, G, T (powers of 1024), `10G`, `10GiB`, `512m`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|n| *n > 0)
}

/// Reads a time span as users write it: seconds, or with s, m, h, d; `off` is 0.
pub fn parse_span(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "off" {
        return Some(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).filter(|s| *s > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn datasets_are_read_whether_numbers_are_numbers_or_text() {
        let json = json!({"output_version": {"command": "zfs list", "vers_major": 0, "vers_minor": 1}, "datasets": {
            "zone/volumes": {"name": "zone/volumes", "type": "FILESYSTEM", "pool": "zone", "createtxg": 9, "properties": {
                "used": {"value": 500, "source": {"type": "NONE", "data": "-"}},
                "mounted": {"value": "yes", "source": {"type": "NONE", "data": "-"}},
                "kraud:volume": {"value": "-", "source": {"type": "NONE", "data": "-"}}}},
            "zone/volumes/db": {"name": "zone/volumes/db", "type": "VOLUME", "pool": "zone", "properties": {
                "used": {"value": "4096", "source": {"type": "NONE", "data": "-"}},
                "volsize": {"value": 1_073_741_824, "source": {"type": "LOCAL", "data": "-"}},
                "mounted": {"value": "-", "source": {"type": "NONE", "data": "-"}},
                "kraud:volume": {"value": "db", "source": {"type": "LOCAL", "data": "-"}}}},
            "zone/volumes/old": {"name": "zone/volumes/old", "type": "FILESYSTEM", "properties": {
                "kraud:volume": {"value": "x", "source": {"type": "INHERITED", "data": "zone"}}}}
        }});
        let found = parse_datasets(&json);
        assert_eq!(
            found.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(),
            ["zone/volumes", "zone/volumes/db", "zone/volumes/old"]
        );
        assert_eq!((found[0].owner.as_deref(), found[0].mounted, found[0].used), (None, true, 500));
        assert_eq!(
            (found[1].owner.as_deref(), found[1].is_block, found[1].used, found[1].volsize),
            (Some("db"), true, 4096, 1 << 30)
        );
        assert_eq!(found[2].owner, None, "an inherited mark does not make a dataset ours");
    }

    #[test]
    fn snapshots_come_oldest_first() {
        let entry = |at: u64, auto: &str| {
            json!({"type": "SNAPSHOT", "properties": {"creation": {"value": at}, "used": {"value": 7},
            "kraud:automatic": {"value": auto}}})
        };
        let json = json!({"datasets": {"a@b": entry(20, "yes"), "a@a": entry(30, "no"), "a@c": entry(10, "-")}});
        let found = parse_snapshots(&json);
        assert_eq!(
            found.iter().map(|s| (s.name.as_str(), s.marked)).collect::<Vec<_>>(),
            [("a@c", false), ("a@b", true), ("a@a", true)]
        );
    }

    #[test]
    fn a_pool_is_read() {
        let json = json!({"pools": {"zone": {"name": "zone", "type": "POOL", "state": "ONLINE", "properties": {
            "size": {"value": 1000}, "free": {"value": "900"}, "health": {"value": "DEGRADED"}}}}});
        assert_eq!(
            parse_pool(&json, "zone").unwrap(),
            Pool { pool_bytes: 1000, pool_free_bytes: 900, health: "DEGRADED".into(), troubles: Vec::new() }
        );
        assert_eq!(parse_pool(&json, "other"), None);
    }

    #[test]
    fn sizes_are_powers_of_1024_and_nonsense_is_refused() {
        for (text, size) in [
            ("1", Some(1)),
            ("10G", Some(10 << 30)),
            ("10GiB", Some(10 << 30)),
            ("512m", Some(512 << 20)),
            ("2 kb", Some(2048)),
            ("", None),
            ("0", None),
            ("-1", None),
            ("G", None),
            ("1x", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }

    #[test]
    fn destroying_a_snapshot_can_never_destroy_a_dataset() {
        assert_eq!(destroy_snapshot("zone/volumes/a"), None);
        assert_eq!(destroy_snapshot("zone/volumes/a@x").unwrap(), argv!["zfs", "destroy", "zone/volumes/a@x"]);
    }
}
