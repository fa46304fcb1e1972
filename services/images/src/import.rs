//! `docker import`: one archive of a root file system becomes an image with one layer; Dockerfile instructions set its
//! configuration.

use crate::build::{Config, apply, env, parse};
use crate::compress;
use crate::digest::{Digest, copy_hashed};
use crate::fail::{MAX_LAYER, Result, blocking, io};
use crate::ingest::{Context, Staged, made_manifest};
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::reference::Reference;
use serde_json::json;
use std::fs::File;
use std::path::Path;

/// Makes an image of the archive at `spool`.
///
/// # Errors
/// `Invalid` when the archive or a change cannot be read.
pub async fn import(
    context: &Context,
    spool: &Path,
    tags: Vec<Reference>,
    changes: &[String],
    message: &str,
) -> Result<Digest> {
    let config = changed(Config::new(), changes)?;
    let (store, spool) = (context.store.clone(), spool.to_owned());
    let (descriptor, diff_id) = blocking(move || {
        let open = |what| File::open(&spool).map_err(io(what));
        let (digest, size) = store.put_blob_from(open("cannot open an archive")?, MAX_LAYER, None)?;
        let (compression, reader) =
            compress::reader(open("cannot open an archive")?).map_err(io("cannot read the archive"))?;
        let (diff_id, _) = copy_hashed(reader, std::io::sink(), MAX_LAYER).map_err(io("cannot unpack the archive"))?;
        Ok((Descriptor::new(compression.layer_media_type(), &digest, size), diff_id))
    })
    .await?;
    let created = timestamp(zone::time::now_ns());
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": created, "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        "history": [{"created": created, "comment": message}],
    });
    let config = config.to_string().into_bytes();
    let manifest = made_manifest(&config, vec![descriptor])?;
    context.finish(Staged { config, manifest: (OCI_MANIFEST.into(), manifest), tags, repo_digest: None }, None).await
}

/// A configuration with Dockerfile instructions applied.
///
/// # Errors
/// `Invalid` for one that cannot be a change.
pub fn changed(mut config: Config, changes: &[String]) -> Result<Config> {
    for change in changes {
        let instruction = parse::read(1, change)?;
        let values = env(&config);
        apply(&mut config, &instruction, &values, '\\')?;
    }
    Ok(config)
}

/// RFC 3339 in UTC, to the second.
fn timestamp(ns: u64) -> String {
    let second = i64::try_from(ns / 1_000_000_000).unwrap_or(0);
    jiff::Timestamp::from_second(second).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(timestamp(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert!(changed(Config::new(), &["RUN x".into()]).is_err());
    }
}
