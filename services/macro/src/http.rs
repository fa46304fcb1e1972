//! The HTTP interface; its table stands in `zone::client`.

use crate::engine::{Change, MAX_RESOURCE};
use crate::writer::Writer;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zone::client::{Changes, Transaction, ZoneIdentity};
use zone::{ApiError, ErrorKind};

/// A watch that has nothing to tell says so this often, so that both sides notice a dead connection.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// How many changes a watch takes from the history at once.
const CHUNK: usize = 256;

/// Every path of the interface.
pub fn router(writer: Writer) -> Router {
    Router::new()
        .route("/v1/transaction", post(transaction))
        .route("/v1/watch", get(watch))
        .route("/v1/zone", get(identity))
        .route("/v1/{kind}", get(list))
        .route("/v1/{kind}/{name}", get(one))
        .fallback(|| async { Failure(ApiError::new(ErrorKind::NotFound, "no such path")) })
        .layer(DefaultBodyLimit::max(2 * MAX_RESOURCE))
        .with_state(writer)
}

struct Failure(ApiError);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

async fn transaction(State(writer): State<Writer>, body: Bytes) -> Result<Response, Failure> {
    let transaction: Transaction = serde_json::from_slice(&body)
        .map_err(|e| Failure(ApiError::new(ErrorKind::Invalid, format!("this is no transaction: {e}"))))?;
    let result = writer.transact(transaction.operations).await.map_err(Failure)?;
    Ok(Json(result).into_response())
}

async fn identity(State(writer): State<Writer>) -> Json<ZoneIdentity> {
    Json(ZoneIdentity { id: writer.shared().state().zone.clone() })
}

async fn list(State(writer): State<Writer>, Path(kind): Path<String>) -> Response {
    let state = writer.shared().state();
    let items: Vec<_> = state
        .resources
        .range((kind.clone(), String::new())..)
        .take_while(|((k, _), _)| *k == kind)
        .map(|(_, object)| object.to_json())
        .collect();
    Json(serde_json::json!({"revision": state.revision, "items": items})).into_response()
}

async fn one(State(writer): State<Writer>, Path(key): Path<(String, String)>) -> Result<Response, Failure> {
    match writer.shared().state().resources.get(&key) {
        Some(object) => Ok(Json(object.to_json()).into_response()),
        None => Err(Failure(ApiError::new(ErrorKind::NotFound, format!("there is no {} {}", key.0, key.1)))),
    }
}

#[derive(Deserialize)]
struct WatchQuery {
    kinds: String,
    from: u64,
}

async fn watch(State(writer): State<Writer>, Query(query): Query<WatchQuery>) -> Result<Response, Failure> {
    let kinds: Vec<String> = query.kinds.split(',').map(str::to_owned).collect();
    // Told at once, with its status, when the past is forgotten.
    writer.shared().state().changes_after(query.from, &kinds, 1).map_err(Failure)?;
    let (lines, stream) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::spawn(tell(writer, kinds, query.from, lines));
    Ok(Body::from_stream(ReceiverStream::new(stream)).into_response())
}

/// Tells changes until the watcher goes away, or has fallen so far behind that some are forgotten.
async fn tell(writer: Writer, kinds: Vec<String>, from: u64, lines: mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let mut revisions = writer.shared().revisions();
    let mut seen = from;
    let mut bookmark_due = true;
    loop {
        revisions.borrow_and_update();
        let Ok((changes, next)) = writer.shared().state().changes_after(seen, &kinds, CHUNK) else {
            return;
        };
        let caught_up = changes.len() < CHUNK;
        let mut text = Vec::new();
        for transaction in changes.chunk_by(|a, b| a.revision == b.revision) {
            seen = transaction[0].revision;
            push_line(
                &mut text,
                &Changes { revision: seen, events: transaction.iter().map(Change::to_event).collect() },
            );
        }
        // Whoever waits for a revision learns of it, though it changed other kinds.
        if caught_up && (bookmark_due || seen < next) {
            push_line(&mut text, &Changes { revision: next, events: Vec::new() });
            bookmark_due = false;
        }
        seen = next;
        if !text.is_empty() && lines.send(Ok(text.into())).await.is_err() {
            return;
        }
        if !caught_up {
            continue;
        }
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return },
            () = lines.closed() => return,
            () = tokio::time::sleep(BOOKMARK_EVERY) => bookmark_due = true,
        }
    }
}

fn push_line(text: &mut Vec<u8>, changes: &Changes) {
    // They are maps with string keys: they always serialize.
    text.extend(serde_json::to_vec(changes).unwrap_or_default());
    text.push(b'\n');
}
