//! The differences that are meant to be, each with its reason.

use crate::differ::Difference;
use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The list, as text.
pub const LIST: &str = include_str!("../allowed.json");

/// A group of differences with one reason.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// What differs, for people.
    pub what: String,
    /// Why.
    pub why: String,
    /// It is to go: part of the engine is not there yet.
    #[serde(default)]
    pub pending: bool,
    /// In the answers of these steps only, as `TABLE: STEP`; none is all.
    #[serde(default)]
    pub steps: Vec<String>,
    /// Where: `CALL PATH`; `*` stands for one segment of a path, `**` for the rest of it.
    pub places: Vec<String>,
}

/// The list and what of it has been seen.
#[derive(Debug)]
pub struct Allowed {
    /// The reasons.
    pub reasons: Vec<Reason>,
    seen: Vec<Vec<bool>>,
}

impl Allowed {
    /// Reads the list that is built in.
    ///
    /// # Errors
    /// When it is none.
    pub fn read() -> Result<Self> {
        Self::parse(LIST)
    }

    /// Reads a list.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(list: &str) -> Result<Self> {
        let reasons: Vec<Reason> = serde_json::from_str(list).context("allowed.json")?;
        let seen = reasons.iter().map(|r| vec![false; r.places.len()]).collect();
        Ok(Self { reasons, seen })
    }

    /// Whether this difference in the answer to `call` (method and path as in the table) of `step` (`TABLE: STEP`) is meant to be.
    pub fn is_allowed(&mut self, step: &str, call: &str, difference: &Difference) -> bool {
        let mut found = false;
        for (reason, seen) in self.reasons.iter().zip(&mut self.seen) {
            if !reason.steps.is_empty() && !reason.steps.iter().any(|s| s == step) {
                continue;
            }
            for (place, seen) in reason.places.iter().zip(seen) {
                let (calls, path) = place.rsplit_once(' ').unwrap_or(("*", place));
                if call_matches(calls, call) && path_matches(path, &difference.path) {
                    *seen = true;
                    found = true;
                }
            }
        }
        found
    }

    /// The places that no answer differed in, and whether that was to be expected one day.
    pub fn unseen(&self) -> impl Iterator<Item = (&str, bool)> {
        let places =
            self.reasons.iter().zip(&self.seen).flat_map(|(r, seen)| {
                r.places.iter().zip(seen).map(|(place, seen)| (place.as_str(), *seen, r.pending))
            });
        places.filter(|(_, seen, _)| !seen).map(|(place, _, pending)| (place, pending))
    }
}

fn call_matches(pattern: &str, call: &str) -> bool {
    let (method, path) = pattern.split_once(' ').unwrap_or((pattern, "*"));
    let (asked, target) = call.split_once(' ').unwrap_or(("GET", call));
    let target = target.split('?').next().unwrap_or(target);
    (method == "*" || method == asked) && (path == "*" || path_matches(path, target))
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let mut path = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, path.next()) {
            ("**", _) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(part)) if wanted == part => {}
            (wanted, Some(part)) if wanted.starts_with('*') && part.ends_with(&wanted[1..]) => {}
            _ => return false,
        }
    }
    path.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_difference_has_a_reason_and_a_place() {
        for reason in Allowed::read().unwrap().reasons {
            assert!(reason.why.len() > 20 && !reason.places.is_empty(), "{reason:?}");
        }
    }

    #[test]
    fn every_step_that_is_named_is_in_a_table() {
        let known: Vec<String> = crate::table::TABLES
            .iter()
            .flat_map(|(table, _, text)| {
                crate::table::read(table, text).unwrap().into_iter().map(move |step| format!("{table}: {}", step.name))
            })
            .collect();
        for step in Allowed::read().unwrap().reasons.iter().flat_map(|r| &r.steps) {
            assert!(known.contains(step), "there is no step {step:?}");
        }
    }

    #[test]
    fn places_match_by_segment() {
        assert!(path_matches("/a/*/c", "/a/b/c") && path_matches("/a/**", "/a/b/c") && path_matches("**", "/a"));
        assert!(!path_matches("/a/*", "/a/b/c") && !path_matches("/a", "/b"));
        assert!(call_matches("GET /containers/*/json", "GET /containers/{c1}/json?size=1"));
        assert!(!call_matches("GET /containers/*/json", "POST /containers/{c1}/json"));
    }
}
