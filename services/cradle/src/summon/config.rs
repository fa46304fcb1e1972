//! An image's configuration (OCI image specification, "Image Configuration"), as far as a guest needs it.

use super::archive::{MAX_LAYERS, is_hash};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What an image says of itself.
#[derive(Debug, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    /// How its process is started.
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

/// How an image's process is started.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// A process, resolved.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub cwd: String,
    /// `USER[:GROUP]`; empty means root.
    pub user: String,
}

impl ImageConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is none, is for other machines, or names malformed hashes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes).context("the image's configuration is not valid")?;
        let for_here = ["", "linux"].contains(&&*config.os) && ["", "amd64"].contains(&&*config.architecture);
        ensure!(
            for_here,
            "the image is for {:.50}/{:.50}, but only linux/amd64 can be booted here",
            config.os,
            config.architecture
        );
        ensure!(config.rootfs.diff_ids.len() <= MAX_LAYERS, "the image has more than {MAX_LAYERS} layers");
        config.layers().map(drop)?;
        Ok(config)
    }

    /// The hashes of the uncompressed layers, lowest first.
    ///
    /// # Errors
    /// When one is no SHA-256.
    pub fn layers(&self) -> Result<Vec<&str>> {
        let hash = |id: &String| format!("{id:.100?} is no hash of a layer, must be sha256: and 64 digits");
        let read = |id| str::strip_prefix(id, "sha256:").filter(|hash| is_hash(hash));
        self.rootfs.diff_ids.iter().map(|id| read(id).with_context(|| hash(id))).collect()
    }

    /// The image's process, with `command` instead of its `Cmd` if there is one, as `docker run IMAGE COMMAND…` does it.
    ///
    /// # Errors
    /// When neither says what to run.
    pub fn start(&self, command: &[String]) -> Result<Start> {
        let process = self.config.clone().unwrap_or_default();
        let mut args = process.entrypoint.unwrap_or_default();
        args.extend(if command.is_empty() { process.cmd.unwrap_or_default() } else { command.to_vec() });
        ensure!(
            args.first().is_some_and(|program| !program.is_empty()),
            "the image does not say what to run: name a command after --"
        );
        Ok(Start {
            args,
            env: process.env.unwrap_or_default(),
            cwd: process.working_dir.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(json: &str, command: &[&str]) -> Result<Start> {
        let command: Vec<String> = command.iter().map(ToString::to_string).collect();
        ImageConfig::parse(json.as_bytes()).unwrap().start(&command)
    }

    #[test]
    fn the_command_stands_after_the_entrypoint_and_replaces_cmd() {
        let json = r#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]},"config":
            {"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1"],"WorkingDir":"/w","User":"u"}}"#;
        let expected =
            Start { args: vec!["/e".into(), "c".into()], env: vec!["A=1".into()], cwd: "/w".into(), user: "u".into() };
        assert_eq!(start(json, &[]).unwrap(), expected);
        assert_eq!(start(json, &["x", "y"]).unwrap().args, ["/e", "x", "y"]);
    }

    #[test]
    fn nulls_are_as_if_they_were_not_there_and_nothing_to_run_is_an_error() {
        let json = r#"{"rootfs":{"diff_ids":[]},"config":{"Entrypoint":null,"Cmd":null,"Env":null}}"#;
        assert!(start(json, &[]).unwrap_err().to_string().contains("after --"));
        assert_eq!(start(json, &["x"]).unwrap().args, ["x"]);
        assert!(start(r#"{"rootfs":{},"config":null}"#, &[]).is_err());
    }

    #[test]
    fn other_machines_and_malformed_hashes_are_refused() {
        for bad in [
            r#"{"architecture":"arm64","rootfs":{}}"#,
            r#"{"os":"windows","rootfs":{}}"#,
            r#"{"rootfs":{"diff_ids":["sha256:../../x"]}}"#,
            r#"{"rootfs":{"diff_ids":["0000000000000000000000000000000000000000000000000000000000000000"]}}"#,
            r"{}",
        ] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
