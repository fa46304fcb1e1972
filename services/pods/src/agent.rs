//! Asks the agent in a guest for something.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use zone::ContainerId;

/// A guest that does not answer for so long will not.
const PATIENCE: Duration = Duration::from_secs(20);
/// More of a refusal is not read.
const ANSWER_MAX: usize = 4096;

/// Sends `signal` to the container's first process.
///
/// # Errors
/// When the agent cannot be reached or refuses, as when the process is gone.
pub async fn kill(socket: &Path, container: &ContainerId, signal: &str) -> anyhow::Result<()> {
    // A signal is a word or a number; nothing else may get into the request's line.
    if signal.is_empty() || !signal.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'-') {
        bail!("{signal:?} is not a signal");
    }
    let uri = format!("/containers/{container}/kill?signal={}", signal.replace('+', "%2B"));
    request(socket, hyper::Method::POST, &uri, Vec::new()).await
}

/// Has the agent power off, once it has done what it is at.
///
/// # Errors
/// When the agent cannot be reached or refuses.
pub async fn shutdown(socket: &Path) -> anyhow::Result<()> {
    request(socket, hyper::Method::POST, "/shutdown", Vec::new()).await
}

/// Asks the agent for something; its answer's body is of no interest.
///
/// # Errors
/// When it cannot be reached, does not answer in time, or refuses.
pub async fn request(socket: &Path, method: hyper::Method, uri: &str, body: Vec<u8>) -> anyhow::Result<()> {
    let asked = async {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("cannot reach the agent at {}", socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak with the agent")?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "agent")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .context("cannot ask the agent")?;
        let response = sender.send_request(request).await.context("the agent does not answer")?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let said =
            Limited::new(response.into_body(), ANSWER_MAX).collect().await.map(http_body_util::Collected::to_bytes);
        let said = said.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        bail!("the agent answered {status} to {uri}: {said}")
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| bail!("the agent does not answer {uri}"))
}
