//! Asks `node`: is this the pairing code, and for a bundle of client certificates.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use zone::access::Holder;
use zone::{ApiError, ErrorKind};

/// The largest answer, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The way to `node`.
#[derive(Clone, Debug)]
pub struct Node {
    socket: PathBuf,
}

impl Node {
    /// `node`, listening at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Checks the pairing code.
    ///
    /// # Errors
    /// `Forbidden` when it is wrong, after a delay that grows; `Unavailable` when `node` does not answer.
    pub async fn pair(&self, code: &str) -> Result<(), ApiError> {
        self.post("/pair", &serde_json::json!({ "code": code })).await.map(|_| ())
    }

    /// A tar archive with `ca.pem`, `cert.pem` and `key.pem` for `holder`.
    ///
    /// # Errors
    /// As [`Node::pair`]; `Invalid` when there can be no such holder.
    pub async fn client_bundle(&self, code: &str, holder: &Holder) -> Result<Bytes, ApiError> {
        self.post("/client-bundle", &serde_json::json!({"code": code, "holder": holder})).await
    }

    async fn post(&self, path: &str, body: &serde_json::Value) -> Result<Bytes, ApiError> {
        let failed = |error: &dyn std::fmt::Display| {
            ApiError::new(ErrorKind::Unavailable, format!("the service `node` does not answer: {error}"))
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "node")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|e| failed(&e))?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| failed(&e))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(serde_json::from_slice(&body)
            .unwrap_or_else(|_| ApiError::new(ErrorKind::from_status(status.as_u16()), "the code is not right")))
    }
}
