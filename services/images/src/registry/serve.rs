//! The zone as a registry (OCI distribution specification 1.1): what it holds is served, what is pushed becomes its images.
//!
//! A repository's name is the image's as people write it: `team/app` here is `docker.io/team/app` in the zone's list. Who may
//! come in is decided at the door that speaks TLS, by client certificates.
//!
//! Invariants: a blob has its place only when its digest is right; an image is made only when all of its blobs are there.

use super::uploads::Uploads;
use crate::digest::Digest;
use crate::fail::{MAX_LAYER, MAX_MANIFEST, Result, invalid, io, not_found};
use crate::ingest::{Context, Staged};
use crate::lookup;
use crate::manifest::{Index, Manifest, OCI_MANIFEST, Platform, is_index};
use crate::query::Query;
use crate::reference::Reference;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;
use zone::image::Image;
use zone::{ApiError, ErrorKind};

const VERSION: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

/// What the routes need.
#[derive(Clone, Debug)]
struct Served {
    context: Context,
    uploads: Arc<Uploads>,
}

/// The routes below `/v2/`.
pub fn router(context: Context) -> Router {
    let served = Served { context, uploads: Arc::default() };
    Router::new().route("/v2/", get(hello)).route("/v2/{*rest}", any(all)).with_state(served)
}

async fn hello() -> Response {
    ([VERSION], axum::Json(json!({}))).into_response()
}

/// Names have slashes, so what follows a name is told apart here.
async fn all(
    State(served): State<Served>,
    method: Method,
    Path(rest): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let query = Query::parse(query.as_deref());
    let answer = served.answer(&method, &rest, &query, &headers, body).await;
    let mut response = answer.unwrap_or_else(|error| refusal(&error));
    response.headers_mut().insert(VERSION.0, header::HeaderValue::from_static(VERSION.1));
    response
}

/// Errors in the specification's form.
fn refusal(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match error.kind {
        ErrorKind::NotFound => "MANIFEST_UNKNOWN",
        ErrorKind::Forbidden => "DENIED",
        ErrorKind::Invalid => "MANIFEST_INVALID",
        _ => "UNKNOWN",
    };
    (status, axum::Json(json!({"errors": [{"code": code, "message": error.message}]}))).into_response()
}

impl Served {
    async fn answer(
        &self,
        method: &Method,
        rest: &str,
        query: &Query,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response> {
        let reads = method == Method::GET || method == Method::HEAD;
        if rest == "_catalog" && reads {
            return self.catalog().await;
        }
        if let Some(name) = rest.strip_suffix("/tags/list").filter(|_| reads) {
            return self.tags(name).await;
        }
        if let Some((name, upload)) =
            rest.rsplit_once("/blobs/uploads/").or(rest.strip_suffix("/blobs/uploads").map(|n| (n, "")))
        {
            check_name(name)?;
            return self.upload(method, name, upload, query, body).await;
        }
        if let Some((name, digest)) = rest.rsplit_once("/blobs/").filter(|_| reads) {
            check_name(name)?;
            return self.blob(method, &Digest::parse(digest)?, headers).await;
        }
        match rest.rsplit_once("/manifests/") {
            Some((name, selector)) if reads => self.manifest(method, name, selector).await,
            Some((name, selector)) if method == Method::PUT => self.put_manifest(name, selector, headers, body).await,
            _ => Err(ApiError::new(
                ErrorKind::NotFound,
                format!("{method} /v2/{rest:.300} is nothing that is served here"),
            )),
        }
    }

    async fn catalog(&self) -> Result<Response> {
        let images = self.context.zone.list::<Image>().await?.items;
        let names = images.iter().flat_map(|i| &i.spec.tags).filter_map(|t| Reference::parse(t).ok());
        let names: BTreeSet<String> = names.map(|r| r.familiar_repository()).collect();
        Ok(axum::Json(json!({ "repositories": names })).into_response())
    }

    async fn tags(&self, name: &str) -> Result<Response> {
        let wanted = check_name(name)?.repository();
        let images = self.context.zone.list::<Image>().await?.items;
        let tags = images.iter().flat_map(|i| &i.spec.tags).filter_map(|t| Reference::parse(t).ok());
        let tags: BTreeSet<String> = tags.filter(|r| r.repository() == wanted).filter_map(|r| r.tag).collect();
        match tags.is_empty() {
            true => Err(not_found(format!("there is no repository {name:.300}"))),
            false => Ok(axum::Json(json!({"name": name, "tags": tags})).into_response()),
        }
    }

    async fn manifest(&self, method: &Method, name: &str, selector: &str) -> Result<Response> {
        let reference = select(name, selector)?;
        let images = self.context.zone.list::<Image>().await?.items;
        let mut found = None;
        for image in &images {
            let tagged = reference.tag.is_some() && image.spec.tags.contains(&reference.to_string());
            let Ok((descriptor, bytes, _)) = lookup::id(image).and_then(|id| self.context.store.manifest(&id)) else {
                continue;
            };
            if tagged || reference.digest.as_ref().is_some_and(|d| d.to_string() == descriptor.digest) {
                found = Some((descriptor, bytes));
                break;
            }
        }
        let (descriptor, bytes) =
            found.ok_or_else(|| not_found(format!("there is no {name:.300}:{selector:.100} here")))?;
        let media_type = if descriptor.media_type.is_empty() { OCI_MANIFEST.to_owned() } else { descriptor.media_type };
        let headers = [
            (header::CONTENT_TYPE, media_type),
            (header::HeaderName::from_static("docker-content-digest"), descriptor.digest),
            (header::CONTENT_LENGTH, bytes.len().to_string()),
        ];
        let body = if method == Method::HEAD { Body::empty() } else { Body::from(bytes) };
        Ok((headers, body).into_response())
    }

    async fn blob(&self, method: &Method, digest: &Digest, headers: &HeaderMap) -> Result<Response> {
        let absent = |_| not_found(format!("there is no blob {digest} here"));
        let mut file = tokio::fs::File::open(self.context.store.blob(digest)).await.map_err(absent)?;
        let size = file.metadata().await.map_err(io("cannot read a blob's size"))?.len();
        let range = headers
            .get(header::RANGE)
            .and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: u64 = range.filter(|from| *from < size).unwrap_or(0);
        let mut answer = HeaderMap::new();
        let mut set = |name: header::HeaderName, value: String| {
            if let Ok(value) = value.parse() {
                answer.insert(name, value);
            }
        };
        set(header::CONTENT_TYPE, "application/octet-stream".into());
        set(header::CONTENT_LENGTH, (size - from).to_string());
        set(header::ACCEPT_RANGES, "bytes".into());
        set(header::HeaderName::from_static("docker-content-digest"), digest.to_string());
        let status = if from > 0 {
            set(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", size - 1));
            StatusCode::PARTIAL_CONTENT
        } else {
            StatusCode::OK
        };
        if method == Method::HEAD {
            return Ok((StatusCode::OK, answer).into_response());
        }
        file.seek(std::io::SeekFrom::Start(from)).await.map_err(io("cannot read a blob"))?;
        let body = Body::from_stream(ReaderStream::with_capacity(file.take(size - from), 256 << 10));
        Ok((status, answer, body).into_response())
    }

    async fn upload(&self, method: &Method, name: &str, id: &str, query: &Query, body: Body) -> Result<Response> {
        self.uploads.keep(self.context.store.use_it().await);
        let wanted = query.get("digest").map(Digest::parse).transpose()?;
        if method == Method::POST && id.is_empty() {
            let here = query.get("mount").map(Digest::parse).transpose()?;
            if let Some(digest) = here.filter(|d| self.context.store.blob(d).exists()) {
                return Ok(created(name, &digest));
            }
            let id = self.uploads.begin(self.context.store.temp()?)?;
            return match wanted {
                None => Ok(accepted(name, &id, 0)),
                Some(digest) => {
                    self.receive(&id, body).await?;
                    self.finish(name, &id, &digest).await
                }
            };
        }
        match *method {
            Method::PATCH => {
                let size = self.receive(id, body).await?;
                Ok(accepted(name, id, size))
            }
            Method::PUT => {
                let digest = wanted.ok_or_else(|| invalid("the parameter digest is missing"))?;
                self.receive(id, body).await?;
                self.finish(name, id, &digest).await
            }
            Method::GET => Ok(accepted(name, id, self.uploads.size(id)?)),
            Method::DELETE => {
                self.uploads.take(id)?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => Err(invalid("this is no way to upload a blob")),
        }
    }

    /// Adds a body to an upload; its length then.
    async fn receive(&self, id: &str, body: Body) -> Result<u64> {
        use std::io::Write as _;
        // Whoever else asks for it meanwhile hears that there is no such upload.
        let mut upload = self.uploads.take(id)?;
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| invalid(format!("the body ended early: {e}")))?;
            if upload.count() + chunk.len() as u64 > MAX_LAYER {
                return Err(ApiError::new(ErrorKind::TooLarge, format!("a blob is larger than {MAX_LAYER} bytes")));
            }
            upload.write_all(&chunk).map_err(io("cannot write an upload"))?;
        }
        let size = upload.count();
        self.uploads.put(id, upload);
        Ok(size)
    }

    async fn finish(&self, name: &str, id: &str, digest: &Digest) -> Result<Response> {
        let (found, _, temp) = self.uploads.take(id)?.finish();
        if found != *digest {
            return Err(invalid(format!("the blob has the digest {found}, not {digest}")));
        }
        let (store, kept) = (self.context.store.clone(), found.clone());
        crate::fail::blocking(
            move || if store.blob(&kept).exists() { Ok(()) } else { store.keep(temp, &store.blob(&kept)) },
        )
        .await?;
        Ok(created(name, digest))
    }

    async fn put_manifest(&self, name: &str, selector: &str, headers: &HeaderMap, body: Body) -> Result<Response> {
        let _in_use = self.context.store.use_it().await;
        let reference = select(name, selector)?;
        let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
        let bytes = axum::body::to_bytes(body, limit)
            .await
            .map_err(|e| invalid(format!("the manifest is too large: {e}")))?
            .to_vec();
        let digest = Digest::of(&bytes);
        if reference.digest.as_ref().is_some_and(|d| *d != digest) {
            return Err(invalid(format!("the manifest has the digest {digest}, not {selector:.100}")));
        }
        let media_type =
            headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or(OCI_MANIFEST).to_owned();
        let tags: Vec<Reference> = reference.tag.is_some().then(|| reference.clone()).into_iter().collect();
        let (media_type, bytes) = if is_index(&media_type, &bytes) {
            let index = Index::parse(&bytes)?;
            let chosen = index.for_platform(&Platform::here());
            let chosen =
                chosen.ok_or_else(|| invalid("the index has no image for linux/amd64, which is what runs here"))?;
            (chosen.media_type.clone(), self.context.store.read_blob(&chosen.digest()?)?)
        } else {
            (media_type, bytes)
        };
        let manifest = Manifest::parse(&bytes)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let blob = blob.digest()?;
            if !self.context.store.blob(&blob).exists() {
                return Err(ApiError::new(ErrorKind::Invalid, format!("the blob {blob} has not been uploaded")));
            }
        }
        let config = self.context.store.read_blob(&manifest.config.digest()?)?;
        self.context.finish(Staged { config, manifest: (media_type, bytes), tags, repo_digest: None }, None).await?;
        let location = format!("/v2/{name}/manifests/{digest}");
        let headers = [
            (header::LOCATION, location),
            (header::HeaderName::from_static("docker-content-digest"), digest.to_string()),
        ];
        Ok((StatusCode::CREATED, headers).into_response())
    }
}

fn check_name(name: &str) -> Result<Reference> {
    select(name, "latest")
}

/// A repository's name and a tag or digest as a reference of this zone.
fn select(name: &str, selector: &str) -> Result<Reference> {
    let separator = if selector.contains(':') { '@' } else { ':' };
    Reference::parse(&format!("{name}{separator}{selector}"))
}

fn accepted(name: &str, id: &str, size: u64) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}")),
        (header::RANGE, format!("0-{}", size.saturating_sub(1))),
        (header::HeaderName::from_static("docker-upload-uuid"), id.to_owned()),
    ];
    (StatusCode::ACCEPTED, headers).into_response()
}

fn created(name: &str, digest: &Digest) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{name}/blobs/{digest}")),
        (header::HeaderName::from_static("docker-content-digest"), digest.to_string()),
    ];
    (StatusCode::CREATED, headers).into_response()
}
