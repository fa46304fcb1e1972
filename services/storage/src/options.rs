//! What a volume's spec asks for: driver and options, checked. Pure.

use crate::zfs;
use zone::volume::VolumeSpec;

/// A block device's size when none is asked for.
const DEFAULT_BLOCK: u64 = 10 << 30;
/// ZFS allows 255 bytes with the pool, the parent and a snapshot's name.
const MAX_NAME: usize = 200;
/// How often a snapshot is taken when nobody says otherwise, seconds.
pub const DEFAULT_INTERVAL_S: u64 = 600;
/// More often than this a pool has no time for anything else.
const MIN_INTERVAL_S: u64 = 10;

/// What a volume's spec asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Files, at most `quota` bytes (0 = no limit).
    Files {
        /// Bytes.
        quota: u64,
    },
    /// A block device.
    Block {
        /// Bytes.
        size: u64,
    },
}

/// What a spec asks for.
///
/// # Errors
/// A sentence for people when it cannot be.
pub fn wanted(name: &str, spec: &VolumeSpec) -> Result<Wanted, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.bytes().all(legal) && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !good || name.len() > MAX_NAME {
        return Err(format!(
            "a volume's name must be 1 to {MAX_NAME} letters, digits, '_', '.', '-', and start with a letter or digit"
        ));
    }
    if let Some(option) = spec.options.keys().find(|o| !["size", "snapshots"].contains(&o.as_str())) {
        return Err(format!(
            "there is no volume option {option:?}: volumes are datasets of this zone's pool and take size and snapshots"
        ));
    }
    interval_s(spec)?;
    let size = match spec.options.get("size") {
        None => None,
        Some(text) => Some(
            zfs::parse_size(text)
                .ok_or_else(|| format!("the size {text:?} is wrong; write bytes, or 512M, 10G, 1T"))?,
        ),
    };
    match spec.driver.as_str() {
        "" | "local" | "nfs" => Ok(Wanted::Files { quota: size.unwrap_or(0) }),
        // volblocksize is 16 KiB; a device's size must be a multiple of it.
        "lv2" => Ok(Wanted::Block { size: size.unwrap_or(DEFAULT_BLOCK).next_multiple_of(16 << 10).max(16 << 20) }),
        other => Err(format!("there is no volume driver {other:?}; use local, nfs or lv2")),
    }
}

/// How often the schedule takes a snapshot, seconds; 0 = never.
///
/// # Errors
/// A sentence for people when the option is wrong.
pub fn interval_s(spec: &VolumeSpec) -> Result<u64, String> {
    let Some(text) = spec.options.get("snapshots") else { return Ok(DEFAULT_INTERVAL_S) };
    match zfs::parse_span(text) {
        Some(0) => Ok(0),
        Some(seconds) if seconds >= MIN_INTERVAL_S => Ok(seconds),
        _ => Err(format!("the option snapshots={text} is wrong; write 10m, 1h, 1d, off; at least {MIN_INTERVAL_S}s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn spec(driver: &str, options: &[(&str, &str)]) -> VolumeSpec {
        let options: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        VolumeSpec { driver: driver.into(), options, ..VolumeSpec::default() }
    }

    #[test]
    fn unknown_drivers_options_bad_sizes_and_bad_names_are_refused() {
        for (name, spec) in [
            ("a", spec("ceph", &[])),
            ("a", spec("lv2", &[("size", "huge")])),
            ("a", spec("local", &[("type", "tmpfs")])),
            ("a", spec("local", &[("snapshots", "1s")])),
            ("a", spec("local", &[("snapshots", "often")])),
            ("../a", spec("local", &[])),
            ("a@b", spec("local", &[])),
            ("a:1", spec("local", &[])),
            ("-r", spec("local", &[])),
            ("", spec("local", &[])),
        ] {
            assert!(wanted(name, &spec).is_err(), "{name} {spec:?}");
        }
    }

    #[test]
    fn the_interval_is_the_volumes_own_or_ten_minutes() {
        for (options, seconds) in [
            (&[][..], 600),
            (&[("snapshots", "off")], 0),
            (&[("snapshots", "10s")], 10),
            (&[("snapshots", "2h")], 7200),
        ] {
            assert_eq!(interval_s(&spec("local", options)), Ok(seconds));
        }
    }
}
