//! What steps of builds gave: small records by the key of everything that went into the step. The layers themselves are
//! in the store like any other; garbage collection keeps those that a record names.

use crate::digest::Digest;
use crate::fail::{Result, io};
use crate::manifest::Descriptor;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A record that no build has used for so long goes.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// As many records as are kept; the longest unused go first.
const MAX_RECORDS: usize = 5_000;

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it was made, RFC 3339.
    pub created: String,
    /// The layer, if it made one.
    pub layer: Option<Layer>,
}

/// A layer of an image under construction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its archive.
    pub blob: Descriptor,
    /// The hash of its uncompressed archive.
    pub diff_id: String,
}

impl Layer {
    /// A layer whose archive is not compressed.
    #[must_use]
    pub fn plain(digest: &Digest, size: u64) -> Self {
        let blob = Descriptor::new("application/vnd.oci.image.layer.v1.tar", digest, size);
        Self { blob, diff_id: digest.to_string() }
    }
}

fn path(store: &Store, key: &Digest) -> PathBuf {
    store.dir("builds").join(format!("{}.json", key.hex()))
}

/// What a step gave before; none when it is not known, or its layer is gone.
#[must_use]
pub fn get(store: &Store, key: &Digest) -> Option<Record> {
    let path = path(store, key);
    let record: Record = store.get_json(&path)?;
    if let Some(layer) = &record.layer
        && !store.blob(&layer.blob.digest().ok()?).exists()
    {
        return None;
    }
    // The file's time is that of its last use.
    let _ = std::fs::File::open(&path).and_then(|f| f.set_modified(SystemTime::now()));
    Some(record)
}

/// Remembers what a step gave.
///
/// # Errors
/// When it cannot be written.
pub fn put(store: &Store, key: &Digest, record: &Record) -> Result<()> {
    store.put_json(&path(store, key), record)
}

/// The files that records name, with those of the records themselves.
#[must_use]
pub fn files(store: &Store) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (path, _) in records(store) {
        if let Some(layer) = store.get_json::<Record>(&path).and_then(|r| r.layer) {
            files.extend(layer.blob.digest().ok().map(|d| store.blob(&d)));
            if let Ok(id) = Digest::parse(&layer.diff_id) {
                files.extend([store.layer(&id), store.layer_info(&id)]);
            }
        }
    }
    files
}

/// Forgets records: all of them, or those that are old or too many. Returns the keys. Their layers go with the next collection.
///
/// # Errors
/// When one cannot be removed.
pub fn prune(store: &Store, all: bool) -> Result<Vec<String>> {
    let mut records = records(store);
    records.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    let oldest = SystemTime::now() - MAX_AGE;
    let mut gone = Vec::new();
    for (index, (path, used)) in records.iter().enumerate() {
        if all || index >= MAX_RECORDS || *used < oldest {
            std::fs::remove_file(path).map_err(io(format!("cannot remove {}", path.display())))?;
            gone.extend(path.file_stem().map(|s| s.to_string_lossy().into_owned()));
        }
    }
    Ok(gone)
}

fn records(store: &Store) -> Vec<(PathBuf, SystemTime)> {
    let entries = std::fs::read_dir(store.dir("builds")).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), e.metadata().ok()?.modified().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_as_long_as_its_layer_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let blob = store.put_blob(b"layer").unwrap();
        let (key, other) = (Digest::of(b"key"), Digest::of(b"other"));
        let record = Record { created: "now".into(), layer: Some(Layer::plain(&blob, 5)) };
        put(&store, &key, &record).unwrap();
        assert_eq!((get(&store, &key), get(&store, &other)), (Some(record), None));
        assert!(files(&store).contains(&store.blob(&blob)));
        std::fs::remove_file(store.blob(&blob)).unwrap();
        assert_eq!(get(&store, &key), None);
        assert!(prune(&store, false).unwrap().is_empty());
        assert_eq!(prune(&store, true).unwrap(), [key.hex()]);
    }
}
