//! The HTTP interface on the service's socket (docs/interfaces.md, "Content store").

use crate::build::{Build, Builder, Docker};
use crate::fail::{MAX_ARCHIVE, Result, blocking, invalid, io};
use crate::ingest::Context;
use crate::manifest::Platform;
use crate::progress::{self, Progress};
use crate::query::Query;
use crate::reference::Reference;
use crate::registry::{Credentials, Registries};
use crate::save;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::io::Write;
use tempfile::NamedTempFile;
use tokio_stream::StreamExt;

/// What the routes need.
#[derive(Clone, Debug)]
struct Server {
    context: Context,
    registries: Registries,
    docker: Docker,
}

/// The routes.
pub fn router(context: Context, registries: Registries, docker: Docker) -> Router {
    Router::new()
        .route("/load", post(load))
        .route("/save", get(save))
        .route("/pull", post(pull))
        .route("/push", post(push))
        .route("/import", post(import))
        .route("/commit", post(commit))
        .route("/build", post(build))
        .route("/build/prune", post(prune))
        .route("/distribution", get(distribution))
        .route("/login", post(login))
        .with_state(Server { context: context.clone(), registries, docker })
        .merge(crate::registry::serve(context))
        .layer(DefaultBodyLimit::disable())
}

async fn load(State(server): State<Server>, body: Body) -> Response {
    progress::respond(false, |progress| load_job(server.context, body, progress)).await
}

async fn save(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let names = Query::parse(query.as_deref()).all("names");
    if names.is_empty() {
        return progress::error_response(&invalid("the parameter names is missing"));
    }
    match save::save(&server.context, &names).await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/x-tar")], body).into_response(),
        Err(error) => progress::error_response(&error),
    }
}

async fn pull(State(server): State<Server>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    progress::respond(true, |progress| async move {
        let query = Query::parse(query.as_deref());
        let reference = Reference::parse(query.need("image")?)?;
        let platform = query.get("platform").map(Platform::parse).transpose()?;
        server.registries.pull(&server.context, &reference, platform.as_ref(), credentials(&headers)?, &progress).await
    })
    .await
}

async fn distribution(State(server): State<Server>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let asked = async {
        let reference = Reference::parse(Query::parse(query.as_deref()).need("image")?)?;
        server.registries.ask(&reference, credentials(&headers)?).await
    };
    match asked.await {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => progress::error_response(&error),
    }
}

async fn login(State(server): State<Server>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let asked = async {
        let query = Query::parse(query.as_deref());
        server.registries.login(query.get("registry").unwrap_or_default(), credentials(&headers)?).await
    };
    match asked.await {
        Ok(()) => axum::http::StatusCode::NO_CONTENT.into_response(),
        Err(error) => progress::error_response(&error),
    }
}

async fn push(State(server): State<Server>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    progress::respond(true, |progress| async move {
        let reference = Reference::parse(Query::parse(query.as_deref()).need("image")?)?;
        server.registries.push(&server.context, &reference, credentials(&headers)?, &progress).await
    })
    .await
}

async fn import(State(server): State<Server>, RawQuery(query): RawQuery, body: Body) -> Response {
    progress::respond(true, |progress| async move {
        let query = Query::parse(query.as_deref());
        let tags = query.get("ref").map(Reference::parse).transpose()?;
        let context = server.context;
        let _in_use = context.store.use_it().await;
        let spool = spool(&context, body).await?;
        let tags = tags.into_iter().collect();
        let message = query.get("message").unwrap_or_default();
        let image = crate::import::import(&context, spool.path(), tags, &query.all("changes"), message).await?;
        progress.status("", image.to_string()).await;
        Ok(())
    })
    .await
}

async fn commit(State(server): State<Server>, RawQuery(query): RawQuery, body: Body) -> Response {
    let made = async {
        let _in_use = server.context.store.use_it().await;
        let spool = spool(&server.context, body).await?;
        crate::commit::commit(&server.context, &Query::parse(query.as_deref()), spool.path()).await
    };
    match made.await {
        Ok(image) => axum::Json(serde_json::json!({"Id": image.to_string()})).into_response(),
        Err(error) => progress::error_response(&error),
    }
}

async fn build(State(server): State<Server>, RawQuery(query): RawQuery, headers: HeaderMap, body: Body) -> Response {
    progress::respond(true, |progress| async move {
        let registries = headers.get("x-registry-config").and_then(|v| v.to_str().ok());
        let build = Build::read(&Query::parse(query.as_deref()), registries)?;
        let Server { context, registries, docker } = server;
        let _in_use = context.store.use_it().await;
        let spool = spool(&context, body).await?;
        Builder { context, registries, docker }.build(build, spool.path(), &progress).await
    })
    .await
}

async fn prune(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let all = Query::parse(query.as_deref()).get("all").is_some();
    let pruned = async {
        let keys = crate::build::prune(&server.context.store, all)?;
        // What else is under way keeps its files; they go with the next collection.
        let freed = crate::collect::free(&server.context).await?.unwrap_or(0);
        Ok::<_, zone::ApiError>(serde_json::json!({"CachesDeleted": keys, "SpaceReclaimed": freed}))
    };
    match pruned.await {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(error) => progress::error_response(&error),
    }
}

fn credentials(headers: &HeaderMap) -> Result<Credentials> {
    Credentials::from_header(headers.get("x-registry-auth").and_then(|v| v.to_str().ok()).unwrap_or_default())
}

async fn load_job(context: Context, body: Body, progress: Progress) -> Result<()> {
    let _in_use = context.store.use_it().await;
    let spool = spool(&context, body).await?;
    for staged in context.stage_archive(spool.path()).await? {
        let names: Vec<String> = staged.tags.iter().map(Reference::familiar).collect();
        let image = context.finish(staged, None).await?;
        for name in &names {
            progress.stream(format!("Loaded image: {name}\n")).await;
        }
        if names.is_empty() {
            progress.stream(format!("Loaded image ID: {image}\n")).await;
        }
    }
    Ok(())
}

/// Writes a request's body to a file of the store. When there is no room, the rest is read and forgotten: who sends looks for an answer
/// only when all is sent.
///
/// # Errors
/// `TooLarge`; `Invalid` when the body ends early.
pub async fn spool(context: &Context, body: Body) -> Result<NamedTempFile> {
    let mut file = context.store.temp();
    let mut stream = body.into_data_stream();
    let mut length = 0_u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| invalid(format!("the body ended early: {e}")))?;
        length += chunk.len() as u64;
        if length > MAX_ARCHIVE {
            return Err(zone::ApiError::new(
                zone::ErrorKind::TooLarge,
                format!("the archive is larger than {MAX_ARCHIVE} bytes"),
            ));
        }
        if let Ok(mut open) = file {
            file = blocking(move || open.write_all(&chunk).map(|()| open).map_err(io("cannot spool the body"))).await;
        }
    }
    file
}
