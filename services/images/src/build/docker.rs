//! The steps that run something run it in containers of this zone, through its own Docker API: each in a microVM.
//!
//! A container of a build starts with the agent's idle program; the step's command is an exec in it, and what it changed
//! is asked for as a layer (`GET /containers/{id}/layer`, an addition of ours to the API).

use crate::digest::{Digest, HashWriter};
use crate::fail::{MAX_LAYER, Result, internal, invalid, io};
use crate::progress::Progress;
use crate::store::Store;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use zone::{ApiError, ErrorKind};

/// The longest JSON answer.
const MAX_ANSWER: usize = 4 << 20;
/// The longest piece of output.
const MAX_FRAME: usize = 16 << 20;

/// The zone's Docker API.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// The API at a unix socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes, upgrade: bool) -> Result<Response<Incoming>> {
        let away = |e: &dyn std::fmt::Display| {
            ApiError::new(
                ErrorKind::Unavailable,
                format!("cannot reach the Docker API at {}: {e}", self.socket.display()),
            )
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| away(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| away(&e))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header("host", "docker");
        request = request.header("content-type", "application/json");
        if upgrade {
            request = request.header("connection", "Upgrade").header("upgrade", "tcp");
        }
        let request = request.body(Full::new(body)).map_err(|e| invalid(format!("bad request {path}: {e}")))?;
        sender.send_request(request).await.map_err(|e| away(&e))
    }

    async fn json(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let response = self.send(method, path, body, false).await?;
        let status = response.status();
        let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let bytes = limited.collect().await.map_err(|e| internal(format!("the Docker API broke off: {e}")))?.to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(value);
        }
        Err(invalid(value["message"].as_str().unwrap_or("the Docker API refused").to_owned()))
    }

    /// Makes and starts a container for a step.
    ///
    /// # Errors
    /// What the API says.
    pub async fn start(&self, config: &Value) -> Result<Container> {
        let made = self.json(Method::POST, "/containers/create", Some(config.clone())).await?;
        let id = made["Id"].as_str().ok_or_else(|| internal("the Docker API gave no container id"))?.to_owned();
        let container = Container { docker: self.clone(), id };
        self.json(Method::POST, &format!("/containers/{}/start", container.id), None).await?;
        Ok(container)
    }
}

/// A container of a step; removed when it is dropped.
#[derive(Debug)]
pub struct Container {
    docker: Docker,
    /// Its id.
    pub id: String,
}

impl Drop for Container {
    fn drop(&mut self) {
        let (docker, id) = (self.docker.clone(), std::mem::take(&mut self.id));
        tokio::spawn(async move {
            if let Err(error) = docker.json(Method::DELETE, &format!("/containers/{id}?force=1&v=1"), None).await {
                tracing::warn!(container = id, %error, "a build's container stays");
            }
        });
    }
}

impl Container {
    /// Puts an archive's files into a folder of the container.
    ///
    /// # Errors
    /// What the API says.
    pub async fn put(&self, folder: &str, archive: Vec<u8>) -> Result<()> {
        let path = format!("/containers/{}/archive?path={folder}", self.id);
        let response = self.docker.send(Method::PUT, &path, archive.into(), false).await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(internal(format!("cannot put a script into the build's container: {}", response.status()))),
        }
    }

    /// Runs a command to its end and tells what it prints; its exit code.
    ///
    /// # Errors
    /// What the API says, or when the connection breaks.
    pub async fn exec(&self, config: Value, progress: &Progress) -> Result<i64> {
        let made = self.docker.json(Method::POST, &format!("/containers/{}/exec", self.id), Some(config)).await?;
        let id = made["Id"].as_str().ok_or_else(|| internal("the Docker API gave no exec id"))?.to_owned();
        let body = Bytes::from(json!({"Detach": false, "Tty": false}).to_string());
        let response = self.docker.send(Method::POST, &format!("/exec/{id}/start"), body, true).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(internal(format!("the Docker API does not run the step: {}", response.status())));
        }
        let raw =
            hyper::upgrade::on(response).await.map_err(|e| internal(format!("the step's output broke off: {e}")))?;
        tell(TokioIo::new(raw), progress).await.map_err(io("the step's output broke off"))?;
        let state = self.docker.json(Method::GET, &format!("/exec/{id}/json"), None).await?;
        state["ExitCode"].as_i64().ok_or_else(|| internal("the step's container ended before the step"))
    }

    /// What the container changed, as a layer in the store: its digest and length.
    ///
    /// # Errors
    /// What the API says; `NoSpace`.
    pub async fn layer(&self, store: &Arc<Store>) -> Result<(Digest, u64)> {
        let path = format!("/containers/{}/layer", self.id);
        let response = self.docker.send(Method::GET, &path, Bytes::new(), false).await?;
        if !response.status().is_success() {
            return Err(internal(format!("cannot read what the step changed: {}", response.status())));
        }
        let mut body = response.into_body();
        let mut writer = HashWriter::new(store.temp()?);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| internal(format!("what the step changed broke off: {e}")))?;
            if let Ok(data) = frame.into_data() {
                if writer.count() + data.len() as u64 > MAX_LAYER {
                    return Err(invalid(format!("the step's layer is larger than {MAX_LAYER} bytes")));
                }
                writer.write_all(&data).map_err(io("cannot write a layer"))?;
            }
        }
        let (digest, size, temp) = writer.finish();
        if !store.blob(&digest).exists() {
            let (store, kept) = (store.clone(), digest.clone());
            crate::fail::blocking(move || store.keep(temp, &store.blob(&kept))).await?;
        }
        Ok((digest, size))
    }
}

/// Docker's frames: stream, three zeroes, length.
async fn tell(mut stream: impl AsyncRead + Unpin, progress: &Progress) -> std::io::Result<()> {
    let mut head = [0; 8];
    loop {
        match stream.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            result => drop(result?),
        }
        let length = usize::try_from(u32::from_be_bytes([head[4], head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(std::io::Error::other("a frame is too long"));
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data).await?;
        let text = String::from_utf8_lossy(&data);
        // What goes to standard error is red, as the classic builder has it.
        if head[0] == 2 {
            progress.stream(format!("\x1b[91m{text}\x1b[0m")).await;
        } else {
            progress.stream(text).await;
        }
    }
}
