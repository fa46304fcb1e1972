//! `docker commit`: a layer that a container's agent made, on top of the container's image.

use crate::build::{Config, Stage};
use crate::digest::Digest;
use crate::fail::{MAX_LAYER, Result, blocking, invalid, io};
use crate::import::changed;
use crate::ingest::Context;
use crate::query::Query;
use crate::reference::Reference;
use std::fs::File;
use std::path::Path;

/// Makes an image of the layer at `spool` as the parameters say.
///
/// # Errors
/// `NotFound` when the container's image is gone; `Invalid` for a change that is none.
pub async fn commit(context: &Context, query: &Query, spool: &Path) -> Result<Digest> {
    let base = Digest::parse(query.need("base")?)?;
    let tags: Vec<Reference> = query.get("ref").map(Reference::parse).transpose()?.into_iter().collect();
    let config: Config = match query.get("config") {
        Some(text) => {
            serde_json::from_str(text).map_err(|e| invalid(format!("the parameter config is not valid: {e}")))?
        }
        None => Config::new(),
    };
    let mut stage = Stage::image(context, &base)?;
    stage.config = changed(config, &query.all("changes"))?;
    if let Some(author) = query.get("author") {
        stage.set_author(author);
    }
    let (store, spool) = (context.store.clone(), spool.to_owned());
    let (digest, size) =
        blocking(move || store.put_blob_from(File::open(&spool).map_err(io("cannot open a layer"))?, MAX_LAYER, None))
            .await?;
    stage.committed(&digest, size, query.get("comment").unwrap_or_default())?;
    stage.finish(context, tags).await
}
