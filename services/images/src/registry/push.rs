//! Push: blobs that the registry does not have, then the manifest, byte for byte as the store has it.

use super::session::{Session, failure};
use super::{Credentials, Registries};
use crate::fail::{Result, invalid, io};
use crate::ingest::Context;
use crate::lookup;
use crate::manifest::Descriptor;
use crate::progress::Progress;
use crate::reference::Reference;
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Uri};
use serde_json::json;
use tokio_util::io::ReaderStream;
use zone::image::Image;

impl Registries {
    /// Pushes an image to the registry that its reference names.
    ///
    /// # Errors
    /// `NotFound` when there is no such image here; `Forbidden` when the registry refuses.
    pub async fn push(
        &self,
        context: &Context,
        reference: &Reference,
        credentials: Credentials,
        progress: &Progress,
    ) -> Result<()> {
        let _in_use = context.store.use_it().await;
        let tag = reference.tag.clone().ok_or_else(|| invalid("cannot push a digest reference"))?;
        let images = context.zone.list::<Image>().await?.items;
        let image = lookup::find(&images, &reference.to_string()).map_err(|mut error| {
            error.message =
                format!("An image does not exist locally with the tag: {}", reference.familiar_repository());
            error
        })?;
        let id = lookup::id(image)?;
        let (descriptor, bytes, manifest) = context.store.manifest(&id)?;
        let session = self.own_session(reference, credentials)?;
        progress.status("", format!("The push refers to repository [{}]", reference.repository())).await;
        for layer in &manifest.layers {
            push_blob(context, &session, layer, Some(progress)).await?;
        }
        push_blob(context, &session, &manifest.config, None).await?;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_str(&descriptor.media_type).map_err(|e| invalid(e.to_string()))?,
        );
        let size = bytes.len();
        let response =
            session.call(Method::PUT, session.uri(&format!("manifests/{tag}"))?, headers, Bytes::from(bytes)).await?;
        if !response.status().is_success() {
            return Err(failure(&format!("cannot push the manifest of {}", reference.familiar()), response).await);
        }
        let digest = descriptor.digest.clone();
        progress.status("", format!("{tag}: digest: {digest} size: {size}")).await;
        progress.send(&json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}})).await;
        let repo_digest = format!("{}@{digest}", reference.repository());
        context
            .zone
            .modify_spec::<Image>(&image.meta.name, |spec| {
                let new = !spec.repo_digests.contains(&repo_digest);
                spec.repo_digests.extend(new.then(|| repo_digest.clone()));
                new
            })
            .await?;
        Ok(())
    }
}

async fn push_blob(context: &Context, session: &Session, blob: &Descriptor, progress: Option<&Progress>) -> Result<()> {
    let digest = blob.digest()?;
    let tell = async |text: &str| {
        if let Some(progress) = progress {
            progress.status(digest.short(), text).await;
        }
    };
    tell("Preparing").await;
    let head =
        session.call(Method::HEAD, session.uri(&format!("blobs/{digest}"))?, HeaderMap::new(), Bytes::new()).await?;
    if head.status().is_success() {
        tell("Layer already exists").await;
        return Ok(());
    }
    let start = session.uri("blobs/uploads/")?;
    let response = session.call(Method::POST, start.clone(), HeaderMap::new(), Bytes::new()).await?;
    if !response.status().is_success() {
        let denied = format!("denied: requested access to the resource {} is denied", session.repository);
        return Err(failure(&denied, response).await);
    }
    let location = with_digest(&session.location(&start, &response)?, &digest.to_string())?;
    let file = tokio::fs::File::open(context.store.blob(&digest))
        .await
        .map_err(io(format!("cannot open the blob {digest}")))?;
    let size = file.metadata().await.map_err(io("cannot read a blob's size"))?.len();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    let (told, short, mut sent) = (progress.cloned(), digest.short().to_owned(), 0_u64);
    let frames = ReaderStream::with_capacity(file, 256 << 10).map(move |piece| {
        if let (Ok(piece), Some(progress)) = (&piece, &told) {
            sent += piece.len() as u64;
            progress.amount(&short, "Pushing", sent, size);
        }
        piece.map(Frame::data)
    });
    let response = session.once(Method::PUT, &location, headers, BodyExt::boxed(StreamBody::new(frames))).await?;
    if !response.status().is_success() {
        return Err(failure(&format!("cannot push {digest}"), response).await);
    }
    tell("Pushed").await;
    Ok(())
}

fn with_digest(location: &Uri, digest: &str) -> Result<Uri> {
    let text = location.to_string();
    let separator = if location.query().is_some() { '&' } else { '?' };
    format!("{text}{separator}digest={digest}")
        .parse()
        .map_err(|e| invalid(format!("the registry's Location is malformed: {e}")))
}
