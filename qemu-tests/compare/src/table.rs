//! The tables of calls: what is asked of both engines, as data.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The tables there are, in the order they run: name, whether the short run has it, and text.
pub const TABLES: [(&str, bool, &str); 9] = [
    ("system", true, include_str!("../tables/system.json")),
    ("versions", false, include_str!("../tables/versions.json")),
    ("images", true, include_str!("../tables/images.json")),
    ("volumes", true, include_str!("../tables/volumes.json")),
    ("created", true, include_str!("../tables/created.json")),
    ("networks", false, include_str!("../tables/networks.json")),
    ("containers", false, include_str!("../tables/containers.json")),
    ("options", false, include_str!("../tables/options.json")),
    ("events", false, include_str!("../tables/events.json")),
];

/// How much of two answers has to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// Status, headers, and every key with its value.
    #[default]
    Values,
    /// Status, headers, every key and its type; of lists the first entry.
    Shape,
    /// Status and headers.
    Status,
    /// Nothing: the call prepares others.
    Nothing,
}

/// One call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it shows; a line without a call is a heading.
    pub name: String,
    /// Method and path with query, without the version; `{x}` is what `keep` kept.
    pub call: String,
    /// The versions of the API that are asked, as the number after `1.`; 0 is none in the path. Default: 45.
    #[serde(default)]
    pub versions: Vec<u32>,
    /// A JSON body.
    pub body: Option<Value>,
    /// A body as it is.
    pub text: Option<String>,
    /// A body that is a tar archive of these files.
    pub tar: Option<BTreeMap<String, String>>,
    /// Headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Values to keep from the answer, by JSON pointer.
    #[serde(default)]
    pub keep: BTreeMap<String, String>,
    /// Ask again until the answer has these values, by JSON pointer.
    #[serde(default)]
    pub until: BTreeMap<String, Value>,
    /// What has to be the same.
    #[serde(default)]
    pub compare: Compare,
    /// Keep the time before this call under this name, as seconds.
    pub clock: Option<String>,
    /// Send what comes as a raw stream: `Upgrade: tcp`, then this input, then the end of input.
    pub stream: Option<String>,
    /// Ask for a WebSocket and send this as one message; the body is what the messages hold that come until it is closed.
    pub websocket: Option<String>,
}

impl Step {
    /// The versions to ask.
    #[must_use]
    pub fn versions(&self) -> Vec<u32> {
        if self.versions.is_empty() { vec![45] } else { self.versions.clone() }
    }

    /// The method and the path with its query.
    #[must_use]
    pub fn method_and_path(&self) -> (&str, &str) {
        self.call.split_once(' ').unwrap_or(("GET", &self.call))
    }
}

/// Reads a table.
///
/// # Errors
/// When it is not one.
pub fn read(name: &str, text: &str) -> Result<Vec<Step>> {
    serde_json::from_str(text).with_context(|| format!("table {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_can_be_read_and_names_each_step_once() {
        for (name, _, text) in TABLES {
            let steps = read(name, text).unwrap_or_else(|e| panic!("{e:#}"));
            let names: std::collections::BTreeSet<_> = steps.iter().map(|s| &s.name).collect();
            assert_eq!(names.len(), steps.len(), "{name}");
        }
    }
}
