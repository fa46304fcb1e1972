//! Serving connections, whichever door they came through: limits, who the client is, what it may do, the audit log.
//!
//! ```text
//! unix socket ── uid ──────────┐
//! TLS ── certificate ──────────┼─> Client {who, scope} ─> router of that scope ─> guard ─> handler
//! a pod's docker.sock ── pod ──┘
//! ```
//! Invariant: a request is handled by an [`App`] of its client's scope, which shows nothing else.

use crate::access::Scope;
use crate::certificate::Certificate;
use crate::{App, audit};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use daemon::tls::TlsListener;
use hyper::body::{Frame, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::Sleep;

/// How many connections a door serves at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 2048;
/// How long a client may take for a request's head, and keep a connection that it does not use. Docker Engine's own value.
const HEAD: Duration = Duration::from_secs(300);
/// How long a client may take for the next piece of a body.
const PIECE: Duration = Duration::from_secs(300);
/// The longest head.
const MAX_HEAD: usize = 128 * 1024;
/// The most header lines.
const MAX_HEADERS: usize = 128;
/// Scopes whose routers are kept.
const ROUTERS: usize = 256;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// What the audit log calls it.
    pub who: String,
    /// Where it comes from.
    pub peer: String,
    /// What it may see and do.
    pub scope: Scope,
    /// What it showed at the network's door: looked at again with each request, as it may be taken back meanwhile.
    pub certificate: Option<Arc<Certificate>>,
}

impl Client {
    /// Who a certificate of the zone's authority lets in.
    ///
    /// # Errors
    /// What about it is unknown.
    fn certified(der: &[u8], peer: String) -> Result<Self, String> {
        let certificate = Certificate::read(der)?;
        let scope = certificate.scope();
        Ok(Self {
            who: format!("tls:{}", certificate.holder.name),
            peer,
            scope,
            certificate: Some(Arc::new(certificate)),
        })
    }
}

/// All doors.
#[derive(Debug)]
pub struct Doors {
    /// The zone, as its owner sees it.
    pub app: Arc<App>,
    routers: Mutex<HashMap<Scope, Router>>,
}

impl Doors {
    /// Doors to `app`.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, routers: Mutex::default() }
    }

    fn router(&self, scope: &Scope) -> Router {
        let mut routers = self.routers.lock().unwrap_or_else(PoisonError::into_inner);
        if routers.len() >= ROUTERS {
            routers.clear();
        }
        routers.entry(scope.clone()).or_insert_with(|| crate::router(Arc::new(self.app.scoped(scope.clone())))).clone()
    }

    /// Serves this machine's own users, without end: who may open the socket is the zone's owner.
    pub async fn unix(self: Arc<Self>, listener: UnixListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let uid = stream.peer_cred().map_or_else(|_| "?".into(), |c| c.uid().to_string());
            let client =
                Client { who: format!("uid:{uid}"), peer: "unix".into(), scope: Scope::default(), certificate: None };
            let doors = self.clone();
            tokio::spawn(async move {
                doors.connection(stream, client).await;
                drop(slot);
            });
        }
    }

    /// Serves the network, without end.
    pub async fn tls(self: Arc<Self>, mut listener: TlsListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (stream, peer) = listener.accept().await;
            let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let client = match Client::certified(shown.map(AsRef::as_ref).unwrap_or_default(), peer.ip().to_string()) {
                Ok(client) => client,
                Err(why) => {
                    tracing::warn!(%peer, why, "a certificate of the zone's authority is not understood");
                    continue;
                }
            };
            let doors = self.clone();
            tokio::spawn(async move {
                doors.connection(stream, client).await;
                drop(slot);
            });
        }
    }

    /// Serves one connection until it ends.
    pub async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, client: Client) {
        let router = self.router(&client.scope).layer(axum::Extension(client));
        let service = hyper_util::service::TowerToHyperService::new(router);
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}

/// Checks what a request wants to do, and notes it.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request = request.map(|body| Body::new(Patient { body, alarm: None }));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let client = request.extensions().get::<Client>().cloned();
    let certificate = client.as_ref().and_then(|client| client.certificate.as_ref());
    let counts = certificate.map_or(Ok(()), |certificate| certificate.check(&app.store.world()));
    let response = match counts.and_then(|()| app.scope.check(&method, &path)) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    let (who, peer) = client.as_ref().map_or(("?", "?"), |c| (c.who.as_str(), c.peer.as_str()));
    audit::note(&audit::Entry {
        who,
        peer,
        project: app.scope.project().unwrap_or_default(),
        method: method.as_str(),
        path: &path,
        status: response.status().as_u16(),
        took: began.elapsed(),
    });
    response
}

/// A body whose sender may not keep us waiting for ever.
struct Patient {
    body: Body,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Patient {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, axum::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.alarm = None;
            return Poll::Ready(frame);
        }
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(PIECE)));
        ready!(alarm.as_mut().poll(context));
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "the client sent nothing for five minutes");
        Poll::Ready(Some(Err(axum::Error::new(error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(scope: Scope, request: &str) -> String {
        let doors = Doors::new(Arc::new(crate::tests::app()));
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let who = Client { who: "test".into(), peer: "test".into(), scope, certificate: None };
        let served = tokio::spawn(async move { doors.connection(server, who).await });
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        served.await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn a_readers_write_is_refused_with_the_reason_under_any_version() {
        let reader = Scope { project: None, read_only: true };
        let post = "POST /v1.44/containers/x/start HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n";
        let answer = ask(reader, post).await;
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("may only look"), "{answer}");
        let answer = ask(Scope::default(), post).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("No such container: x"), "{answer}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_or_has_too_many_lines_is_answered_with_431() {
        let head = |lines: String| format!("GET /_ping HTTP/1.1\r\nhost: d\r\nconnection: close\r\n{lines}\r\n");
        let within = (0..MAX_HEADERS - 2).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
        assert!(ask(Scope::default(), &head(within)).await.starts_with("HTTP/1.1 200 "));
        let many = (0..MAX_HEADERS).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
        let long = format!("x: {}\r\n", "y".repeat(2 * MAX_HEAD));
        for lines in [many, long] {
            let answer = ask(Scope::default(), &head(lines)).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_head_or_no_body_is_let_go() {
        assert_eq!(ask(Scope::default(), "GET /_ping HT").await, "");
        let half = "POST /containers/create HTTP/1.1\r\nhost: d\r\ncontent-length: 10\r\n\r\n{";
        let answer = ask(Scope::default(), half).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}
