//! `POST /auth`: the content store asks the registry whether it takes name and password.

use crate::App;
use crate::agent;
use crate::errors::{Failure, Result};
use crate::proxy::{encode, to_images};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use base64::Engine as _;
use serde_json::{Value, json};
use std::sync::Arc;

/// `POST /auth`.
///
/// # Errors
/// 401 when the registry does not take them, 503 when it cannot be reached.
pub async fn login(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Value>> {
    let login: Value = serde_json::from_slice(&body).map_err(|e| {
        let why = if e.is_eof() { "unexpected EOF".into() } else { e.to_string() };
        Failure::invalid(why)
    })?;
    if !login.is_object() {
        return Err(Failure::invalid("a login is wanted"));
    }
    let credentials = base64::engine::general_purpose::URL_SAFE.encode(login.to_string());
    let mut headers = HeaderMap::new();
    let header = HeaderValue::from_str(&credentials).map_err(|_| Failure::invalid("the login cannot be passed on"))?;
    headers.insert("x-registry-auth", header);
    let registry = encode(login["serveraddress"].as_str().unwrap_or_default());
    let answer = to_images(&app, "POST", &format!("/login?registry={registry}"), &headers, Body::empty()).await?;
    match answer.status() {
        status if status.is_success() => Ok(Json(json!({"Status": "Login Succeeded", "IdentityToken": ""}))),
        status => {
            let message = agent::json(answer).await["message"].as_str().unwrap_or_default().to_owned();
            let status = if status == StatusCode::FORBIDDEN { StatusCode::UNAUTHORIZED } else { status };
            Err(Failure { status, message })
        }
    }
}
