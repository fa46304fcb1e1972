//! Every path of the site, and who may have it.

use crate::live::{self, Part};
use crate::node::Node;
use crate::session::Sessions;
use crate::view::Model;
use crate::{access, logs, volume};
use askama::Template;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use zone::client::Client;

/// What all pages share.
#[derive(Clone, Debug)]
pub struct Site {
    /// What is shown.
    pub model: Model,
    /// The state engine, to ask for a rollback and to take certificates back.
    pub client: Client,
    /// The pods' folder, for their logs.
    pub logs: PathBuf,
    /// Who knows the pairing code and gives out certificates.
    pub node: Node,
    sessions: Arc<Sessions>,
    secure: bool,
}

impl Site {
    /// `secure`: the page is served over TLS, so cookies may be bound to it.
    pub fn new(client: Client, node: Node, logs: PathBuf, sessions: Sessions, secure: bool) -> Self {
        Self { model: Model::follow(&client), client, logs, node, sessions: Arc::new(sessions), secure }
    }

    fn cookie_name(&self) -> &'static str {
        if self.secure { "__Host-session" } else { "session" }
    }

    fn token(&self, headers: &HeaderMap) -> Option<String> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(';'));
        let name = self.cookie_name();
        cookies.filter_map(|c| c.trim().split_once('=')).find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
    }

    /// Whether the request is a session's.
    pub fn is_logged_in(&self, headers: &HeaderMap) -> bool {
        self.token(headers).is_some_and(|token| self.sessions.is_valid(&token))
    }

    fn cookie(&self, token: &str, rest: &str) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{}={token}; Path=/; HttpOnly; SameSite=Strict{secure}{rest}", self.cookie_name())
    }
}

/// Every path.
pub fn router(site: Site) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/live", get(live_events))
        .route("/access", get(access::show))
        .route("/access/take-back", post(access::take_back))
        .route("/client-bundle", post(access::client_bundle))
        .route("/volume/{name}", get(volume::show))
        .route("/volume/{name}/rollback", post(volume::rollback))
        .route("/logs/{id}", get(logs::show))
        .route("/style.css", get(|| async { asset("text/css", include_str!("../assets/style.css")) }))
        .route("/live.js", get(|| async { asset("text/javascript", include_str!("../assets/live.js")) }))
        .route("/icon.svg", get(|| async { asset("image/svg+xml", include_str!("../assets/icon.svg")) }))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(DefaultBodyLimit::max(16 * 1024))
        .layer(middleware::from_fn(guard))
        .with_state(site)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, "public, max-age=300")], text).into_response()
}

/// Sets the headers that keep a page to itself, and refuses requests that another site's page makes.
async fn guard(request: Request, next: Next) -> Response {
    let changes = request.method() != "GET" && request.method() != "HEAD";
    let site = request.headers().get("sec-fetch-site").and_then(|v| v.to_str().ok());
    if changes && site.is_some_and(|s| s != "same-origin" && s != "none") {
        return (StatusCode::FORBIDDEN, "this form can only be sent from its own page").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                  form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    headers.insert("content-security-policy", HeaderValue::from_static(policy));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    hostname: String,
    error: Option<String>,
}

#[derive(Template)]
#[template(path = "home.html")]
struct HomePage {
    hostname: String,
    parts: [String; Part::ALL.len()],
    error: Option<String>,
}

/// A page of its own.
pub fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot render a page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The machine's name.
pub fn hostname(site: &Site) -> String {
    let name = site.model.summary().hostname;
    if name.is_empty() { "kraudbox".to_owned() } else { name }
}

/// The page that asks for the pairing code.
pub fn login_page(site: &Site, status: StatusCode, error: Option<String>) -> Response {
    page(status, &LoginPage { hostname: hostname(site), error })
}

/// The live page.
pub fn home_page(site: &Site, status: StatusCode, error: Option<String>) -> Response {
    let parts = Part::ALL.map(|part| part.render(&site.model));
    page(status, &HomePage { hostname: hostname(site), parts, error })
}

async fn home(State(site): State<Site>, headers: HeaderMap) -> Response {
    if site.is_logged_in(&headers) {
        home_page(&site, StatusCode::OK, None)
    } else {
        login_page(&site, StatusCode::OK, None)
    }
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

async fn login(State(site): State<Site>, Form(form): Form<Code>) -> Response {
    if let Err(error) = site.node.pair(form.code.trim()).await {
        let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::FORBIDDEN);
        return login_page(&site, status, Some(error.message));
    }
    match site.sessions.begin() {
        Ok(token) => {
            let cookie = site.cookie(&token, "; Max-Age=2592000");
            (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, "/".to_owned())]).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "cannot begin a session");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn logout(State(site): State<Site>, headers: HeaderMap) -> Response {
    if let Some(token) = site.token(&headers) {
        site.sessions.end(&token);
    }
    let gone = site.cookie("", "; Max-Age=0");
    (StatusCode::SEE_OTHER, [(SET_COOKIE, gone), (LOCATION, "/".to_owned())]).into_response()
}

async fn live_events(State(site): State<Site>, headers: HeaderMap) -> Response {
    if !site.is_logged_in(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Sse::new(live::stream(site.model)).keep_alive(KeepAlive::default()).into_response()
}
