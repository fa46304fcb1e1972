//! Docker's progress stream: JSON objects, one a line, while the work goes on; its failure is the last of them.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use zone::ApiError;

/// Where progress is told. Telling never fails: nobody may be listening.
#[derive(Clone, Debug)]
pub struct Progress {
    lines: mpsc::Sender<Bytes>,
    code: Arc<OnceLock<i64>>,
}

impl Progress {
    /// Tells one object.
    pub async fn send(&self, value: &Value) {
        let _ = self.lines.send(line(value)).await;
    }

    /// Keeps the exit code of a command whose failure the job ends with.
    pub fn exit_code(&self, code: i64) {
        let _ = self.code.set(code);
    }

    /// Tells a line of text, as `docker load` prints it.
    pub async fn stream(&self, text: impl AsRef<str>) {
        self.send(&json!({ "stream": text.as_ref() })).await;
    }

    /// Tells what happens, of the whole (`id` empty) or of a part.
    pub async fn status(&self, id: &str, text: impl AsRef<str>) {
        let status = text.as_ref();
        let value = if id.is_empty() {
            json!({ "status": status })
        } else {
            json!({"status": status, "progressDetail": {}, "id": id})
        };
        self.send(&value).await;
    }

    /// Tells what happens to the whole under a name of its own.
    pub async fn status_of(&self, id: &str, text: impl AsRef<str>) {
        self.send(&json!({"status": text.as_ref(), "id": id})).await;
    }

    /// Tells how far a part is; dropped when the listener is slow.
    pub fn amount(&self, id: &str, status: &str, current: u64, total: u64) {
        let detail = json!({ "current": current, "total": total });
        let value = json!({"status": status, "progressDetail": detail, "progress": bar(current, total), "id": id});
        let _ = self.lines.try_send(line(&value));
    }
}

fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push_str("\r\n");
    Bytes::from(text)
}

/// `[====>     ]  1.5MB/3MB`, fifty wide, as Docker sends it to clients that print it.
fn bar(current: u64, total: u64) -> String {
    let total = total.max(1);
    let done = usize::try_from(current.min(total).saturating_mul(50) / total).unwrap_or(0);
    let head = if done < 50 { ">" } else { "" };
    format!("[{}{head}{}] {:>8}/{}", "=".repeat(done), " ".repeat(50 - done - head.len()), size(current), size(total))
}

fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let decimals = if unit == "B" || value >= 1000.0 { 0 } else { 3_usize.saturating_sub(value.log10() as usize) };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Runs `job` and answers with what it tells. An error before the first line is an answer of its own when
/// `early_errors` is set; later ones end the stream. When the client leaves, the job ends.
pub async fn respond<F>(early_errors: bool, job: impl FnOnce(Progress) -> F) -> Response
where
    F: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(64);
    let code = Arc::new(OnceLock::new());
    let job = job(Progress { lines: sender.clone(), code: code.clone() });
    let (error_sender, error_receiver) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let left = sender.clone();
        let result = tokio::select! {
            result = job => result,
            () = left.closed() => return,
        };
        if let Err(error) = result {
            tracing::info!(%error, "a request failed");
            let _ = error_sender.send(error.clone());
            let mut value = json!({"errorDetail": {"message": error.message}, "error": error.message});
            if let Some(code) = code.get() {
                value["errorDetail"]["code"] = json!(code);
            }
            let _ = sender.send(line(&value)).await;
        }
    });
    let first = receiver.recv().await;
    // The error is sent before its line, so when the first line is the error's, it is here by now.
    let mut error_receiver = error_receiver;
    if early_errors
        && first.as_ref().is_none_or(|l| l.starts_with(b"{\"error\""))
        && let Ok(error) = error_receiver.try_recv()
    {
        return error_response(&error);
    }
    let lines = tokio_stream::iter(first).chain(ReceiverStream::new(receiver)).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

/// An error as the interface has it.
pub fn error_response(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(error)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_as_docker_shows_them() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(999), "999B");
        assert_eq!(size(1_500_000), "1.5MB");
        assert_eq!(size(27_098_756), "27.1MB");
        assert_eq!(bar(10, 10).matches('=').count(), 50);
        assert_eq!(bar(0, 10).find('>'), Some(1));
    }
}
