//! From an image's layers to one flat disk: merged metadata, then the layers, in order.
//!
//! Must not: unpack anything onto this machine. A layer's archive is checked (hash, sizes, names) and then only read.

use super::archive::{Archive, unpack};
use super::mkfs::{Mkfs, RootInode};
use super::oldtar;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use zone::bundle::Extent;

/// Bytes of one layer, uncompressed.
const MAX_LAYER: u64 = 32 << 30;
const MAX_LAYER_ENTRIES: usize = 4_000_000;
const BLOCK: u64 = 4096;
const MERGED: &str = "image.erofs";

/// Makes the disk's files in `dir`; gives its pieces, with names relative to `dir`. `layers` are names in the archive,
/// `hashes` what the image's configuration says of them; `image` is the hash of that.
///
/// # Errors
/// When a layer is not what the configuration says, is damaged or no layer, or when `mkfs.erofs` fails.
pub fn build(
    archive: &Archive,
    layers: &[String],
    hashes: &[&str],
    image: &str,
    mkfs: &Mkfs,
    dir: &Path,
) -> Result<Vec<Extent>> {
    ensure!(
        layers.len() == hashes.len(),
        "the image has {} layers, but its configuration speaks of {}",
        layers.len(),
        hashes.len()
    );
    // A layer that occurs twice stands there twice, from one file.
    let mut built: HashMap<&str, (String, Option<RootInode>)> = HashMap::new();
    let mut order = Vec::new();
    for (index, (name, hash)) in layers.iter().zip(hashes).enumerate() {
        if !built.contains_key(hash) {
            let file = format!("layer-{index}.erofs");
            let root = layer(archive, name, hash, mkfs, &dir.join(&file), &dir.join("layer.tar"))
                .with_context(|| format!("layer {} ({name:.100}) cannot be used", index + 1))?;
            built.insert(hash, (file, root));
        }
        order.extend(built.get(hash).cloned());
    }
    let merged = dir.join(MERGED);
    if order.is_empty() {
        let empty = dir.join("layer.tar");
        File::create(&empty).and_then(|file| file.set_len(10_240)).context("cannot make an empty archive")?;
        mkfs.layer(&empty, &merged, image)?;
        std::fs::remove_file(&empty).context("cannot remove an empty archive")?;
    } else {
        let files: Vec<PathBuf> = order.iter().map(|(file, _)| dir.join(file)).collect();
        mkfs.merge(&files, &merged, image)?;
        order.iter().rev().find_map(|(_, root)| *root).unwrap_or_default().patch(&merged)?;
    }
    let names = std::iter::once(MERGED).chain(order.iter().map(|(file, _)| &**file));
    names.map(|name| extent(dir, name)).collect()
}

fn extent(dir: &Path, name: &str) -> Result<Extent> {
    let len = dir.join(name).metadata().with_context(|| format!("cannot read the size of {name}"))?.len();
    ensure!(len > 0 && len % BLOCK == 0, "mkfs.erofs made {name} of {len} bytes, which is no whole number of blocks");
    Ok(Extent { path: name.into(), offset: 0, len })
}

/// Makes one layer's file, by way of a copy of its archive; gives what that says of `/`.
fn layer(
    archive: &Archive,
    name: &str,
    hash: &str,
    mkfs: &Mkfs,
    output: &Path,
    copy: &Path,
) -> Result<Option<RootInode>> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(copy)
        .with_context(|| format!("cannot make {}", copy.display()))?;
    let found = unpack(archive.reader(name)?, &mut file, MAX_LAYER)?;
    ensure!(found == *hash, "it has the hash {found}, but the image's configuration says {hash}");
    let checked = check(&file)?;
    oldtar::rewrite(&file, &checked.old).context("its headers cannot be rewritten")?;
    drop(file);
    mkfs.layer(copy, output, hash)?;
    std::fs::remove_file(copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    Ok(checked.root)
}

/// What reading the headers told.
struct Checked {
    /// What the archive says of `/`, if anything.
    root: Option<RootInode>,
    /// Positions of headers that mkfs.erofs does not know.
    old: Vec<u64>,
}

/// Reads all headers; refuses what no layer has.
fn check(mut file: &File) -> Result<Checked> {
    std::io::Seek::rewind(&mut file).context("it cannot be read")?;
    let length = file.metadata().context("its size cannot be read")?.len();
    let mut archive = tar::Archive::new(file);
    let (mut root, mut total, mut old) = (None, 0_u64, Vec::new());
    for (count, entry) in archive.entries_with_seek().context("it cannot be read")?.enumerate() {
        let entry = entry.context("its archive is damaged")?;
        ensure!(count < MAX_LAYER_ENTRIES, "it has more than {MAX_LAYER_ENTRIES} files");
        let name = entry.path().context("it has an unreadable name")?.into_owned();
        let shown = || format!("{:.200?}", name.display().to_string());
        ensure!(
            !name.components().any(|c| c == Component::ParentDir),
            "it has a file named {}: names must not climb",
            shown()
        );
        let end = entry.raw_file_position().checked_add(entry.header().entry_size().unwrap_or(u64::MAX));
        ensure!(end.is_some_and(|end| end <= length), "its archive ends in the middle of {}", shown());
        if oldtar::is_old(entry.header()) {
            old.push(entry.raw_header_position());
        }
        // A sparse file may say that it is larger than the archive.
        total = total.saturating_add(entry.size());
        ensure!(total <= MAX_LAYER, "its files are larger than {MAX_LAYER} bytes together");
        let is_root = name.components().all(|c| matches!(c, Component::CurDir | Component::RootDir));
        if is_root && entry.header().entry_type().is_dir() {
            root = Some(RootInode::from_header(entry.header()));
        }
    }
    Ok(Checked { root, old })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summon::testing::tar;
    use std::os::unix::fs::FileExt as _;

    fn checked(bytes: &[u8]) -> Result<Checked> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        check(&file)
    }

    #[test]
    fn names_that_climb_and_archives_that_end_early_are_refused() {
        assert!(checked(&tar(&[("etc/passwd", b"x")])).is_ok());
        assert!(checked(&tar(&[("../etc/passwd", b"x")])).is_err());
        assert!(checked(&tar(&[("a/../../b", b"x")])).is_err());
        assert!(checked(&tar(&[("a", &[1; 5000])])[..3000]).is_err());
        assert!(checked(&[7; 2048]).is_err());
    }

    #[test]
    fn headers_of_the_oldest_tar_are_found() {
        let mut bytes = tar(&[("a", b"x"), ("b", b"y")]);
        let header = tar::Header::from_byte_slice(&bytes[1024..1536]);
        let mut header = header.clone();
        header.as_mut_bytes()[156] = 0;
        header.set_cksum();
        bytes[1024..1536].copy_from_slice(header.as_bytes());
        assert_eq!(checked(&bytes).unwrap().old, [1024]);
    }

    #[test]
    fn the_root_directory_keeps_what_the_archive_says_of_it() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o710);
        header.set_uid(5);
        header.set_size(0);
        builder.append_data(&mut header, "./", &[][..]).unwrap();
        let root = checked(&builder.into_inner().unwrap()).unwrap().root.unwrap();
        assert_eq!((root.mode, root.uid, root.gid), (0o710, 5, 0));
    }
}
