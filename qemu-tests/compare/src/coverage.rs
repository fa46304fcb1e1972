//! Which endpoint of the API which call of the tables shows.

use crate::table::{TABLES, read};
use anyhow::{Context as _, Result};
use std::fmt;

/// Every endpoint there is.
const LIST: &str = include_str!("../endpoints.list");

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The method.
    pub method: String,
    /// The path, with `{name}` for what changes.
    pub path: String,
    /// Its group in the API.
    pub tag: String,
    /// `served`, or `refused` with Docker's own error.
    pub state: String,
    /// The calls that show it, as `table: step`.
    pub shown_by: Vec<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = match self.shown_by.len() {
            0 | 1 => String::new(),
            many => format!(" and {} more", many - 1),
        };
        let shown = self.shown_by.first().map_or("-", String::as_str);
        write!(f, "{:<7}{:<48}{:<13}{:<9}{shown}{more}", self.method, self.path, self.tag, self.state)
    }
}

/// The endpoints with the calls that show them.
///
/// # Errors
/// When the list or a table is none.
pub fn endpoints() -> Result<Vec<Endpoint>> {
    let mut calls = Vec::new();
    for (table, _, text) in TABLES {
        for step in read(table, text)? {
            let (method, path) = step.method_and_path();
            let path = path.split('?').next().unwrap_or_default();
            calls.push((method.to_owned(), path.to_owned(), format!("compare {table}: {}", step.name)));
        }
    }
    LIST.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| endpoint(line, &calls)).collect()
}

fn endpoint(line: &str, calls: &[(String, String, String)]) -> Result<Endpoint> {
    let mut words = line.splitn(5, ' ').map(str::to_owned);
    let mut next = || words.next().with_context(|| format!("endpoints.list: {line:?} has too few words"));
    let (method, path, tag, state) = (next()?, next()?, next()?, next()?);
    let elsewhere = next().ok();
    let shown = calls.iter().filter(|(m, p, _)| *m == method && is_of(p, &path)).map(|(_, _, name)| name.clone());
    let shown_by = elsewhere.into_iter().chain(shown).collect();
    Ok(Endpoint { method, path, tag, state, shown_by })
}

/// Whether a call's path is one of an endpoint's. Names of images have slashes.
fn is_of(path: &str, endpoint: &str) -> bool {
    let (mut path, mut endpoint) = (path.split('/').collect::<Vec<_>>(), endpoint.split('/').collect::<Vec<_>>());
    if let (Some(["", "images" | "distribution", "{name}"]), true) = (endpoint.get(..3), path.len() > endpoint.len()) {
        let extra = path.len() - endpoint.len();
        path.drain(3..3 + extra);
    }
    let fixed = |(wanted, part): (&str, &str)| wanted == part || (wanted.starts_with('{') && !RESERVED.contains(&part));
    path.len() == endpoint.len() && endpoint.drain(..).zip(path).all(fixed)
}

/// What stands where a name may stand and is none.
const RESERVED: [&str; 9] = ["create", "prune", "json", "search", "get", "load", "pull", "privileges", "nosuchthing"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_but_these_is_shown_by_a_call() {
        let unshown: Vec<String> = endpoints()
            .unwrap()
            .into_iter()
            .filter(|e| e.shown_by.is_empty())
            .map(|e| format!("{} {}", e.method, e.path))
            .collect();
        assert_eq!(unshown, [""; 0], "show them in a table, or name the test that does in endpoints.list");
    }

    #[test]
    fn paths_belong_to_their_endpoint() {
        assert!(is_of("/images/127.0.0.1:9/a/b:two", "/images/{name}"));
        assert!(is_of("/images/docker.io/library/compare:latest/json", "/images/{name}/json"));
        assert!(is_of("/containers/{c1}/json", "/containers/{id}/json"));
        assert!(!is_of("/images/json", "/images/{name}") && !is_of("/containers/create", "/containers/{id}"));
    }
}
