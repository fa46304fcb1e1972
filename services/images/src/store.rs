//! The content store's files. Everything is made in `tmp/`, synced, and renamed into its place: what has its name is whole.
//!
//! ```text
//! blobs/sha256/HEX     configurations, manifests, layer archives as they came
//! layers/HEX.erofs     a layer's file system, by the hash of its uncompressed archive
//! layers/HEX.json      what is known of it; written last, so a layer without it is not there
//! merged/HEX.erofs     an image's merged metadata, by image id
//! images/HEX.json      the descriptor of an image's manifest
//! builds/HEX.json      what a build's step gave, by its key
//! tmp/                 half made; emptied at start
//! ```

use crate::digest::{Digest, copy_hashed};
use crate::fail::{Result, internal, invalid, io, not_found};
use crate::manifest::{Descriptor, Manifest};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use tempfile::NamedTempFile;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};

/// The content store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Readers are loads under way, the writer is garbage collection.
    in_use: Arc<RwLock<()>>,
    /// File systems are built one at a time: no layer twice, and one worker's memory at most.
    pub build: Mutex<()>,
    /// Blobs that are on their way.
    fetches: StdMutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

/// As long as it lives, nothing is removed from the store.
pub type InUse = OwnedRwLockReadGuard<()>;

impl Store {
    /// Opens the store at `root`, makes its directories and removes what was left half made.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(io("cannot tell where the content store is"))?;
        let store = Self { root, in_use: Arc::default(), build: Mutex::default(), fetches: StdMutex::default() };
        let _ = fs::remove_dir_all(store.root.join("tmp"));
        for dir in ["blobs/sha256", "layers", "merged", "images", "builds", "tmp"] {
            let dir = store.root.join(dir);
            fs::create_dir_all(&dir).map_err(io(format!("cannot make {}", dir.display())))?;
        }
        Ok(store)
    }

    /// Keeps garbage collection away.
    pub async fn use_it(&self) -> InUse {
        self.in_use.clone().read_owned().await
    }

    /// Waits until nobody else fetches a blob; nobody does while the answer lives.
    pub async fn fetching(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            fetches.retain(|_, lock| Arc::strong_count(lock) > 1);
            fetches.entry(digest.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// The lock that garbage collection holds; none while anything is under way.
    pub fn try_exclusive(&self) -> Option<tokio::sync::OwnedRwLockWriteGuard<()>> {
        self.in_use.clone().try_write_owned().ok()
    }

    /// The store's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One of the store's directories.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where a blob is.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Where a layer's file system is.
    pub fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.erofs", diff_id.hex()))
    }

    /// Where it stands what is known of a layer.
    pub fn layer_info(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.json", diff_id.hex()))
    }

    /// Where an image's merged metadata is.
    pub fn merged(&self, image: &Digest) -> PathBuf {
        self.root.join("merged").join(format!("{}.erofs", image.hex()))
    }

    fn record(&self, image: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", image.hex()))
    }

    /// A new file that vanishes unless it is kept.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn temp(&self) -> Result<NamedTempFile> {
        NamedTempFile::new_in(self.root.join("tmp")).map_err(io("cannot make a temporary file in the content store"))
    }

    /// Gives a finished file its place.
    ///
    /// # Errors
    /// When it cannot be synced or renamed.
    pub fn keep(&self, temp: NamedTempFile, path: &Path) -> Result<()> {
        let what = || format!("cannot store {}", path.display());
        let file = temp.as_file();
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(io(what()))?;
        file.sync_all().map_err(io(what()))?;
        temp.persist(path).map_err(|e| io(what())(e.error))?;
        let dir = path.parent().unwrap_or(&self.root);
        File::open(dir).and_then(|d| d.sync_all()).map_err(io(what()))
    }

    /// Stores bytes as a blob.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.blob(&digest).exists() {
            self.put_file(&self.blob(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Stores a stream as a blob; refuses it when it has not the digest that it should have.
    ///
    /// # Errors
    /// `TooLarge` beyond `limit`, `Invalid` for another digest.
    pub fn put_blob_from(&self, from: impl Read, limit: u64, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let mut temp = self.temp()?;
        let (digest, size) = copy_hashed(from, &mut temp, limit).map_err(io("cannot read a blob"))?;
        if let Some(expected) = expected.filter(|e| **e != digest) {
            return Err(invalid(format!(
                "content with the digest {digest} came where {expected} should be: it is damaged"
            )));
        }
        if !self.blob(&digest).exists() {
            self.keep(temp, &self.blob(&digest))?;
        }
        Ok((digest, size))
    }

    /// A small blob.
    ///
    /// # Errors
    /// `NotFound` when it is not there.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        fs::read(self.blob(digest)).map_err(|e| not_found(format!("the content store has no blob {digest}: {e}")))
    }

    /// Stores a small document.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_json(&self, path: &Path, value: &impl Serialize) -> Result<()> {
        let bytes =
            serde_json::to_vec(value).map_err(|e| internal(format!("cannot encode {}: {e}", path.display())))?;
        self.put_file(path, &bytes)
    }

    /// A small document; none when it is not there or damaged.
    pub fn get_json<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Remembers which manifest an image has.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_record(&self, image: &Digest, manifest: &Descriptor) -> Result<()> {
        self.put_json(&self.record(image), manifest)
    }

    /// The manifest of an image: its descriptor, its bytes, and what it says.
    ///
    /// # Errors
    /// `NotFound` when the store does not have the image.
    pub fn manifest(&self, image: &Digest) -> Result<(Descriptor, Vec<u8>, Manifest)> {
        let descriptor: Descriptor = self
            .get_json(&self.record(image))
            .ok_or_else(|| not_found(format!("the content store has no manifest of image {image}")))?;
        let bytes = self.read_blob(&descriptor.digest()?)?;
        let manifest = Manifest::parse(&bytes)?;
        Ok((descriptor, bytes, manifest))
    }

    fn put_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut temp = self.temp()?;
        temp.write_all(bytes).map_err(io(format!("cannot write {}", path.display())))?;
        self.keep(temp, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_with_another_digest_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let other = Digest::of(b"other");
        assert!(store.put_blob_from(&b"content"[..], 100, Some(&other)).is_err());
        assert!(store.put_blob_from(&b"content"[..], 3, None).is_err());
        for dir in ["blobs/sha256", "tmp"] {
            assert_eq!(fs::read_dir(store.dir(dir)).unwrap().count(), 0, "{dir}");
        }
        let (digest, size) = store.put_blob_from(&b"content"[..], 100, None).unwrap();
        assert_eq!((store.read_blob(&digest).unwrap(), size), (b"content".to_vec(), 7));
    }
}
