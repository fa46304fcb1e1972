//! Images that come and go: pull, import, load, save, push. Bodies are streamed through, never held.

use super::find_or_refresh;
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names::Reference;
use crate::proxy::{encode, to_images};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde_json::json;
use std::sync::Arc;

/// `POST /images/create`: pull with `fromImage`, import with `fromSrc=-`.
///
/// # Errors
/// 400 for a reference that is none.
pub async fn create(State(app): State<Arc<App>>, params: Params, headers: HeaderMap, body: Body) -> Result<Response> {
    let path = match (params.get("fromImage"), params.get("fromSrc")) {
        (Some(image), _) => pull_path(image, &params)?,
        (None, Some("-")) => import_path(&params)?,
        (None, Some(_)) => {
            return Err(Failure::invalid("images can be imported from a file (-) only, not from an address"));
        }
        (None, None) => return Err(Failure::invalid("one of fromImage and fromSrc is needed")),
    };
    to_images(&app, "POST", &path, &headers, body).await.map(as_json)
}

fn pull_path(image: &str, params: &Params) -> Result<String> {
    let text = match params.get("tag") {
        Some(digest) if digest.contains(':') => format!("{image}@{digest}"),
        Some(tag) => format!("{image}:{tag}"),
        None => image.to_owned(),
    };
    let platform = params.get("platform").map(|p| format!("&platform={}", encode(p))).unwrap_or_default();
    Ok(format!("/pull?image={}{platform}", encode(&Reference::parse(&text)?.or_latest().full())))
}

fn import_path(params: &Params) -> Result<String> {
    let mut path = "/import?".to_owned();
    if let Some(repo) = params.get("repo") {
        let text = params.get("tag").map_or_else(|| repo.to_owned(), |tag| format!("{repo}:{tag}"));
        path += &format!("ref={}&", encode(&Reference::parse(&text)?.or_latest().full()));
    }
    for change in params.all("changes") {
        path += &format!("changes={}&", encode(change));
    }
    if let Some(message) = params.get("message") {
        path += &format!("message={}", encode(message));
    }
    Ok(path.trim_end_matches(['&', '?']).to_owned())
}

/// Docker calls its lines of progress JSON.
fn as_json(mut response: Response) -> Response {
    if response.status().is_success() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

/// `POST /images/load`.
///
/// # Errors
/// 503 when the content store does not answer.
pub async fn load(State(app): State<Arc<App>>, params: Params, headers: HeaderMap, body: Body) -> Result<Response> {
    let path = if params.flag("quiet") { "/load?quiet=1" } else { "/load" };
    to_images(&app, "POST", path, &headers, body).await.map(as_json)
}

/// `GET /images/get?names=…`.
///
/// # Errors
/// 404 for an image that is not there.
pub async fn save_many(State(app): State<Arc<App>>, params: Params, headers: HeaderMap) -> Result<Response> {
    let names: Vec<&str> = params.all("names").flat_map(|n| n.split(',')).filter(|n| !n.is_empty()).collect();
    save(&app, &names, &headers).await
}

/// The archive of images.
///
/// # Errors
/// 404 for an image that is not there.
pub async fn save(app: &App, names: &[&str], headers: &HeaderMap) -> Result<Response> {
    if names.is_empty() {
        return Err(Failure::invalid("no image is named"));
    }
    let mut wanted = Vec::new();
    for name in names {
        let absent = |f: Failure| {
            if f.message.starts_with("No such image") {
                Failure::not_found(format!("No such image: {name}"))
            } else {
                f
            }
        };
        let image = find_or_refresh(app, name).await.map_err(absent)?;
        // By its id it is saved without a name, by a reference with it.
        let tag =
            Reference::parse(name).ok().map(|r| r.or_latest().full()).filter(|full| image.spec.tags.contains(full));
        wanted.push(format!("names={}", encode(tag.as_deref().unwrap_or(&image.meta.name))));
    }
    let path = format!("/save?{}", wanted.join("&"));
    let mut response = to_images(app, "GET", &path, headers, Body::empty()).await?;
    if response.status().is_success() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    }
    Ok(response)
}

/// `POST /images/{name}/push`.
///
/// # Errors
/// 404 for an image that is not there.
pub async fn push(app: &App, name: &str, params: &Params, headers: &HeaderMap) -> Result<Response> {
    let text = params.get("tag").map_or_else(|| name.to_owned(), |tag| format!("{name}:{tag}"));
    let reference = Reference::parse(&text)?.or_latest();
    if find_or_refresh(app, &text).await.is_err() {
        // Docker has begun to answer when it looks.
        let absent =
            format!("An image does not exist locally with the tag: {}", crate::names::familiar(&reference.repository));
        let lines = [
            json!({"status": format!("The push refers to repository [{}]", reference.repository)}),
            json!({"errorDetail": {"message": absent}, "error": absent}),
        ];
        let body: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        return Ok(crate::streams::streaming("application/json", body.into()));
    }
    to_images(app, "POST", &format!("/push?image={}", encode(&reference.full())), headers, Body::empty())
        .await
        .map(as_json)
}
