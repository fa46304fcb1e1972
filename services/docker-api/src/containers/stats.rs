//! `stats` and `top`: the agent measures, this service adds names and the sample before.

use crate::errors::Result;
use crate::filters::Params;
use crate::names::ZERO_TIME;
use crate::state::Container;
use crate::{App, agent, proxy};
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// `GET /containers/{id}/top`.
///
/// # Errors
/// 409 when the container does not run.
pub async fn top(State(app): State<Arc<App>>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Result<Response> {
    let container = proxy::running(&app, &id)?;
    proxy::to_agent(&app, &container, "GET", "top", query.as_deref(), Body::empty()).await
}

/// `GET /containers/{id}/stats`.
///
/// # Errors
/// 404 when there is no such container.
pub async fn stats(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<Response> {
    let container = app.store.world().container(&id)?;
    if !params.flag_or("stream", true) {
        let first = sample(&app, &container).await;
        if params.flag("one-shot") || !container.is_running() {
            return Ok(axum::Json(joined(&container, None, first)).into_response());
        }
        tokio::time::sleep(PERIOD).await;
        let second = sample(&app, &container).await;
        return Ok(axum::Json(joined(&container, Some(first), second)).into_response());
    }
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::spawn(async move {
        let mut before = None;
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
            }
            let Some((now, false)) = app.store.world().container_even_gone(container.id()) else { return };
            let sample = sample(&app, &now).await;
            let mut line = joined(&now, before.replace(sample.clone()), sample).to_string();
            line.push('\n');
            if sender.send(Ok(line.into())).await.is_err() {
                return;
            }
        }
    });
    Ok(crate::streams::streaming(
        "application/json",
        Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)),
    ))
}

/// A sample; an empty one when the container does not run.
async fn sample(app: &App, container: &Container) -> Value {
    if container.is_running()
        && let Ok(answer) = proxy::to_agent(app, container, "GET", "stats", None, Body::empty()).await
        && answer.status().is_success()
    {
        return agent::json(answer).await;
    }
    let cpu = json!({
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    });
    let blkio = json!({
        "io_service_bytes_recursive": null, "io_serviced_recursive": null, "io_queue_recursive": null, "io_service_time_recursive": null,
        "io_wait_time_recursive": null, "io_merged_recursive": null, "io_time_recursive": null, "sectors_recursive": null,
    });
    json!({
        "read": ZERO_TIME, "preread": ZERO_TIME, "pids_stats": {}, "blkio_stats": blkio, "num_procs": 0, "storage_stats": {}, "memory_stats": {},
        "cpu_stats": cpu, "precpu_stats": cpu,
    })
}

fn joined(container: &Container, before: Option<Value>, mut now: Value) -> Value {
    now["id"] = json!(container.id());
    now["name"] = json!(format!("/{}", container.spec().name));
    match before {
        Some(before) => {
            now["precpu_stats"] = before["cpu_stats"].clone();
            now["preread"] = before["read"].clone();
        }
        None => now["preread"] = json!(ZERO_TIME),
    }
    now
}
