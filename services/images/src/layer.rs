//! From a layer's archive to its file system: checks the archive (hash, sizes, paths), then has `mkfs.erofs` turn it into
//! EROFS, with docker's whiteouts as overlayfs has them.
//!
//! Must not: unpack anything onto this machine. The archive is only ever read.

use crate::compress;
use crate::digest::{Digest, copy_hashed};
use crate::fail::{MAX_LAYER, MAX_LAYER_ENTRIES, Result, blocking, internal, invalid, io};
use crate::headers::Bound;
use crate::mkfs::{Mkfs, RootInode};
use crate::oldtar;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// What is known of a layer that is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Bytes of the uncompressed archive.
    pub size: u64,
    /// Bytes of the file system.
    pub erofs_size: u64,
    /// What the archive says of `/`, if anything.
    pub root: Option<RootInode>,
}

/// Builds a layer's file system from its blob, unless it is there.
///
/// # Errors
/// `Invalid` when the archive is not what the configuration says, is damaged, or is no layer.
pub async fn ensure(store: &Arc<Store>, mkfs: &Mkfs, blob: PathBuf, diff_id: &Digest) -> Result<LayerInfo> {
    let _one_at_a_time = store.build.lock().await;
    if let Some(info) = find(store, diff_id) {
        return Ok(info);
    }
    let (worker_store, worker_id) = (store.clone(), diff_id.clone());
    let (archive, size, root) = blocking(move || {
        let (archive, size) = uncompress(&worker_store, &blob, &worker_id)?;
        let checked = check(archive.path())?;
        Ok((modernized(&worker_store, archive, &checked.old)?, size, checked.root))
    })
    .await?;
    let output = store.temp()?;
    mkfs.layer(archive.path(), output.path(), diff_id).await?;
    let erofs_size = output.path().metadata().map_err(io("cannot read a new layer's size"))?.len();
    if erofs_size == 0 || erofs_size % 4096 != 0 {
        return Err(internal(format!(
            "mkfs.erofs made a layer of {erofs_size} bytes, which is no whole number of blocks"
        )));
    }
    let info = LayerInfo { size, erofs_size, root };
    let (store, diff_id, kept) = (store.clone(), diff_id.clone(), info.clone());
    blocking(move || {
        store.keep(output, &store.layer(&diff_id))?;
        store.put_json(&store.layer_info(&diff_id), &kept)
    })
    .await?;
    Ok(info)
}

/// A layer that is built.
pub fn find(store: &Store, diff_id: &Digest) -> Option<LayerInfo> {
    let info: LayerInfo = store.get_json(&store.layer_info(diff_id))?;
    let size = store.layer(diff_id).metadata().ok()?.len();
    (size == info.erofs_size).then_some(info)
}

/// The uncompressed archive as a file: a temporary one, or the blob itself.
enum Archive {
    Blob(PathBuf),
    Temp(tempfile::NamedTempFile),
}

impl Archive {
    fn path(&self) -> &Path {
        match self {
            Self::Blob(path) => path,
            Self::Temp(file) => file.path(),
        }
    }
}

fn uncompress(store: &Store, blob: &Path, diff_id: &Digest) -> Result<(Archive, u64)> {
    let file = File::open(blob).map_err(io("cannot open a layer's blob"))?;
    let length = file.metadata().map_err(io("cannot read a blob's size"))?.len();
    // The store's blobs have the hash of their name: one that is named like the layer is the layer, uncompressed.
    if blob.file_name().is_some_and(|n| n == diff_id.hex()) {
        return Ok((Archive::Blob(blob.to_owned()), length));
    }
    let (_, reader) = compress::reader(file).map_err(io("cannot read a layer"))?;
    let mut temp = store.temp()?;
    let (found, size) =
        copy_hashed(reader, &mut temp, MAX_LAYER).map_err(io(format!("cannot unpack layer {diff_id}")))?;
    if found != *diff_id {
        return Err(invalid(format!(
            "a layer's archive has the hash {found}, but the image's configuration says {diff_id}"
        )));
    }
    Ok((Archive::Temp(temp), size))
}

/// The archive, or a copy of it in which the headers at the positions `old` are such as mkfs.erofs knows.
fn modernized(store: &Store, archive: Archive, old: &[u64]) -> Result<Archive> {
    if old.is_empty() {
        return Ok(archive);
    }
    let temp = match archive {
        Archive::Temp(temp) => temp,
        Archive::Blob(path) => {
            let temp = store.temp()?;
            std::fs::copy(&path, temp.path()).map_err(io("cannot copy a layer"))?;
            temp
        }
    };
    let file = File::options().read(true).write(true).open(temp.path()).map_err(io("cannot open a layer"))?;
    oldtar::rewrite(&file, old).map_err(io("cannot rewrite a layer's headers"))?;
    Ok(Archive::Temp(temp))
}

/// What reading the headers told.
#[derive(Debug)]
pub struct Checked {
    /// What the archive says of `/`, if anything.
    pub root: Option<RootInode>,
    /// Positions of headers that mkfs.erofs does not know.
    pub old: Vec<u64>,
}

/// Reads all headers of an uncompressed archive.
///
/// # Errors
/// `Invalid` when it has what no layer has.
pub fn check(path: &Path) -> Result<Checked> {
    let file = File::open(path).map_err(io("cannot open a layer"))?;
    let length = file.metadata().map_err(io("cannot read a layer's size"))?.len();
    let bound = Bound::default();
    let mut archive = tar::Archive::new(bound.reader(file));
    let mut entries = archive.entries_with_seek().map_err(io("cannot read a layer"))?;
    let (mut root, mut total, mut old, mut count) = (None, 0_u64, Vec::new(), 0);
    while let Some(entry) = bound.next(&mut entries) {
        let entry = entry.map_err(io("a layer's archive is damaged"))?;
        count += 1;
        if count > MAX_LAYER_ENTRIES {
            return Err(invalid(format!("a layer has more than {MAX_LAYER_ENTRIES} files")));
        }
        let name = entry.path().map_err(io("a layer has an unreadable name"))?.into_owned();
        if name.components().any(|c| c == Component::ParentDir) {
            return Err(invalid(format!(
                "a layer has a file named {:.200?}: names must not climb",
                name.display().to_string()
            )));
        }
        let end = entry.raw_file_position().checked_add(entry.header().entry_size().unwrap_or(u64::MAX));
        if end.is_none_or(|end| end > length) {
            return Err(invalid(format!(
                "a layer's archive ends in the middle of {:.200?}",
                name.display().to_string()
            )));
        }
        if oldtar::is_old(entry.header()) {
            old.push(entry.raw_header_position());
        }
        // A sparse file may say that it is larger than the archive.
        total = total.saturating_add(entry.size());
        if total > MAX_LAYER {
            return Err(invalid(format!("a layer's files are larger than {MAX_LAYER} bytes together")));
        }
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

    fn tar_with(name: &str, data: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, data).unwrap();
        builder.into_inner().unwrap()
    }

    fn check_bytes(bytes: &[u8]) -> Result<Option<RootInode>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        check(file.path()).map(|checked| checked.root)
    }

    #[test]
    fn names_that_climb_and_archives_that_end_early_are_refused() {
        assert!(check_bytes(&tar_with("etc/passwd", b"x")).unwrap().is_none());
        assert!(check_bytes(&tar_with("../etc/passwd", b"x")).is_err());
        assert!(check_bytes(&tar_with("a/../../b", b"x")).is_err());
        assert!(check_bytes(&tar_with("a", &[1; 5000])[..3000]).is_err());
        assert!(check_bytes(&[7; 2048]).is_err());
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
        let root = check_bytes(&builder.into_inner().unwrap()).unwrap().unwrap();
        assert_eq!((root.mode, root.uid, root.gid), (0o710, 5, 0));
    }
}
