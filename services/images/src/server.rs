//! The HTTP interface on the service's socket (docs/interfaces.md, "Content store").

use crate::fail::{MAX_ARCHIVE, Result, blocking, invalid, io};
use crate::ingest::Context;
use crate::progress::{self, Progress};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use std::io::Write;
use tempfile::NamedTempFile;
use tokio_stream::StreamExt;

/// The routes.
pub fn router(context: Context) -> Router {
    Router::new().route("/load", post(load)).with_state(context)
}

async fn load(State(context): State<Context>, body: Body) -> Response {
    progress::respond(false, |progress| load_job(context, body, progress)).await
}

async fn load_job(context: Context, body: Body, progress: Progress) -> Result<()> {
    let _in_use = context.store.use_it().await;
    let spool = spool(&context, body).await?;
    for staged in context.stage_archive(spool.path()).await? {
        let names: Vec<String> = staged.tags.iter().map(crate::reference::Reference::familiar).collect();
        let image = context.finish(staged).await?;
        for name in &names {
            progress.stream(format!("Loaded image: {name}\n")).await;
        }
        if names.is_empty() {
            progress.stream(format!("Loaded image ID: {image}\n")).await;
        }
    }
    Ok(())
}

/// Writes a request's body to a file of the store.
///
/// # Errors
/// `TooLarge`; `Invalid` when the body ends early.
pub async fn spool(context: &Context, body: Body) -> Result<NamedTempFile> {
    let mut file = context.store.temp()?;
    let mut stream = body.into_data_stream();
    let mut length = 0_u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| invalid(format!("the body ended early: {e}")))?;
        length += chunk.len() as u64;
        if length > MAX_ARCHIVE {
            return Err(zone::ApiError::new(zone::ErrorKind::TooLarge, format!("the archive is larger than {MAX_ARCHIVE} bytes")));
        }
        file = blocking(move || file.write_all(&chunk).map(|()| file).map_err(io("cannot spool the body"))).await?;
    }
    Ok(file)
}
