//! Query parameters and filters.
//!
//! Filters come as JSON in two shapes, `{"label":["a"]}` and `{"label":{"a":true}}`; both are read into one.

use crate::errors::{Failure, Result};
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use std::collections::BTreeMap;

/// A request's query parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Params(pub Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|e| Failure::invalid(format!("invalid query: {e}")))
    }
}

impl Params {
    /// The first value of `name`; none when it is absent or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` is true, as Docker reads it.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(is_true)
    }

    /// Whether `name` is true; `default` when it is absent.
    #[must_use]
    pub fn flag_or(&self, name: &str, default: bool) -> bool {
        self.get(name).map_or(default, is_true)
    }

    /// A number.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn number(&self, name: &str) -> Result<Option<i64>> {
        self.get(name)
            .map(|v| v.parse().map_err(|_| Failure::invalid(format!("strconv.Atoi: parsing \"{v}\": invalid syntax"))))
            .transpose()
    }

    /// The filters, whatever they are.
    ///
    /// # Errors
    /// 400 when they are not JSON.
    pub fn any_filters(&self) -> Result<Filters> {
        self.get("filters").map_or(Ok(Filters::default()), Filters::parse)
    }

    /// The filters.
    ///
    /// # Errors
    /// 400 when they are not JSON, or one is not in `allowed`.
    pub fn filters(&self, allowed: &[&str]) -> Result<Filters> {
        let filters = self.any_filters()?;
        match filters.0.keys().find(|key| !allowed.contains(&key.as_str())) {
            Some(unknown) => Err(Failure::invalid(format!("invalid filter '{unknown}'"))),
            None => Ok(filters),
        }
    }
}

fn is_true(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// What a list or prune is limited to.
#[derive(Clone, Debug, Default)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    fn parse(text: &str) -> Result<Self> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Values {
            List(Vec<String>),
            Map(BTreeMap<String, bool>),
        }
        let raw: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|_| Failure::invalid("invalid filter"))?;
        Ok(Self(
            raw.into_iter()
                .map(|(key, values)| match values {
                    Values::List(list) => (key, list),
                    Values::Map(map) => (key, map.into_iter().filter(|(_, on)| *on).map(|(v, _)| v).collect()),
                })
                .collect(),
        ))
    }

    /// The values of a filter; empty when it is absent.
    #[must_use]
    pub fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether the filter is absent, or one of its values satisfies `test`.
    pub fn any(&self, name: &str, test: impl FnMut(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().map(String::as_str).any(test)
    }

    /// The one truth value of a filter.
    ///
    /// # Errors
    /// 400 when it is neither true nor false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.values(name) {
            [] => Ok(None),
            values if values.iter().all(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "t")) => {
                Ok(Some(true))
            }
            values if values.iter().all(|v| matches!(v.to_ascii_lowercase().as_str(), "0" | "false" | "f")) => {
                Ok(Some(false))
            }
            values => Err(Failure::invalid(format!("invalid filter '{name}=[{}]'", values.join(" ")))),
        }
    }

    /// Whether all `label` filters (`key`, `key=value`) hold, and no `label!` does.
    pub fn labels(&self, get: impl Fn(&str) -> Option<String>) -> bool {
        let holds = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => get(key).is_some_and(|v| v == value),
            None => get(wanted).is_some(),
        };
        self.values("label").iter().all(holds) && !self.values("label!").iter().any(holds)
    }

    /// The time in `until`, nanoseconds since the epoch: what was made before it is meant.
    ///
    /// # Errors
    /// 400 when it is no time.
    pub fn until(&self) -> Result<Option<u64>> {
        self.values("until").first().map(|v| parse_time(v)).transpose()
    }
}

/// A time as `logs` and `events` take it; the same as [`parse_time`], but for what is said of a wrong one.
///
/// # Errors
/// 400 when it is none.
pub fn stream_time(text: &str) -> Result<u64> {
    parse_time(text).map_err(|_| Failure::invalid(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))
}

/// A time as clients write it: seconds with a fraction, RFC 3339, or how long ago (`10m`, `1h30m`).
///
/// # Errors
/// 400 when it is none of these.
pub fn parse_time(text: &str) -> Result<u64> {
    let wrong = || Failure::invalid(format!("failed to parse value as time or duration: \"{text}\""));
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanos: u64 = fraction.parse().map_err(|_| wrong())?;
        // A time that is farther off than can be said is as far off as can be said.
        return Ok(whole.saturating_mul(1_000_000_000).saturating_add(nanos));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(time.as_nanosecond()).map_err(|_| wrong());
    }
    if let Ok(date) = text.parse::<jiff::civil::DateTime>()
        && let Ok(zoned) = date.to_zoned(jiff::tz::TimeZone::UTC)
    {
        return u64::try_from(zoned.timestamp().as_nanosecond()).map_err(|_| wrong());
    }
    let ago = duration_ns(text).ok_or_else(wrong)?;
    Ok(zone::time::now_ns().saturating_sub(ago))
}

/// A duration in Go's spelling, `1h30m`, `500ms`.
fn duration_ns(text: &str) -> Option<u64> {
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    // Saturates for absurd durations, which is what is wanted.
    (total > 0.0).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_filters_are_read() {
        for text in [r#"{"label":["a=b"]}"#, r#"{"label":{"a=b":true,"c":false}}"#] {
            assert_eq!(Filters::parse(text).unwrap().values("label"), ["a=b"]);
        }
        let params = Params(vec![("filters".into(), r#"{"x":["1"]}"#.into())]);
        assert_eq!(params.filters(&["label"]).unwrap_err().message, "invalid filter 'x'");
    }

    #[test]
    fn times_are_read_in_every_spelling() {
        assert_eq!(parse_time("12.5").unwrap(), 12_500_000_000);
        assert_eq!(parse_time("1970-01-01T00:00:12Z").unwrap(), 12_000_000_000);
        let hour_ago = zone::time::now_ns() - 3_600_000_000_000;
        assert!(parse_time("60m").unwrap().abs_diff(hour_ago) < 5_000_000_000);
        assert!(parse_time("yesterday").is_err());
    }
}
