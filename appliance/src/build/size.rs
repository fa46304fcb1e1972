//! What takes the space in an image: partitions as they are on the disk, and folders of the root before compression.

use super::error::{At, Result};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: String,
    pub bytes: u64,
}

/// Folders that are worth a line of their own instead of one for the folder above.
const OPENED: [&str; 6] = ["usr", "usr/lib", "usr/lib/modules", "usr/lib/kraud", "usr/lib/kraud/services", "usr/share"];
/// Smaller things are summed up.
const SHOWN_BYTES: u64 = 1 << 20;

/// The disk image's used bytes, and the root's folders and large files, largest first.
///
/// # Errors
/// When the image or the root cannot be read.
pub fn report(image: &Path, root: &Path) -> Result<Vec<Item>> {
    let used = fs::metadata(image).at("read", image)?.blocks() * 512;
    let mut items = Vec::new();
    open(root, "", &mut items)?;
    items.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    items.insert(0, Item { name: "image, without its holes".into(), bytes: used });
    Ok(items)
}

fn open(root: &Path, folder: &str, items: &mut Vec<Item>) -> Result<()> {
    let dir = root.join(folder);
    let mut rest = 0;
    for entry in fs::read_dir(&dir).at("read", &dir)?.flatten() {
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy()).trim_start_matches('/').to_owned();
        if entry.file_type().at("read", entry.path())?.is_dir() && OPENED.contains(&name.as_str()) {
            open(root, &name, items)?;
            continue;
        }
        match total(&entry.path())? {
            bytes if bytes >= SHOWN_BYTES => items.push(Item { name, bytes }),
            bytes => rest += bytes,
        }
    }
    if rest > 0 {
        items.push(Item { name: format!("{folder}/ (small things)"), bytes: rest });
    }
    Ok(())
}

/// Bytes of all files at and below a path; links count as nothing.
fn total(path: &Path) -> Result<u64> {
    let meta = fs::symlink_metadata(path).at("read", path)?;
    if !meta.is_dir() {
        return Ok(if meta.is_file() { meta.len() } else { 0 });
    }
    let entries = match fs::read_dir(path) {
        // Root's own folders, which are all but empty, when this is somebody else.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(0),
        entries => entries.at("read", path)?,
    };
    entries.flatten().try_fold(0, |sum, entry| Ok(sum + total(&entry.path())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_things_have_lines_and_small_ones_are_summed_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("usr/lib/kraud/services")).unwrap();
        fs::write(root.join("usr/lib/kraud/services/pods.tar.gz"), vec![0; 2 << 20]).unwrap();
        fs::write(root.join("usr/lib/small"), vec![0; 10]).unwrap();
        fs::write(dir.path().join("image"), "x").unwrap();
        let items = report(&dir.path().join("image"), &root).unwrap();
        assert_eq!(items[1], Item { name: "usr/lib/kraud/services/pods.tar.gz".into(), bytes: 2 << 20 });
        assert_eq!(items[2], Item { name: "usr/lib/ (small things)".into(), bytes: 10 });
    }
}
