//! Who we are to a registry: `X-Registry-Auth`, and the answer to `WWW-Authenticate` (Docker's token authentication).

use crate::fail::{Result, invalid};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;
use std::fmt;

/// What a client gave us for one request; never stored.
#[derive(Clone, Default, Deserialize)]
pub struct Credentials {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    /// A refresh token, instead of a password.
    #[serde(default, alias = "identityToken")]
    pub identitytoken: String,
    /// A bearer token, instead of asking for one.
    #[serde(default, alias = "registryToken")]
    pub registrytoken: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Reads the header `X-Registry-Auth`: JSON in URL-safe base64. An empty one means nobody.
    ///
    /// # Errors
    /// `Invalid` when it is something else.
    pub fn from_header(header: &str) -> Result<Self> {
        if header.is_empty() {
            return Ok(Self::default());
        }
        let bad = || invalid("the header X-Registry-Auth is not JSON in base64");
        let bytes = URL_SAFE
            .decode(header)
            .or_else(|_| URL_SAFE_NO_PAD.decode(header.trim_end_matches('=')))
            .or_else(|_| STANDARD.decode(header))
            .map_err(|_| bad())?;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut read: Option<Self> = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let mut credentials = read.take().unwrap_or_default();
        if credentials.username.is_empty() && !credentials.auth.is_empty() {
            let decoded = STANDARD.decode(&credentials.auth).map_err(|_| bad())?;
            let text = String::from_utf8(decoded).map_err(|_| bad())?;
            let (user, password) = text.split_once(':').ok_or_else(bad)?;
            (credentials.username, credentials.password) = (user.to_owned(), password.to_owned());
        }
        Ok(credentials)
    }

    /// The header `Authorization` with name and password, if there are any.
    pub fn basic(&self) -> Option<String> {
        let pair = format!("{}:{}", self.username, self.password);
        (!self.username.is_empty()).then(|| format!("Basic {}", STANDARD.encode(pair)))
    }

    /// The account's name.
    pub fn username(&self) -> &str {
        &self.username
    }
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token.
    Bearer {
        /// Where to get it.
        realm: String,
        /// For whom.
        service: String,
        /// For what; empty when the registry does not say.
        scope: String,
    },
}

impl Challenge {
    /// Reads a header `WWW-Authenticate` (RFC 9110, 11.6.1).
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |name: &str| parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        Some(Self::Bearer {
            realm: get("realm")?,
            service: get("service").unwrap_or_default(),
            scope: get("scope").unwrap_or_default(),
        })
    }
}

/// `a="b,c", d=e`; commas in quotes belong to the value.
fn parameters(text: &str) -> Vec<(String, String)> {
    let (mut found, mut name, mut value, mut in_value, mut quoted) =
        (Vec::new(), String::new(), String::new(), false, false);
    for c in text.chars().chain([',']) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                if in_value {
                    found.push((name.trim().to_owned(), std::mem::take(&mut value)));
                }
                name.clear();
                in_value = false;
            }
            '=' if !in_value => in_value = true,
            c if in_value => value.push(c),
            c => name.push(c),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_commas_in_quotes() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: "registry.example".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Bearer service=x"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn credentials_come_as_base64_json_and_do_not_show_in_logs() {
        let header = URL_SAFE.encode(r#"{"username":"me","password":"se>cret?"}"#);
        let c = Credentials::from_header(&header).unwrap();
        assert_eq!(c.basic().unwrap(), format!("Basic {}", STANDARD.encode("me:se>cret?")));
        assert!(!format!("{c:?}").contains("cret"));
        assert!(Credentials::from_header(&URL_SAFE.encode("{}")).unwrap().basic().is_none());
        assert!(Credentials::from_header(&URL_SAFE.encode("null")).is_ok());
        assert!(Credentials::from_header("!!").is_err());
    }
}
