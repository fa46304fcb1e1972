//! `POST /containers/{id}/wait`: the answer's head goes out at once, its body when the container has exited.
//!
//! A client sends this before it starts the container, and starts only when it has the head.

use super::follow::Baseline;
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::state::Container;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use zone::ContainerId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    NotRunning,
    NextExit,
    Removed,
}

/// `POST /containers/{id}/wait`.
///
/// # Errors
/// 400 for an unknown condition.
pub async fn wait(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let container = app.store.world().container(&id)?;
    let condition = match params.get("condition").unwrap_or("not-running") {
        "not-running" => Condition::NotRunning,
        "next-exit" => Condition::NextExit,
        "removed" => Condition::Removed,
        other => return Err(Failure::invalid(format!("invalid condition: \"{other}\""))),
    };
    let (id, baseline) = (container.id().clone(), Baseline::of(&container));
    let body = async move { Ok::<_, std::io::Error>(until(&app, &id, baseline, condition).await) };
    // A stream has no length that would have to be known first, so the head is sent before its first piece is there.
    let body = Body::from_stream(futures_util::stream::once(body));
    Ok(crate::streams::streaming("application/json", body))
}

async fn until(app: &App, id: &ContainerId, baseline: Baseline, condition: Condition) -> Bytes {
    let found = app.store.wait(None, |world| {
        let Some((now, gone)) = world.container_even_gone(id) else { return Some(None) };
        let over = match condition {
            // As with Docker Engine, also when its policy starts it again.
            Condition::NotRunning => !now.is_active() || baseline.is_past(&now),
            Condition::NextExit => baseline.is_past(&now),
            Condition::Removed => false,
        };
        (over || gone).then_some(Some(now))
    });
    let answer = match found.await.flatten() {
        Some(container) => outcome(&container),
        None => json!({"StatusCode": 0, "Error": {"Message": format!("container {id} is gone")}}),
    };
    let mut text = answer.to_string();
    text.push('\n');
    text.into()
}

fn outcome(container: &Container) -> Value {
    let status = container.status();
    match status.error {
        Some(error) => json!({"StatusCode": status.exit_code, "Error": {"Message": error.message}}),
        None => json!({"StatusCode": status.exit_code}),
    }
}
