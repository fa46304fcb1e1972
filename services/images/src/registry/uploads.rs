//! Blobs that clients are pushing to this zone. While any is on its way, or its image may still come, nothing is collected.

use crate::digest::{Digest, HashWriter};
use crate::fail::{Result, invalid, not_found};
use crate::store::InUse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// At the same time.
const MAX_UPLOADS: usize = 64;
/// How long an upload, and blobs without an image, wait for more.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// An upload under way.
pub type Upload = HashWriter<NamedTempFile>;

/// All of them.
#[derive(Default)]
pub struct Uploads {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    open: HashMap<String, (Instant, Upload)>,
    begun: u64,
    in_use: Option<InUse>,
    last: Option<Instant>,
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Uploads(…)")
    }
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps garbage collection away until nobody has uploaded for a while.
    pub fn keep(self: &Arc<Self>, in_use: InUse) {
        let mut inner = self.lock();
        inner.last = Some(Instant::now());
        if inner.in_use.replace(in_use).is_none() {
            let uploads = self.clone();
            tokio::spawn(async move {
                while uploads.wait_left() {
                    tokio::time::sleep(PATIENCE / 10).await;
                }
            });
        }
    }

    /// False when it is over, and everything was let go.
    fn wait_left(&self) -> bool {
        let mut inner = self.lock();
        let waits = inner.last.is_some_and(|last| last.elapsed() < PATIENCE);
        inner.open.retain(|_, (used, _)| used.elapsed() < PATIENCE);
        if !waits {
            inner.in_use = None;
        }
        waits
    }

    /// Begins an upload; its id.
    ///
    /// # Errors
    /// `Invalid` when there are too many.
    pub fn begin(&self, temp: NamedTempFile) -> Result<String> {
        let mut inner = self.lock();
        if inner.open.len() >= MAX_UPLOADS {
            return Err(invalid(format!("more than {MAX_UPLOADS} uploads are under way; try again")));
        }
        inner.begun += 1;
        // The file's name is random; the count makes ids of different files different.
        let seed = format!("{} {}", inner.begun, temp.path().display());
        let id = Digest::of(seed.as_bytes()).hex().to_owned();
        inner.open.insert(id.clone(), (Instant::now(), HashWriter::new(temp)));
        Ok(id)
    }

    /// Takes an upload out.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn take(&self, id: &str) -> Result<Upload> {
        let taken = self.lock().open.remove(id);
        taken.map(|(_, upload)| upload).ok_or_else(|| not_found("there is no such upload: begin again"))
    }

    /// Puts it back.
    pub fn put(&self, id: &str, upload: Upload) {
        self.lock().open.insert(id.to_owned(), (Instant::now(), upload));
    }

    /// How much of it came.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn size(&self, id: &str) -> Result<u64> {
        let inner = self.lock();
        inner.open.get(id).map(|(_, u)| u.count()).ok_or_else(|| not_found("there is no such upload: begin again"))
    }
}
