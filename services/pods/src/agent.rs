//! Asks the agent in a guest to signal a container.

use anyhow::{Context as _, bail};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::path::Path;
use tokio::net::UnixStream;
use zone::ContainerId;

/// Sends `signal` to the container's first process.
///
/// # Errors
/// When the agent cannot be reached or refuses, as when the process is gone.
pub async fn kill(socket: &Path, container: &ContainerId, signal: &str) -> anyhow::Result<()> {
    // A signal is a word or a number; nothing else may get into the request's line.
    if signal.is_empty() || !signal.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'-') {
        bail!("{signal:?} is not a signal");
    }
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("cannot reach the agent at {}", socket.display()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak with the agent")?;
    tokio::spawn(connection);
    let uri = format!("/containers/{container}/kill?signal={}", signal.replace('+', "%2B"));
    let request = hyper::Request::post(uri)
        .header("host", "agent")
        .body(Empty::<Bytes>::new())
        .context("cannot ask the agent")?;
    let response = sender.send_request(request).await.context("the agent does not answer")?;
    if !response.status().is_success() {
        bail!("the agent answered {} to a signal", response.status());
    }
    Ok(())
}
