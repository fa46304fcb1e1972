//! Requests about one repository of one registry: authorization is got when the registry asks for it, redirects of blobs
//! are followed without it.

use super::auth::{Challenge, Credentials};
use super::transport::{RequestBody, Transport, full, read};
use crate::fail::{Result, internal, invalid};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Response, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::sync::{Arc, Mutex, PoisonError};
use zone::{ApiError, ErrorKind};

const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN: u64 = 1 << 20;
const MAX_ERROR: u64 = 64 << 10;

/// One repository.
#[derive(Debug)]
pub struct Session {
    transport: Arc<Transport>,
    /// The registry's address, `https://HOST`.
    pub base: String,
    /// The repository's name.
    pub repository: String,
    credentials: Credentials,
    authorization: Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default, alias = "access_token")]
    token: String,
}

impl Session {
    /// Requests to the registry at `base`, `https://HOST`.
    pub fn new(transport: Arc<Transport>, base: String, repository: String, credentials: Credentials) -> Self {
        let bearer = (!credentials.registrytoken.is_empty()).then(|| format!("Bearer {}", credentials.registrytoken));
        Self { transport, base, repository, credentials, authorization: Mutex::new(bearer) }
    }

    /// The same registry, with no repository in particular.
    #[must_use]
    pub fn without_repository(mut self) -> Self {
        self.repository.clear();
        self
    }

    /// The address that answers anybody whom the registry knows.
    ///
    /// # Errors
    /// `Invalid` when it makes no address.
    pub fn root(&self) -> Result<Uri> {
        parse_uri(&format!("{}/v2/", self.base))
    }

    /// The address of something in the repository, `manifests/latest`.
    ///
    /// # Errors
    /// `Invalid` when it makes no address.
    pub fn uri(&self, rest: &str) -> Result<Uri> {
        parse_uri(&format!("{}/v2/{}/{rest}", self.base, self.repository))
    }

    /// An address that the registry gave in `Location`, which may be without a host.
    ///
    /// # Errors
    /// `Invalid` when it makes no address.
    pub fn location(&self, from: &Uri, response: &Response<Incoming>) -> Result<Uri> {
        let value = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        let location = value.ok_or_else(|| internal(format!("the registry gave no Location for {from}")))?;
        if location.starts_with('/') {
            let (scheme, authority) =
                (from.scheme_str().unwrap_or("https"), from.authority().map(ToString::to_string).unwrap_or_default());
            return parse_uri(&format!("{scheme}://{authority}{location}"));
        }
        let uri = parse_uri(location)?;
        // A registry with TLS cannot send us, and what we push, somewhere without.
        if uri.scheme_str() == Some("http") && from.scheme_str() == Some("https") {
            return Err(invalid(format!("the registry redirects from https to {uri}")));
        }
        Ok(uri)
    }

    /// Sends a request without a body, or with one in memory, as often as authorization and redirects ask for.
    ///
    /// # Errors
    /// `Unavailable`; any answer but 401 is the caller's to judge.
    pub async fn call(&self, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Result<Response<Incoming>> {
        let (mut uri, mut authorized, mut redirects) = (uri, false, 0);
        loop {
            let response = self.once(method.clone(), &uri, headers.clone(), full(body.clone())).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !authorized && self.is_ours(&uri) {
                authorized = true;
                self.authorize(&response, &method).await?;
            } else if status.is_redirection()
                && (method == Method::GET || method == Method::HEAD)
                && redirects < MAX_REDIRECTS
            {
                redirects += 1;
                uri = self.location(&uri, &response)?;
            } else {
                return Ok(response);
            }
        }
    }

    /// Sends one request with the authorization that we have.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn once(
        &self,
        method: Method,
        uri: &Uri,
        mut headers: HeaderMap,
        body: RequestBody,
    ) -> Result<Response<Incoming>> {
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(value) = authorization.filter(|_| self.is_ours(uri)) {
            headers.insert(
                header::AUTHORIZATION,
                HeaderValue::from_str(&value).map_err(|_| internal("a registry's token is malformed"))?,
            );
        }
        self.transport.send(method, uri, headers, body).await
    }

    /// Authorization goes to the registry alone, not to where it redirects.
    fn is_ours(&self, uri: &Uri) -> bool {
        let base: Option<Uri> = self.base.parse().ok();
        base.is_some_and(|b| b.authority() == uri.authority() && b.scheme() == uri.scheme())
    }

    async fn authorize(&self, response: &Response<Incoming>, method: &Method) -> Result<()> {
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = headers.iter().filter_map(|v| Challenge::parse(v.to_str().ok()?)).next();
        let value = match challenge {
            Some(Challenge::Basic) => self.credentials.basic(),
            Some(Challenge::Bearer { realm, service, scope }) => {
                Some(self.token(&realm, &service, &scope, method).await?)
            }
            None => None,
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    async fn token(&self, realm: &str, service: &str, scope: &str, method: &Method) -> Result<String> {
        let as_safe =
            realm.starts_with("https://") || (realm.starts_with("http://") && self.base.starts_with("http://"));
        if !as_safe {
            return Err(invalid(format!("the registry wants credentials sent to {realm:.200}, which is not https")));
        }
        let actions = if *method == Method::GET || *method == Method::HEAD { "pull" } else { "pull,push" };
        let encode = |s: &str| utf8_percent_encode(s, NON_ALPHANUMERIC).to_string();
        let mut query = format!("service={}", encode(service));
        match (scope, self.repository.as_str()) {
            ("", "") => {}
            ("", repository) => query += &format!("&scope={}", encode(&format!("repository:{repository}:{actions}"))),
            (scope, _) => query += &format!("&scope={}", encode(scope)),
        }
        let mut headers = HeaderMap::new();
        let (method, uri, body) = if self.credentials.identitytoken.is_empty() {
            if let Some(basic) = self.credentials.basic() {
                query += &format!("&account={}", encode(self.credentials.username()));
                headers.insert(
                    header::AUTHORIZATION,
                    HeaderValue::from_str(&basic).map_err(|_| invalid("the credentials are malformed"))?,
                );
            }
            let separator = if realm.contains('?') { '&' } else { '?' };
            (Method::GET, format!("{realm}{separator}{query}"), Bytes::new())
        } else {
            query += &format!(
                "&grant_type=refresh_token&client_id=kraud&refresh_token={}",
                encode(&self.credentials.identitytoken)
            );
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            (Method::POST, realm.to_owned(), Bytes::from(query))
        };
        let response = self.transport.send(method, &parse_uri(&uri)?, headers, full(body)).await?;
        if !response.status().is_success() {
            return Err(failure("cannot log in", response).await);
        }
        let token: Token = serde_json::from_slice(&read(response.into_body(), MAX_TOKEN).await?)
            .map_err(|e| internal(format!("cannot read the token of {realm:.200}: {e}")))?;
        Ok(format!("Bearer {}", token.token))
    }
}

fn parse_uri(text: &str) -> Result<Uri> {
    text.parse().map_err(|e| invalid(format!("{text:.300} is no address: {e}")))
}

/// An answer that is an error, as ours, with the registry's own words.
pub async fn failure(what: &str, response: Response<Incoming>) -> ApiError {
    let status = response.status();
    let kind = match status.as_u16() {
        401 | 403 => ErrorKind::Forbidden,
        404 => ErrorKind::NotFound,
        413 => ErrorKind::TooLarge,
        429 | 500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let body = read(response.into_body(), MAX_ERROR).await.unwrap_or_default();
    let words = words_of(&body).unwrap_or_else(|| status.to_string());
    ApiError::new(kind, format!("{what}: {words}"))
}

/// `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}` as Docker words it.
fn words_of(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = json.get("errors")?.get(0)?;
    let code = error["code"].as_str().unwrap_or_default().to_ascii_lowercase().replace('_', " ");
    Some(format!("{code}: {}", error["message"].as_str().unwrap_or(&code)))
}
