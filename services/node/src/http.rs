//! `node`'s interface: the pairing code for root, client bundles and the page's login for who knows the code.

use crate::pairing::{Pairing, Refused};
use crate::pki::Authority;
use anyhow::Result;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::Deserialize;
use std::sync::Arc;
use tokio::net::UnixListener;
use zone::access::Holder;
use zone::{ApiError, ErrorKind};

/// A code and nothing else.
const MAX_BODY: usize = 4096;

/// What the interface answers from.
pub struct Door {
    /// The pairing code.
    pub pairing: Pairing,
    /// The authority.
    pub authority: Authority,
}

/// The user at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|c| c.uid()))
    }
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

/// The interface; serve it with connect info.
pub fn router(door: Arc<Door>) -> Router {
    Router::new()
        .route("/pairing-code", get(pairing_code))
        .route("/client-bundle", post(client_bundle))
        .route("/pair", post(pair))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(door)
}

fn refuse(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(error)).into_response()
}

async fn check(door: &Door, code: &str) -> Result<(), ApiError> {
    door.pairing.check(code).await.map_err(|refused| match refused {
        Refused::Wrong => {
            ApiError::new(ErrorKind::Forbidden, "the pairing code is wrong: it stands on the machine's console")
        }
        Refused::Busy => {
            ApiError::new(ErrorKind::Unavailable, "too many try to pair at the same time: try again in a minute")
        }
    })
}

async fn pairing_code(ConnectInfo(Peer(uid)): ConnectInfo<Peer>, State(door): State<Arc<Door>>) -> Response {
    if uid != Some(0) {
        return refuse(&ApiError::new(ErrorKind::Forbidden, "only root may read the pairing code"));
    }
    door.pairing.code().to_owned().into_response()
}

async fn pair(State(door): State<Arc<Door>>, Json(Code { code }): Json<Code>) -> Response {
    match check(&door, &code).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refuse(&error),
    }
}

/// Whose certificate is wanted; an owner's, when nothing is said.
#[derive(Deserialize)]
struct Wanted {
    code: String,
    #[serde(default)]
    holder: Option<Holder>,
}

async fn client_bundle(State(door): State<Arc<Door>>, Json(wanted): Json<Wanted>) -> Response {
    let holder = wanted.holder.unwrap_or_else(|| Holder { name: "owner".into(), ..Holder::default() });
    if let Err(why) = holder.check() {
        return refuse(&ApiError::new(ErrorKind::Invalid, why));
    }
    if let Err(error) = check(&door, &wanted.code).await {
        return refuse(&error);
    }
    match bundle(&door.authority, &holder) {
        Ok(tar) => ([(header::CONTENT_TYPE, "application/x-tar")], tar).into_response(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot make a client bundle");
            refuse(&ApiError::new(ErrorKind::Internal, "cannot make a client's certificate: the journal says why"))
        }
    }
}

/// A tar archive with a new client's certificate and key, and the authority's certificate.
fn bundle(authority: &Authority, holder: &Holder) -> Result<Vec<u8>> {
    let now = zone::time::believable_now_s();
    tracing::info!(name = holder.name, role = holder.role.as_str(), project = ?holder.project, "a client's certificate is issued");
    let pair = authority.issue_client(holder, now)?;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode, text) in
        [("ca.pem", 0o644, authority.ca_pem()), ("cert.pem", 0o644, &pair.cert), ("key.pem", 0o600, &pair.key)]
    {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        header.set_mtime(now);
        tar.append_data(&mut header, name, text.as_bytes())?;
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
