//! Pull: manifest, configuration, layers (three downloads at a time, continued where a connection broke; each is unpacked
//! while others still come), then the image is finished.

use super::session::{Session, failure};
use super::transport::{next, read};
use super::{Credentials, Registries};
use crate::digest::{Digest, HashWriter};
use crate::fail::{MAX_CONFIG, MAX_LAYER, MAX_MANIFEST, Result, blocking, invalid, io, not_found};
use crate::ingest::{Context, Staged, check_count};
use crate::manifest::{
    Config, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Index, Manifest, OCI_INDEX, OCI_MANIFEST, Platform, is_index,
};
use crate::progress::Progress;
use crate::reference::Reference;
use bytes::Bytes;
use futures_util::future::try_join_all;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use tokio::sync::Semaphore;
use zone::ErrorKind;
use zone::image::Image;

/// How often a broken download goes on.
const ATTEMPTS: u32 = 5;
/// Layers under way at a time, as Docker has it.
const AT_ONCE: usize = 3;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

impl Registries {
    /// Pulls an image.
    ///
    /// # Errors
    /// `NotFound` when the registry does not have it; `Forbidden`; `Invalid` when it is damaged or for other machines.
    pub async fn pull(
        &self,
        context: &Context,
        reference: &Reference,
        platform: Option<&Platform>,
        credentials: Credentials,
        progress: &Progress,
    ) -> Result<()> {
        let mut first_error = None;
        for session in self.sessions(reference, &credentials)? {
            match manifest(&session, reference, platform).await {
                Ok(found) => {
                    return pull_found(context, &session, reference, platform, found, progress).await;
                }
                Err(error) => {
                    tracing::info!(base = session.base, %error, "cannot pull from here");
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| not_found(format!("no registry has {}", reference.familiar()))))
    }
}

/// A manifest for this machine, and the digest that the reference stands for (its list's, if it is in one).
struct Found {
    media_type: String,
    bytes: Vec<u8>,
    digest: Digest,
}

/// What a reference stands for, a manifest or an index, and its digest.
pub(super) async fn top(session: &Session, reference: &Reference) -> Result<(String, Vec<u8>, Digest)> {
    let (media_type, bytes) = fetch_manifest(session, &reference.selector(), reference).await?;
    let digest = Digest::of(&bytes);
    if reference.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
        return Err(invalid(format!(
            "the registry sent a manifest with the digest {digest} for {}",
            reference.familiar()
        )));
    }
    Ok((media_type, bytes, digest))
}

async fn manifest(session: &Session, reference: &Reference, platform: Option<&Platform>) -> Result<Found> {
    let (media_type, bytes, digest) = top(session, reference).await?;
    if !is_index(&media_type, &bytes) {
        return Ok(Found { media_type, bytes, digest });
    }
    let index = Index::parse(&bytes)?;
    let platform = platform.cloned().unwrap_or_else(Platform::here);
    let chosen = index.for_platform(&platform).ok_or_else(|| {
        not_found(format!(
            "no matching manifest for {platform} in the manifest list entries of {}",
            reference.familiar()
        ))
    })?;
    let wanted = chosen.digest()?;
    let (media_type, bytes) = fetch_manifest(session, &wanted.to_string(), reference).await?;
    if Digest::of(&bytes) != wanted {
        return Err(invalid(format!("the registry sent another manifest than {wanted}")));
    }
    Ok(Found { media_type, bytes, digest })
}

async fn fetch_manifest(session: &Session, selector: &str, reference: &Reference) -> Result<(String, Vec<u8>)> {
    let mut headers = HeaderMap::new();
    let accept = format!("{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}");
    headers.insert(header::ACCEPT, HeaderValue::from_str(&accept).map_err(|e| invalid(e.to_string()))?);
    let response =
        session.call(Method::GET, session.uri(&format!("manifests/{selector}"))?, headers, Bytes::new()).await?;
    match response.status() {
        s if s.is_success() => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let name = reference.familiar_repository();
            let mut error = failure("denied", response).await;
            error.kind = ErrorKind::NotFound;
            error.message = format!(
                "pull access denied for {name}, repository does not exist or may require 'docker login': {}",
                error.message
            );
            return Err(error);
        }
        _ => return Err(failure(&format!("manifest for {} not found", reference.familiar()), response).await),
    }
    let header = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media_type = header.split(';').next().unwrap_or_default().trim().to_owned();
    Ok((media_type, read(response.into_body(), MAX_MANIFEST).await?))
}

async fn pull_found(
    context: &Context,
    session: &Session,
    reference: &Reference,
    platform: Option<&Platform>,
    found: Found,
    progress: &Progress,
) -> Result<()> {
    let _in_use = context.store.use_it().await;
    let tag = reference.selector();
    progress.status_of(&tag, format!("Pulling from {}", reference.path)).await;
    let manifest = Manifest::parse(&found.bytes)?;
    let image = manifest.config.digest()?;
    let known = context.zone.get::<Image>(&image.to_string()).await.is_ok_and(|i| i.status.ready);
    let bytes = download_small(context, session, &manifest.config, MAX_CONFIG).await?;
    let (config, diff_ids) = Config::parse(&bytes)?;
    check_platform(platform, &config, reference)?;
    check_count(&image, &manifest, &diff_ids)?;
    for layer in &manifest.layers {
        let digest = layer.digest()?;
        let text = if context.store.blob(&digest).exists() { "Already exists" } else { "Pulling fs layer" };
        progress.status(digest.short(), text).await;
    }
    // A layer is unpacked while others still come. The same one may be there twice; it is fetched once.
    let (downloads, mut seen) = (Semaphore::new(AT_ONCE), HashSet::new());
    let wanted = manifest.layers.iter().zip(&diff_ids).filter(|(layer, _)| seen.insert(layer.digest.clone()));
    let work = wanted.map(|(layer, diff_id)| take_layer(context, session, layer, diff_id, &downloads, progress));
    try_join_all(work).await?;
    let repo_digest = Some(format!("{}@{}", reference.repository(), found.digest));
    let tags = reference.tag.is_some().then(|| Reference { digest: None, ..reference.clone() });
    let tags: Vec<Reference> = tags.into_iter().collect();
    let staged = Staged { config: bytes, manifest: (found.media_type, found.bytes), tags, repo_digest };
    context.finish(staged, Some(progress)).await?;
    progress.status("", format!("Digest: {}", found.digest)).await;
    let what = if known { "Image is up to date for" } else { "Downloaded newer image for" };
    progress.status("", format!("Status: {what} {}", reference.familiar())).await;
    Ok(())
}

/// An image without an index says in its configuration what it is for.
fn check_platform(wanted: Option<&Platform>, config: &Config, reference: &Reference) -> Result<()> {
    let is = Platform {
        os: if config.os.is_empty() { "linux".into() } else { config.os.clone() },
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    };
    match wanted {
        Some(wanted) if !wanted.takes(&is) => Err(not_found(format!(
            "image with reference {} was found but its platform ({is}) does not match the specified platform ({wanted})",
            reference.familiar()
        ))),
        _ => Ok(()),
    }
}

async fn take_layer(
    context: &Context,
    session: &Session,
    layer: &Descriptor,
    diff_id: &Digest,
    downloads: &Semaphore,
    progress: &Progress,
) -> Result<()> {
    let digest = layer.digest()?;
    if !context.store.blob(&digest).exists() {
        let _turn = downloads.acquire().await;
        // Another pull may have brought it meanwhile, or be about to: one at a time fetches a blob.
        let _only = context.store.fetching(&digest).await;
        if !context.store.blob(&digest).exists() {
            let file = download(context, session, layer, MAX_LAYER, Some(progress)).await?;
            let (store, kept) = (context.store.clone(), digest.clone());
            blocking(move || store.keep(file, &store.blob(&kept))).await?;
        }
        progress.status(digest.short(), "Download complete").await;
    }
    context.unpack(&digest, diff_id, Some(progress)).await.map(drop)
}

async fn download_small(context: &Context, session: &Session, blob: &Descriptor, limit: u64) -> Result<Vec<u8>> {
    let file = download(context, session, blob, limit, None).await?;
    std::fs::read(file.path()).map_err(io("cannot read a download"))
}

/// Downloads a blob and checks it.
async fn download(
    context: &Context,
    session: &Session,
    blob: &Descriptor,
    limit: u64,
    progress: Option<&Progress>,
) -> Result<NamedTempFile> {
    let digest = blob.digest()?;
    if blob.size > limit {
        return Err(invalid(format!("the blob {digest} has {} bytes, at most {limit} are possible", blob.size)));
    }
    let mut writer = HashWriter::new(context.store.temp()?);
    let mut attempt = 1;
    loop {
        match download_rest(session, &digest, blob.size.min(limit), &mut writer, progress).await {
            Ok(()) => break,
            Err(error) if error.kind == ErrorKind::Unavailable && attempt < ATTEMPTS => {
                tracing::info!(%digest, %error, attempt, have = writer.count(), "a download goes on");
                tokio::time::sleep(Duration::from_millis(200) * attempt).await;
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(progress) = progress {
        progress.status(digest.short(), "Verifying Checksum").await;
    }
    let (found, size, file) = writer.finish();
    if found != digest {
        return Err(invalid(format!(
            "filesystem layer verification failed for digest {digest}: {size} bytes with {found} came"
        )));
    }
    Ok(file)
}

/// Goes on where `writer` stands; `size` is what the manifest says.
async fn download_rest(
    session: &Session,
    digest: &Digest,
    size: u64,
    writer: &mut HashWriter<NamedTempFile>,
    progress: Option<&Progress>,
) -> Result<()> {
    let mut headers = HeaderMap::new();
    let mut skip = writer.count();
    if skip > 0 && skip >= size {
        return Ok(());
    }
    if skip > 0 {
        headers.insert(
            header::RANGE,
            HeaderValue::from_str(&format!("bytes={skip}-")).map_err(|e| invalid(e.to_string()))?,
        );
    }
    let response = session.call(Method::GET, session.uri(&format!("blobs/{digest}"))?, headers, Bytes::new()).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => skip = 0,
        // The server does not continue: what we have already is read over.
        StatusCode::OK => {}
        _ => return Err(failure(&format!("cannot download {digest}"), response).await),
    }
    let mut body = response.into_body();
    let mut told = Instant::now();
    while let Some(piece) = next(&mut body).await? {
        let over = usize::try_from(skip.min(piece.len() as u64)).unwrap_or(0);
        skip -= over as u64;
        if writer.count() + (piece.len() - over) as u64 > size {
            return Err(invalid(format!("the blob {digest} is longer than the {size} bytes that its manifest says")));
        }
        writer.write_all(&piece[over..]).map_err(io("cannot write a download"))?;
        if let Some(progress) = progress.filter(|_| told.elapsed() >= PROGRESS_EVERY) {
            told = Instant::now();
            progress.amount(digest.short(), "Downloading", writer.count(), size);
        }
    }
    if writer.count() < size {
        return Err(zone::ApiError::new(ErrorKind::Unavailable, format!("the download of {digest} ended early")));
    }
    Ok(())
}
