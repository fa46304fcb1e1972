//! The client of the agent in a pod (HTTP on its vsock port 1, which the monitor offers as a unix socket).
//!
//! Owns connecting and taking connections over. Must not interpret what the agent answers: it speaks Docker's shapes.

use crate::errors::{Failure, Result};
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long an agent may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest small answer.
const ANSWER: usize = 4 << 20;

/// A taken-over connection.
pub type Raw = TokioIo<hyper::upgrade::Upgraded>;

/// Sends a request to the service that listens at `socket`.
///
/// # Errors
/// 503 when nothing answers there.
pub async fn send(socket: &Path, request: Request<Body>) -> Result<Response<Incoming>> {
    connect(socket).await?.send(request).await
}

/// A connection to a service.
#[derive(Debug)]
pub struct Connection {
    sender: hyper::client::conn::http1::SendRequest<Body>,
    socket: PathBuf,
}

/// Connects to the service that listens at `socket`.
///
/// # Errors
/// 503 when nothing accepts there.
pub async fn connect(socket: &Path) -> Result<Connection> {
    let what = |e: &dyn std::fmt::Display| unreachable(socket, e);
    let stream = match tokio::time::timeout(CONNECT, UnixStream::connect(socket)).await {
        Ok(stream) => stream.map_err(|e| what(&e))?,
        Err(_) => return Err(what(&"no connection within 10 seconds")),
    };
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| what(&e))?;
    tokio::spawn(connection.with_upgrades());
    Ok(Connection { sender, socket: socket.to_owned() })
}

fn unreachable(socket: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::unavailable(format!("cannot reach {}: {error}", socket.display()))
}

impl Connection {
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>> {
        self.sender.send_request(request).await.map_err(|e| unreachable(&self.socket, &e))
    }

    /// Sends a request and reads the whole small answer.
    ///
    /// # Errors
    /// 503 when there is none.
    pub async fn ask(&mut self, request: Request<Body>) -> Result<StatusCode> {
        let response = self.send(request).await?;
        let status = response.status();
        axum::body::to_bytes(Body::new(response.into_body()), ANSWER)
            .await
            .map_err(|e| unreachable(&self.socket, &e))?;
        Ok(status)
    }

    /// Sends the last request of this connection and passes the answer on.
    ///
    /// # Errors
    /// 503 when there is none.
    pub async fn pass(mut self, request: Request<Body>) -> Result<Response<Body>> {
        Ok(answer(self.send(request).await?))
    }
}

/// A request for `path` (with its query) with a body.
///
/// # Errors
/// 400 when the path cannot stand in a request.
pub fn request(method: &str, path: &str, body: Body) -> Result<Request<Body>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "agent")
        .header("content-type", "application/json")
        .body(body)
        .map_err(|e| Failure::invalid(format!("invalid path {path}: {e}")))
}

/// Sends a request and passes the answer on.
///
/// # Errors
/// 503 when nothing answers there.
pub async fn pass(socket: &Path, request: Request<Body>) -> Result<Response<Body>> {
    Ok(answer(send(socket, request).await?))
}

fn answer(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    for hop in ["connection", "transfer-encoding", "keep-alive"] {
        parts.headers.remove(hop);
    }
    Response::from_parts(parts, Body::new(body))
}

/// What became of a request to take a connection over.
pub enum Upgrade {
    /// It is ours.
    Raw(Raw),
    /// The other side answered something else.
    Refused(Response<Body>),
}

/// Sends a request whose answer is `101`, and takes the connection over.
///
/// # Errors
/// 503 when nothing answers there, 500 when the connection breaks.
pub async fn upgrade(socket: &Path, mut request: Request<Body>) -> Result<Upgrade> {
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().map_err(|_| Failure::internal("header"))?);
    headers.insert("upgrade", "tcp".parse().map_err(|_| Failure::internal("header"))?);
    let response = send(socket, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Upgrade::Refused(response.map(Body::new).into_response()));
    }
    let raw = hyper::upgrade::on(response)
        .await
        .map_err(|e| Failure::internal(format!("the agent broke the connection: {e}")))?;
    Ok(Upgrade::Raw(TokioIo::new(raw)))
}

/// The body of an answer as JSON; null when it is none.
pub async fn json(response: Response<Body>) -> serde_json::Value {
    let body = axum::body::to_bytes(response.into_body(), ANSWER).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_default()
}
