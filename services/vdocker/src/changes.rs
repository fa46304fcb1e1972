//! What a container changed in its image's files: Docker's list, from the overlay's upper layer.

use rustix::fs::lgetxattr;
use serde::Serialize;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Made by the agent itself.
pub const OURS: [&str; 7] = ["/.dockerenv", "/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
/// Deeper folders are not looked at.
const MAX_DEPTH: u32 = 64;

/// A changed path.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The path.
    #[serde(rename = "Path")]
    pub path: String,
    /// 0 modified, 1 added, 2 deleted.
    #[serde(rename = "Kind")]
    pub kind: u8,
}

/// All changes, sorted by path.
pub fn changes(lower: &Path, upper: &Path) -> Vec<Change> {
    let mut all = Vec::new();
    walk(lower, upper, "", &mut all, 0);
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn walk(lower: &Path, upper: &Path, at: &str, all: &mut Vec<Change>, depth: u32) {
    let Ok(entries) = fs::read_dir(upper) else { return };
    for entry in entries.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        let path = format!("{at}/{}", String::from_utf8_lossy(entry.file_name().as_bytes()));
        let below = lower.join(entry.file_name());
        if OURS.contains(&path.as_str()) {
            continue;
        }
        if meta.file_type().is_char_device() && meta.rdev() == 0 {
            all.push(Change { path, kind: 2 });
            continue;
        }
        let existed = below.symlink_metadata().is_ok();
        let before = all.len();
        if meta.is_dir() && depth < MAX_DEPTH {
            if existed && is_opaque(&entry.path()) {
                deleted_below(&below, &entry.path(), &path, all);
            }
            walk(&below, &entry.path(), &path, all, depth + 1);
            // A folder that only holds what the agent made is the agent's.
            if before == all.len() && fs::read_dir(entry.path()).is_ok_and(|mut e| e.next().is_some()) {
                continue;
            }
        }
        all.push(Change { path, kind: u8::from(!existed) });
    }
}

/// A folder that was removed and made again hides what is below it.
pub fn is_opaque(folder: &Path) -> bool {
    let mut value = [0u8; 4];
    matches!(lgetxattr(folder, "trusted.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
}

fn deleted_below(lower: &Path, upper: &Path, at: &str, all: &mut Vec<Change>) {
    let Ok(entries) = fs::read_dir(lower) else { return };
    for entry in entries.flatten().filter(|e| upper.join(e.file_name()).symlink_metadata().is_err()) {
        all.push(Change { path: format!("{at}/{}", String::from_utf8_lossy(entry.file_name().as_bytes())), kind: 2 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_and_modified_are_told_apart_and_the_agents_own_left_out() {
        let base = std::env::temp_dir().join(format!("vdocker-changes-{}", std::process::id()));
        let (lower, upper) = (base.join("lower"), base.join("upper"));
        for folder in ["lower/etc", "lower/opt", "upper/etc", "upper/opt/new", "upper/proc"] {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        fs::create_dir_all(base.join("upper/opt/empty")).unwrap();
        for file in ["lower/opt/a", "upper/etc/hosts", "upper/opt/a", "upper/opt/new/b", "upper/.dockerenv"] {
            fs::write(base.join(file), "").unwrap();
        }
        let want = [("/opt", 0), ("/opt/a", 0), ("/opt/empty", 1), ("/opt/new", 1), ("/opt/new/b", 1)];
        assert_eq!(changes(&lower, &upper), want.map(|(path, kind)| Change { path: path.into(), kind }));
    }
}
