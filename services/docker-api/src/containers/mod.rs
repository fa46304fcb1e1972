//! `/containers` and `/exec`: one file per group of endpoints.

mod archive;
mod attach;
pub mod checks;
mod create;
mod exec;
mod follow;
mod health;
mod inspect;
mod lifecycle;
mod list;
mod logs;
pub mod merge;
mod mount_entry;
pub mod mounts;
pub mod options;
mod remove;
pub mod request;
pub mod resources;
mod size;
mod stats;
pub mod tmpfs;
mod update;
mod wait;
mod websocket;

pub use archive::pass as with_files;
pub use exec::KnownExec;
pub use inspect::short_endpoint;
#[cfg(test)]
pub use inspect::tests::{same_keys, sample};
pub use list::summary;

use crate::App;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use std::sync::Arc;

/// The routes of containers and execs.
pub fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .route("/containers/create", post(create::create))
        .route("/containers/json", get(list::list))
        .route("/containers/prune", post(remove::prune))
        .route("/containers/{id}", axum::routing::delete(remove::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/start", post(lifecycle::start))
        .route("/containers/{id}/stop", post(lifecycle::stop))
        .route("/containers/{id}/restart", post(lifecycle::restart))
        .route("/containers/{id}/kill", post(lifecycle::kill))
        .route("/containers/{id}/pause", post(lifecycle::pause))
        .route("/containers/{id}/unpause", post(lifecycle::unpause))
        .route("/containers/{id}/wait", post(wait::wait))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/attach/ws", get(websocket::attach))
        .route("/containers/{id}/resize", post(attach::resize))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/top", get(stats::top))
        .route("/containers/{id}/rename", post(update::rename))
        .route("/containers/{id}/update", post(update::update))
        .route("/containers/{id}/changes", get(archive::changes))
        .route("/containers/{id}/export", get(archive::export))
        .route(
            "/containers/{id}/archive",
            get(archive::get).head(archive::head).put(archive::put).layer(DefaultBodyLimit::disable()),
        )
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route_layer(axum::middleware::from_fn_with_state(app.clone(), crate::events::calls::tell))
}
