//! JSON bodies, read as Docker reads them: what may be absent, and what is said of those that are wrong.

use crate::errors::{Failure, Result};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

/// The body as JSON; nothing when there is none.
///
/// # Errors
/// 400 when it is something else than JSON, says that it is, or goes on behind it.
pub fn json<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<Option<T>> {
    let kind = headers.get(header::CONTENT_TYPE).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let kind = kind.unwrap_or_default();
    if kind.is_empty() && body.is_empty() {
        return Ok(None);
    }
    if kind.is_empty() {
        return Err(Failure::invalid("malformed Content-Type header (): mime: no media type"));
    }
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Failure::invalid(format!("unsupported Content-Type header ({kind}): must be 'application/json'")));
    }
    if body.is_empty() {
        return Ok(None);
    }
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<T>();
    let first = match values.next() {
        Some(Ok(first)) => first,
        Some(Err(error)) if error.is_eof() => return Err(Failure::invalid("invalid JSON: unexpected EOF")),
        Some(Err(error)) => return Err(Failure::invalid(format!("invalid JSON: {error}"))),
        None => return Err(Failure::invalid("invalid JSON: got EOF while reading request body")),
    };
    if body[values.byte_offset()..].iter().any(|b| !b.is_ascii_whitespace()) {
        return Err(Failure::invalid("unexpected content after JSON"));
    }
    Ok(Some(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn bodies_are_refused_in_dockers_words() {
        let read = |kind: &str, body: &str| {
            let mut headers = HeaderMap::new();
            if !kind.is_empty() {
                headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            }
            json::<Value>(&headers, body.as_bytes()).map_err(|f| f.message)
        };
        assert_eq!(read("", ""), Ok(None));
        assert_eq!(read("application/json", ""), Ok(None));
        assert_eq!(read("application/json; charset=utf-8", " {} \n"), Ok(Some(serde_json::json!({}))));
        assert_eq!(read("", "{}").unwrap_err(), "malformed Content-Type header (): mime: no media type");
        assert_eq!(read("application/json", "{").unwrap_err(), "invalid JSON: unexpected EOF");
        assert_eq!(read("application/json", "{} {}").unwrap_err(), "unexpected content after JSON");
        assert!(read("text/plain", "{}").unwrap_err().starts_with("unsupported Content-Type header (text/plain)"));
    }
}
