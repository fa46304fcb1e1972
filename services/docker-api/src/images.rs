//! `/images`: what is there is read from the state engine; bytes come and go through the content store.
//!
//! Owns lookup by reference and the rules of `tag` and `rmi`. Tags are wanted state and are written here; everything
//! else about an image is the content store's.

mod build;
mod commit;
mod distribution;
mod login;
mod registry;
mod remove;
mod transfer;

use crate::App;
use crate::errors::{Failure, Result};
use crate::fields::{Answer, fit};
use crate::filters::Params;
use crate::names::{Reference, ZERO_TIME, familiar, seconds};
use crate::state::World;
use crate::version::ApiVersion;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use zone::Resource;
use zone::client::Operation;
use zone::image::Image;

pub use remove::in_use_by;

/// The routes of images. Names have slashes, so what follows a name is told apart here.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/create", post(transfer::create).layer(DefaultBodyLimit::disable()))
        .route("/images/load", post(transfer::load).layer(DefaultBodyLimit::disable()))
        .route("/images/get", get(transfer::save_many))
        .route("/images/search", get(search))
        .route("/images/prune", post(remove::prune))
        .route("/images/{*rest}", get(read).post(write).delete(remove::remove))
        .route("/build/prune", post(build::prune))
        .route("/build/cancel", post(build::cancel))
        .route("/build", post(build::build).layer(DefaultBodyLimit::disable()))
        .route("/v2/", any(registry::pass))
        .route("/v2/{*rest}", any(registry::pass).layer(DefaultBodyLimit::disable()))
        .route("/grpc", post(build::buildkit))
        .route("/session", post(build::buildkit))
        .route("/commit", post(commit::commit))
        .route("/containers/{id}/layer", get(commit::layer))
        .route("/auth", post(login::login))
        .route("/distribution/{*rest}", get(distribution::inspect))
}

async fn search() -> Failure {
    Failure::not_implemented("searching registries is not supported; use the registry's web page")
}

/// The image with this id, reference or unique prefix of an id.
///
/// # Errors
/// 404 `No such image`, 400 when the reference is wrong or the prefix has several.
pub fn find(world: &World, key: &str) -> Result<Arc<Resource<Image>>> {
    if let Some(found) = world.images.get(key).or_else(|| world.images.get(&format!("sha256:{key}"))) {
        return Ok(found.clone());
    }
    let hex = key.strip_prefix("sha256:").unwrap_or(key);
    let is_hex = hex.len() >= 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let reference = Reference::parse(key);
    if let Ok(reference) = &reference {
        let full = reference.clone().or_latest().full();
        let found = world.images.values().find(|i| match &reference.digest {
            Some(_) => i.spec.repo_digests.contains(&full),
            None => i.spec.tags.contains(&full),
        });
        if let Some(found) = found {
            return Ok(found.clone());
        }
    }
    if is_hex {
        let prefix = format!("sha256:{hex}");
        let mut found =
            world.images.range(prefix.clone()..).map(|(_, i)| i).take_while(|i| i.meta.name.starts_with(&prefix));
        if let Some(first) = found.next() {
            if found.next().is_some() {
                return Err(Failure::invalid(format!("image ID prefix is ambiguous: {key}")));
            }
            return Ok(first.clone());
        }
    }
    match reference {
        _ if key.starts_with("sha256:") => Err(Failure::not_found(format!("No such image: {key}"))),
        Ok(reference) => Err(Failure::not_found(format!("No such image: {}", familiar(&reference.or_latest().full())))),
        Err(_) if is_hex => Err(Failure::not_found(format!("No such image: {key}"))),
        Err(error) => Err(error),
    }
}

/// As [`find`], but an image that was loaded a moment ago is found too.
///
/// # Errors
/// As [`find`].
pub async fn find_or_refresh(app: &App, key: &str) -> Result<Arc<Resource<Image>>> {
    match find(&app.store.world(), key) {
        Err(failure) if failure.status == StatusCode::NOT_FOUND => {
            app.store.barrier().await;
            find(&app.store.world(), key)
        }
        other => other,
    }
}

/// `NAME/json`, `NAME/history` or `NAME/get`.
async fn read(
    State(app): State<Arc<App>>,
    Path(rest): Path<String>,
    version: ApiVersion,
    headers: HeaderMap,
) -> Result<Response> {
    match rest.rsplit_once('/') {
        Some((name, "json")) => inspect(&app, name, version).await.map(IntoResponse::into_response),
        Some((name, "history")) => history(&app, name).await.map(IntoResponse::into_response),
        Some((name, "get")) => transfer::save(&app, &[name], &headers).await,
        _ => Ok(Failure::no_route()),
    }
}

/// `NAME/tag` or `NAME/push`.
async fn write(
    State(app): State<Arc<App>>,
    Path(rest): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response> {
    match rest.rsplit_once('/') {
        Some((name, "tag")) => tag(&app, name, &params).await.map(IntoResponse::into_response),
        Some((name, "push")) => transfer::push(&app, name, &params, &headers).await,
        _ => Ok(Failure::no_route()),
    }
}

fn familiar_list(list: &[String]) -> Vec<&str> {
    list.iter().map(|r| familiar(r)).collect()
}

fn created(image: &Resource<Image>) -> String {
    image.status.config["created"].as_str().filter(|c| !c.is_empty()).unwrap_or(ZERO_TIME).to_owned()
}

fn created_seconds(image: &Resource<Image>) -> i64 {
    created(image).parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}

async fn inspect(app: &App, name: &str, version: ApiVersion) -> Result<Json<Value>> {
    let mut answer = describe(&*find_or_refresh(app, name).await?);
    fit(Answer::Image, version, &mut answer);
    Ok(Json(answer))
}

fn describe(image: &Resource<Image>) -> Value {
    let config = &image.status.config;
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_owned();
    let mut answer = json!({
        "Architecture": text("architecture"),
        "Author": text("author"),
        "Comment": config["history"].as_array().and_then(|h| h.last()).and_then(|h| h["comment"].as_str()).unwrap_or_default(),
        "Config": image_config(&config["config"]),
        "Created": created(image),
        "DockerVersion": text("docker_version"),
        "GraphDriver": {"Data": null, "Name": "overlayfs"},
        "Id": image.meta.name,
        "Metadata": {"LastTagTime": crate::names::time(image.meta.created_ns)},
        "Os": text("os"),
        "Parent": "",
        "RepoDigests": familiar_list(&image.spec.repo_digests),
        "RepoTags": familiar_list(&image.spec.tags),
        "RootFS": {"Type": "layers", "Layers": image.status.layers.iter().map(|l| l.id.as_str()).collect::<Vec<_>>()},
        "Size": image.status.size,
    });
    for (key, source) in [("Variant", "variant"), ("OsVersion", "os.version")] {
        if config[source].is_string() {
            answer[key] = config[source].clone();
        }
    }
    answer
}

/// The image's configuration with the keys that Docker always shows.
fn image_config(config: &Value) -> Value {
    let mut shown: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
    for (key, default) in [
        ("Cmd", Value::Null),
        ("Entrypoint", Value::Null),
        ("Env", Value::Null),
        ("Labels", Value::Null),
        ("OnBuild", Value::Null),
        ("User", json!("")),
        ("Volumes", Value::Null),
        ("WorkingDir", json!("")),
    ] {
        shown.entry(key).or_insert(default);
    }
    Value::Object(shown)
}

async fn history(app: &App, name: &str) -> Result<Json<Value>> {
    let image = find_or_refresh(app, name).await?;
    let mut layers = image.status.layers.iter();
    let mut steps: Vec<Value> = image.status.config["history"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| {
            let size = if step["empty_layer"] == true { 0 } else { layers.next().map_or(0, |l| l.size) };
            json!({
                "Id": "<missing>",
                "Created": step["created"].as_str().and_then(|c| c.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second),
                "CreatedBy": step["created_by"].as_str().unwrap_or_default(),
                "Tags": null,
                "Size": size,
                "Comment": step["comment"].as_str().unwrap_or_default(),
            })
        })
        .collect();
    steps.reverse();
    if let Some(top) = steps.first_mut() {
        top["Id"] = json!(image.meta.name);
        top["Tags"] = if image.spec.tags.is_empty() { Value::Null } else { json!(familiar_list(&image.spec.tags)) };
    }
    Ok(Json(Value::Array(steps)))
}

/// `GET /images/json`.
async fn list(State(app): State<Arc<App>>, version: ApiVersion, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["before", "dangling", "label", "label!", "reference", "since", "until"])?;
    let world = app.store.world();
    let time_of =
        |name: &str| filters.values(name).first().map(|k| find(&world, k).map(|i| created_seconds(&i))).transpose();
    let (before, since, until, dangling) =
        (time_of("before")?, time_of("since")?, filters.until()?, filters.flag("dangling")?);
    let shared = params.flag("shared-size");
    let mut images: Vec<(i64, Value)> = Vec::new();
    for image in world.images.values() {
        let created = created_seconds(image);
        let labels = &image.status.config["config"]["Labels"];
        let named = |tag: &str| filters.any("reference", |pattern| reference_matches(familiar(tag), pattern));
        let any_named = filters.values("reference").is_empty() || image.spec.tags.iter().any(|t| named(t));
        let old = until.is_none_or(|u| u64::try_from(created).unwrap_or_default() < seconds(u));
        let wanted = before.is_none_or(|b| created < b)
            && since.is_none_or(|s| created > s)
            && old
            && dangling.is_none_or(|d| d == image.spec.tags.is_empty())
            && filters.labels(|key| labels[key].as_str().map(str::to_owned))
            && any_named;
        if wanted {
            let mut one = summary(&world, image);
            one["RepoTags"] = image.spec.tags.iter().filter(|t| named(t)).map(|t| familiar(t)).collect();
            if shared {
                share(&world, image, &mut one);
            }
            fit(Answer::ImageSummary, version, &mut one);
            older(version, &mut one);
            images.push((created, one));
        }
    }
    images.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    Ok(Json(images.into_iter().map(|(_, image)| image).collect()))
}

/// An image as it stands in lists.
#[must_use]
pub fn summary(world: &World, image: &Resource<Image>) -> Value {
    let labels = &image.status.config["config"]["Labels"];
    json!({
        "Containers": in_use_by(world, image).count(),
        "Created": created_seconds(image),
        "Id": image.meta.name,
        "Labels": if labels.is_object() { labels.clone() } else { Value::Null },
        "ParentId": "",
        "RepoDigests": familiar_list(&image.spec.repo_digests),
        "RepoTags": familiar_list(&image.spec.tags),
        "SharedSize": -1,
        "Size": image.status.size,
    })
}

/// How much of an image other images have too.
pub fn share(world: &World, image: &Resource<Image>, summary: &mut Value) {
    let others = world.images.values().filter(|i| i.meta.name != image.meta.name);
    let theirs: std::collections::BTreeSet<&str> =
        others.flat_map(|i| i.status.layers.iter().map(|l| l.id.as_str())).collect();
    let layers = image.status.layers.iter().filter(|l| theirs.contains(l.id.as_str()));
    summary["SharedSize"] = json!(layers.map(|l| l.size).sum::<u64>());
}

/// What older versions say in other words.
fn older(version: ApiVersion, summary: &mut Value) {
    if version < ApiVersion(51) {
        summary["Containers"] = json!(-1);
    }
    if version < ApiVersion(43) {
        let untagged = summary["RepoTags"] == json!([]);
        for (key, none) in [("RepoTags", "<none>:<none>"), ("RepoDigests", "<none>@<none>")] {
            if summary[key] == json!([]) {
                summary[key] = if untagged { json!([none]) } else { Value::Null };
            }
        }
    }
}

/// Docker's `reference` filter: a pattern with `*` of the name, with or without the tag.
fn reference_matches(tagged: &str, pattern: &str) -> bool {
    let name = tagged.rsplit_once(':').map_or(tagged, |(name, _)| name);
    glob(pattern.as_bytes(), tagged.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

/// `*` matches anything but `/`, `?` one character.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The last star and where it began to match: at most one step back is ever needed.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] || (*c == b'?' && text[t] != b'/') => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) if text[from] != b'/' => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

async fn tag(app: &App, name: &str, params: &Params) -> Result<StatusCode> {
    let repo =
        params.get("repo").ok_or_else(|| Failure::invalid("invalid reference format: repository name is missing"))?;
    let text = params.get("tag").map_or_else(|| repo.to_owned(), |tag| format!("{repo}:{tag}"));
    Reference::parse(repo)?;
    let reference = Reference::parse(&text).map_err(|_| Failure::invalid("invalid tag format"))?;
    if reference.digest.is_some() {
        return Err(Failure::invalid("refusing to create a tag with a digest reference"));
    }
    let wanted = reference.or_latest().tagged();
    for _ in 0..8 {
        let image = find_or_refresh(app, name).await?;
        let world = app.store.world();
        let mut operations = Vec::new();
        for other in world.images.values().filter(|i| i.meta.name != image.meta.name && i.spec.tags.contains(&wanted)) {
            let mut spec = other.spec.clone();
            spec.tags.retain(|t| *t != wanted);
            operations.push(Operation::update_spec::<Image>(other, &spec)?);
        }
        if !image.spec.tags.contains(&wanted) {
            let mut spec = image.spec.clone();
            spec.tags.push(wanted.clone());
            spec.tags.sort();
            operations.push(Operation::update_spec::<Image>(&image, &spec)?);
        }
        if operations.is_empty() {
            return Ok(StatusCode::CREATED);
        }
        match app.store.transact(operations).await {
            Ok(()) => return Ok(StatusCode::CREATED),
            Err(error) if error.kind == zone::ErrorKind::Conflict => app.store.barrier().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict(format!("{name} is being changed by somebody else; try again")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use zone::Meta;
    use zone::image::{ImageSpec, ImageStatus};

    fn world() -> World {
        let image = |digit: &str, tags: &[&str]| {
            let id = format!("sha256:{}", digit.repeat(64));
            let spec = ImageSpec { tags: tags.iter().map(|t| (*t).to_owned()).collect(), repo_digests: Vec::new() };
            let config = json!({"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Cmd": ["sh"]}});
            let meta = Meta { kind: "image".into(), name: id.clone(), ..Meta::default() };
            (
                id,
                Arc::new(Resource {
                    meta,
                    spec,
                    status: ImageStatus { config, ready: true, ..ImageStatus::default() },
                }),
            )
        };
        let images =
            BTreeMap::from([image("a", &["docker.io/library/busybox:latest"]), image("b", &["quay.io/x/y:1"])]);
        World { images, ..World::default() }
    }

    #[test]
    fn images_are_found_by_reference_id_and_prefix() {
        let world = world();
        for key in ["busybox", "docker.io/library/busybox", "busybox:latest", "aaaa", "sha256:aaaa", &"a".repeat(64)] {
            assert_eq!(find(&world, key).unwrap().meta.name, format!("sha256:{}", "a".repeat(64)), "{key}");
        }
        let failure = find(&world, "alpine").unwrap_err();
        assert_eq!((failure.status.as_u16(), failure.message.as_str()), (404, "No such image: alpine:latest"));
    }

    #[test]
    fn an_image_has_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/image-1.51.json")).unwrap();
        let world = world();
        let image = world.images.values().next().unwrap();
        crate::containers::same_keys("", &golden, &describe(image), &[".Descriptor"]);
    }

    #[test]
    fn patterns_match_names_with_and_without_tag() {
        for (pattern, matching) in [
            ("busybox", true),
            ("busybox:*", true),
            ("*", true),
            ("busy*:latest", true),
            ("alpine", false),
            ("b?sybox", true),
        ] {
            assert_eq!(reference_matches("busybox:latest", pattern), matching, "{pattern}");
        }
        assert!(!reference_matches("quay.io/x/y:1", "*"));
        assert!(reference_matches("quay.io/x/y:1", "quay.io/*/y"));
    }
}
