//! The state engine's client: HTTP/1.1 with JSON over its unix socket.
//!
//! | call | request | answer |
//! | --- | --- | --- |
//! | [`Client::list`] | `GET /v1/KIND` | `{"revision":N,"items":[…]}` |
//! | [`Client::get`] | `GET /v1/KIND/NAME` | the resource |
//! | [`Client::transact`] | `POST /v1/transaction` with `{"operations":[…]}` | `{"revision":N,"items":[…or null]}`; all or nothing |
//! | [`Client::zone_id`] | `GET /v1/zone` | `{"id":"32 hex"}`, made once with the database |
//! | [`Client::watch`] | `GET /v1/watch?kinds=a,b&from=N` | lines of [`Changes`], one for a transaction, without end |
//!
//! Names are percent-encoded in paths. Every other answer than 2xx is an [`ApiError`] in JSON. A transaction is
//! durable when it is answered if it creates, deletes or changes a spec; a status may be lost by a power cut, never by
//! a killed service.

use crate::error::{ApiError, ErrorKind};
use crate::resource::{Kind, Resource};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long a state engine that was killed may take to answer again.
const RESTART: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const AGAIN: Duration = Duration::from_millis(50);

/// One change in a transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// Creates a resource; `Conflict` when it is there already.
    Create {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// What is wanted.
        spec: serde_json::Value,
        /// What is, if the creator knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<serde_json::Value>,
    },
    /// Replaces the spec, if the resource still has `revision`; `Conflict` otherwise.
    UpdateSpec {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// The revision that the writer saw.
        revision: u64,
        /// What is wanted.
        spec: serde_json::Value,
    },
    /// Replaces the status, if the resource still has `revision`; `Conflict` otherwise.
    UpdateStatus {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// The revision that the writer saw.
        revision: u64,
        /// What is.
        status: serde_json::Value,
    },
    /// Deletes the resource, if it still has `revision` (when given).
    Delete {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
        /// The revision that the writer saw.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
}

fn to_value<T: Serialize>(value: &T) -> Result<serde_json::Value, ApiError> {
    serde_json::to_value(value).map_err(|e| ApiError::new(ErrorKind::Internal, format!("cannot encode: {e}")))
}

impl Operation {
    /// Creates a resource of kind `K`.
    ///
    /// # Errors
    /// `Internal` when the spec cannot be encoded.
    pub fn create<K: Kind>(name: &str, spec: &K::Spec, status: Option<&K::Status>) -> Result<Self, ApiError> {
        Ok(Self::Create {
            kind: K::NAME.into(),
            name: name.into(),
            spec: to_value(spec)?,
            status: status.map(to_value).transpose()?,
        })
    }

    /// Replaces the spec of a resource that was read before.
    ///
    /// # Errors
    /// `Internal` when the spec cannot be encoded.
    pub fn update_spec<K: Kind>(read: &Resource<K>, spec: &K::Spec) -> Result<Self, ApiError> {
        let Resource { meta, .. } = read;
        Ok(Self::UpdateSpec {
            kind: K::NAME.into(),
            name: meta.name.clone(),
            revision: meta.revision,
            spec: to_value(spec)?,
        })
    }

    /// Replaces the status of a resource that was read before.
    ///
    /// # Errors
    /// `Internal` when the status cannot be encoded.
    pub fn update_status<K: Kind>(read: &Resource<K>, status: &K::Status) -> Result<Self, ApiError> {
        let Resource { meta, .. } = read;
        let status = to_value(status)?;
        Ok(Self::UpdateStatus { kind: K::NAME.into(), name: meta.name.clone(), revision: meta.revision, status })
    }

    /// Deletes a resource of kind `K`, whatever its revision.
    #[must_use]
    pub fn delete<K: Kind>(name: &str) -> Self {
        Self::Delete { kind: K::NAME.into(), name: name.into(), revision: None }
    }
}

/// The body of a transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Carried out in order, all or none.
    pub operations: Vec<Operation>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransactionResult {
    /// The store's revision after it.
    pub revision: u64,
    /// Each operation's resource as it is now; null for a delete.
    pub items: Vec<Option<serde_json::Value>>,
}

/// The resources of a kind at one revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct List<K: Kind> {
    /// The store's revision; watch from here to miss nothing.
    pub revision: u64,
    /// In the order of their names.
    pub items: Vec<Resource<K>>,
}

/// What a watch tells at once: all that one transaction has changed of the kinds watched.
///
/// Without events it says only that everything up to the revision has been told: first after the past, after transactions
/// that changed other kinds, and when nothing happens for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// The store's revision; a watch goes on from here.
    pub revision: u64,
    /// In the transaction's order. Half of them would be a state that never was.
    pub events: Vec<Event>,
}

/// A change of one resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The resource is new or changed; this is all of it.
    Put {
        /// The store's revision of the change.
        revision: u64,
        /// The resource.
        object: serde_json::Value,
    },
    /// The resource is gone; this is how it was last.
    Delete {
        /// The store's revision of the change.
        revision: u64,
        /// The resource.
        object: serde_json::Value,
    },
}

impl Event {
    /// The store's revision of the change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Self::Put { revision, .. } | Self::Delete { revision, .. } => *revision,
        }
    }

    fn object(&self) -> &serde_json::Value {
        match self {
            Self::Put { object, .. } | Self::Delete { object, .. } => object,
        }
    }

    /// The kind of the resource that it is about.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.object()["meta"]["kind"].as_str().unwrap_or_default()
    }

    /// The name of the resource that it is about.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object()["meta"]["name"].as_str().unwrap_or_default()
    }

    /// The resource of kind `K` that it is about; none when it is about another kind.
    #[must_use]
    pub fn resource<K: Kind>(&self) -> Option<Resource<K>> {
        if self.kind() == K::NAME { serde_json::from_value(self.object().clone()).ok() } else { None }
    }
}

/// Which zone a database is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ZoneIdentity {
    /// 32 hexadecimal digits, made once with the database ([`crate::marker`]).
    pub id: String,
}

/// Talks to the state engine. Cheap to clone; each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the state engine that listens at `socket`, usually [`crate::paths::MACRO_SOCKET`].
    #[must_use]
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_owned() }
    }

    /// All resources of a kind.
    ///
    /// # Errors
    /// `Unavailable` when the state engine cannot be reached.
    pub async fn list<K: Kind>(&self) -> Result<List<K>, ApiError> {
        self.call(Method::GET, &format!("/v1/{}", K::NAME), None).await
    }

    /// The id that the state engine made once with its database: another id is another, perhaps an empty, database.
    ///
    /// # Errors
    /// `Unavailable` when the state engine cannot be reached.
    pub async fn zone_id(&self) -> Result<String, ApiError> {
        self.call::<ZoneIdentity>(Method::GET, "/v1/zone", None).await.map(|zone| zone.id)
    }

    /// One resource.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn get<K: Kind>(&self, name: &str) -> Result<Resource<K>, ApiError> {
        let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
        self.call(Method::GET, &format!("/v1/{}/{name}", K::NAME), None).await
    }

    /// Carries out all operations or none.
    ///
    /// # Errors
    /// `Conflict` or `NotFound` of the first operation that cannot be; then nothing has changed.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<TransactionResult, ApiError> {
        let body = serde_json::to_vec(&Transaction { operations })
            .map_err(|e| ApiError::new(ErrorKind::Internal, format!("cannot encode a transaction: {e}")))?;
        self.call(Method::POST, "/v1/transaction", Some(body)).await
    }

    /// Creates a resource.
    ///
    /// # Errors
    /// `Conflict` when there is one of that name.
    pub async fn create<K: Kind>(&self, name: &str, spec: &K::Spec) -> Result<Resource<K>, ApiError> {
        self.one(Operation::create::<K>(name, spec, None)?).await
    }

    /// Replaces a spec, if the resource has not changed since it was read.
    ///
    /// # Errors
    /// `Conflict` when it has; read it again then.
    pub async fn update_spec<K: Kind>(&self, read: &Resource<K>, spec: &K::Spec) -> Result<Resource<K>, ApiError> {
        self.one(Operation::update_spec(read, spec)?).await
    }

    /// Replaces a status, if the resource has not changed since it was read.
    ///
    /// # Errors
    /// `Conflict` when it has; read it again then.
    pub async fn update_status<K: Kind>(
        &self,
        read: &Resource<K>,
        status: &K::Status,
    ) -> Result<Resource<K>, ApiError> {
        self.one(Operation::update_status(read, status)?).await
    }

    /// Deletes a resource, whatever its revision.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn delete<K: Kind>(&self, name: &str) -> Result<(), ApiError> {
        self.transact(vec![Operation::delete::<K>(name)]).await.map(|_| ())
    }

    /// Changes a spec by `change`, again and again until no one else wrote in between. When `change` returns false,
    /// nothing is written.
    ///
    /// # Errors
    /// `NotFound` when there is no such resource.
    pub async fn modify_spec<K: Kind>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut K::Spec) -> bool,
    ) -> Result<Resource<K>, ApiError> {
        loop {
            let read = self.get::<K>(name).await?;
            let mut spec = read.spec.clone();
            if !change(&mut spec) {
                return Ok(read);
            }
            match self.update_spec(&read, &spec).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                other => return other,
            }
        }
    }

    /// Changes a status by `change`, again and again until no one else wrote in between. When `change` returns false,
    /// nothing is written.
    ///
    /// # Errors
    /// `NotFound` when there is no such resource.
    pub async fn modify_status<K: Kind>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut K::Status) -> bool,
    ) -> Result<Resource<K>, ApiError> {
        loop {
            let read = self.get::<K>(name).await?;
            let mut status = read.status.clone();
            if !change(&mut status) {
                return Ok(read);
            }
            match self.update_status(&read, &status).await {
                Err(error) if error.kind == ErrorKind::Conflict => {}
                other => return other,
            }
        }
    }

    /// Tells every change of the `kinds` after revision `from`, without gaps.
    ///
    /// # Errors
    /// `Gone` when `from` is so old that changes after it are forgotten: list again and watch from there.
    pub async fn watch(&self, kinds: &[&str], from: u64) -> Result<Watch, ApiError> {
        let response =
            self.send(Method::GET, &format!("/v1/watch?kinds={}&from={from}", kinds.join(",")), None).await?;
        Ok(Watch { body: response.into_body(), buffer: Vec::new() })
    }

    async fn one<K: Kind>(&self, operation: Operation) -> Result<Resource<K>, ApiError> {
        let mut result = self.transact(vec![operation]).await?;
        let item = result.items.pop().flatten().unwrap_or_default();
        serde_json::from_value(item)
            .map_err(|e| ApiError::new(ErrorKind::Internal, format!("cannot decode a {}: {e}", K::NAME)))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ApiError> {
        let response = self.send(method, path, body).await?;
        let bytes = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| {
            ApiError::new(ErrorKind::Internal, format!("cannot decode the state engine's answer to {path}: {e}"))
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Response<Incoming>, ApiError> {
        let stream = self.connect().await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.unreachable(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "macro")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| ApiError::new(ErrorKind::Invalid, format!("cannot ask the state engine for {path}: {e}")))?;
        let response = sender.send_request(request).await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            ApiError::new(ErrorKind::from_status(status), format!("the state engine answered {status} to {path}"))
        }))
    }

    /// Connects; a state engine that is starting again is waited for, as nothing has been asked of it yet.
    async fn connect(&self) -> std::io::Result<UnixStream> {
        let until = Instant::now() + RESTART;
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound)
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                other => return other,
            }
        }
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> ApiError {
        ApiError::new(
            ErrorKind::Unavailable,
            format!("cannot reach the state engine at {}: {error}", self.socket.display()),
        )
    }
}

/// A watch that is under way; dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next transaction's changes; none when the state engine has closed the stream (it restarts): watch again from
    /// the last ones' revision.
    ///
    /// # Errors
    /// `Unavailable` when the stream broke.
    pub async fn next(&mut self) -> Result<Option<Changes>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| ApiError::new(ErrorKind::Internal, format!("cannot decode what a watch tells: {e}")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(ApiError::new(ErrorKind::Unavailable, format!("a watch broke off: {error}")));
                }
            }
        }
    }
}
