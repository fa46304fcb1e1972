//! What an image says about how it is started: `.bali/config.json`, its first entry.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The entry's path in the image.
pub const CONFIG_PATH: &str = ".bali/config.json";
/// The largest configuration that is read, bytes.
pub const CONFIG_MAX_BYTES: u64 = 64 << 10;

/// How an image is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// The image's name, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Program and first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments when the caller gives none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Environment; what the caller has set stays as it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, names of the host or numbers; empty means root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Working directory; empty means `/`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workdir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Program and arguments for a call with `args`: they replace `cmd`, as with Docker.
    #[must_use]
    pub fn command(&self, args: &[String]) -> Vec<String> {
        let rest = if args.is_empty() { &self.cmd } else { args };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_the_caller_replace_cmd_but_not_the_entrypoint() {
        let config =
            ImageConfig { entrypoint: vec!["/bin/a".into()], cmd: vec!["--default".into()], ..ImageConfig::default() };
        assert_eq!(config.command(&[]), ["/bin/a", "--default"]);
        assert_eq!(config.command(&["x".into()]), ["/bin/a", "x"]);
    }
}
