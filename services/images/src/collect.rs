//! Reconciles the store with the image resources: removes files that no image names, rebuilds what an image misses.
//!
//! Must not remove anything from a store that is not marked as this state engine's, nor while a load or pull is under way: it takes the store's exclusive lock or does nothing.

use crate::digest::Digest;
use crate::fail::{Result, blocking, io};
use crate::ingest::Context;
use crate::manifest::Config;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use zone::Resource;
use zone::client::Event;
use zone::image::Image;
use zone::marker::{self, Claim};

/// How long after a change that could not be dealt with (a load was under way, the state engine was away).
const RETRY: Duration = Duration::from_secs(5);
/// Where files have the names of what images name.
const COLLECTED: [&str; 4] = ["images", "merged", "layers", "blobs/sha256"];
/// Without any change.
const IDLE: Duration = Duration::from_secs(600);

/// Reconciles at start and after each change, for ever.
pub async fn run(context: Context) {
    let mut first = true;
    loop {
        let wait = match once(&context, first).await {
            Ok(true) => {
                first = false;
                wait_for_change(&context).await
            }
            Ok(false) => RETRY,
            Err(error) => {
                tracing::warn!(%error, "cannot reconcile the content store");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Returns when an image is gone, or when a watch ended.
async fn wait_for_change(context: &Context) -> Duration {
    let watched = tokio::time::timeout(IDLE, async {
        let from = context.zone.list::<Image>().await?.revision;
        let mut watch = context.zone.watch(&["image"], from).await?;
        while let Some(changes) = watch.next().await? {
            if changes.events.iter().any(|e| matches!(e, Event::Delete { .. })) {
                return Ok(Duration::from_millis(200));
            }
        }
        Ok::<_, zone::ApiError>(RETRY)
    });
    match watched.await {
        Ok(Ok(wait)) => wait,
        Ok(Err(_)) => RETRY,
        Err(_) => Duration::ZERO,
    }
}

/// One pass; false when the store is in use.
///
/// # Errors
/// When the state engine cannot be asked or a file not be removed.
pub async fn once(context: &Context, repair: bool) -> Result<bool> {
    let Some(_exclusive) = context.store.try_exclusive() else { return Ok(false) };
    let images = context.zone.list::<Image>().await?.items;
    if repair {
        for image in &images {
            repair_one(context, image).await?;
        }
    }
    remove_unnamed(context, &images).await?;
    Ok(true)
}

/// Removes what no image names; the bytes that it took, none when the store is in use.
///
/// # Errors
/// As [`once`].
pub async fn free(context: &Context) -> Result<Option<u64>> {
    let Some(_exclusive) = context.store.try_exclusive() else { return Ok(None) };
    let images = context.zone.list::<Image>().await?.items;
    remove_unnamed(context, &images).await.map(Some)
}

async fn remove_unnamed(context: &Context, images: &[Resource<Image>]) -> Result<u64> {
    if !is_ours(context, images).await? {
        return Ok(0);
    }
    let mut keep: HashSet<PathBuf> = HashSet::new();
    for image in images {
        let Ok(id) = Digest::parse(&image.meta.name) else { continue };
        keep.extend(files_of(context, &id));
    }
    crate::build::prune(&context.store, false)?;
    keep.extend(crate::build::cached_files(&context.store));
    let store = context.store.clone();
    blocking(move || {
        let mut freed = 0;
        for dir in COLLECTED {
            let dir = store.dir(dir);
            let entries = fs::read_dir(&dir).map_err(io(format!("cannot list {}", dir.display())))?;
            for path in entries.flatten().map(|e| e.path()).filter(|p| !keep.contains(p)) {
                tracing::info!(path = %path.display(), "removing a file that no image names");
                freed += path.metadata().map_or(0, |m| m.len());
                fs::remove_file(&path).map_err(io(format!("cannot remove {}", path.display())))?;
            }
        }
        Ok(freed)
    })
    .await
}

/// Whether this store is the state engine's: an empty database must not empty the store of another one.
async fn is_ours(context: &Context, images: &[Resource<Image>]) -> Result<bool> {
    let root = context.store.root();
    let (zone, claim) = marker::claim(&context.zone, root).await?;
    match claim {
        Claim::Ours => Ok(true),
        Claim::Foreign { zone: other } => {
            tracing::error!(
                store = %root.display(), zone, other,
                "the content store belongs to another zone's database: nothing in it is removed; load or pull its images again, or empty it"
            );
            Ok(false)
        }
        Claim::Unmarked => {
            let empty = fs::read_dir(context.store.dir("images")).is_ok_and(|mut d| d.next().is_none());
            let known = images.iter().any(|i| i.status.disk.iter().any(|e| e.path.exists()));
            if !(empty || known) {
                tracing::error!(
                    store = %root.display(),
                    "the content store has images and the state engine knows of none of them: nothing in it is removed"
                );
                return Ok(false);
            }
            marker::write(root, &zone).map_err(io("cannot mark the content store"))?;
            Ok(true)
        }
    }
}

/// Every file that belongs to an image, as far as the store can tell.
fn files_of(context: &Context, image: &Digest) -> Vec<PathBuf> {
    let store = &context.store;
    let mut files =
        vec![store.blob(image), store.merged(image), store.dir("images").join(format!("{}.json", image.hex()))];
    if let Ok((descriptor, _, manifest)) = store.manifest(image) {
        let blobs = manifest.layers.iter().chain([&descriptor]).filter_map(|d| d.digest().ok());
        files.extend(blobs.map(|d| store.blob(&d)));
    }
    let ids = store.read_blob(image).and_then(|c| Config::parse(&c)).map(|(_, ids)| ids).unwrap_or_default();
    files.extend(ids.iter().flat_map(|id| [store.layer(id), store.layer_info(id)]));
    files
}

/// Builds what an image misses; says so in its status when that cannot be done.
async fn repair_one(context: &Context, image: &Resource<Image>) -> Result<()> {
    let missing = |p: &PathBuf| !p.exists();
    if image.status.ready && !image.status.disk.iter().map(|e| &e.path).any(missing) {
        return Ok(());
    }
    let rebuilt = async {
        let id = Digest::parse(&image.meta.name)?;
        let (_, _, manifest) = context.store.manifest(&id)?;
        context.build(&id, &context.store.read_blob(&id)?, &manifest, None).await
    };
    let status = rebuilt.await.unwrap_or_else(|error| {
        tracing::error!(image = image.meta.name, %error, "an image cannot be used: load or pull it again");
        zone::image::ImageStatus { ready: false, ..image.status.clone() }
    });
    match context.zone.update_status(image, &status).await {
        Err(error) if error.kind != zone::ErrorKind::Conflict => Err(error),
        _ => Ok(()),
    }
}
