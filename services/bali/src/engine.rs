//! Builds a Dockerfile that starts from another image with the machine's `docker` or `podman`, and takes the result's
//! root file system and configuration. We run the tool; we know nothing of how it builds.

use crate::config::ImageConfig;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a container engine built.
#[derive(Debug)]
pub struct Built {
    /// How it is started.
    pub config: ImageConfig,
    /// Its root file system, unpacked.
    pub root: tempfile::TempDir,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DockerConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    labels: Option<std::collections::BTreeMap<String, String>>,
}

/// Builds the folder `dir`.
///
/// # Errors
/// `Invalid` when there is no engine, or with what it said.
pub fn build(dir: &Path) -> Result<Built> {
    let tool = ["docker", "podman"]
        .into_iter()
        .find(|tool| {
            Command::new(tool)
                .arg("version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
        })
        .ok_or_else(|| {
            Error::Invalid(format!(
                "{}: only FROM scratch is built without a container engine; neither docker nor podman answers here",
                dir.join("Dockerfile").display()
            ))
        })?;
    let image = run(Command::new(tool).args(["build", "-q"]).arg(dir))?;
    let config = run(Command::new(tool).args(["image", "inspect", "--format", "{{json .Config}}", &image]))?;
    let config: DockerConfig = serde_json::from_str(&config)
        .map_err(|e| Error::Invalid(format!("cannot read {tool}'s description of {image}: {e}")))?;
    let root = tempfile::tempdir().map_err(Error::file("make a folder in", std::env::temp_dir()))?;
    let container = run(Command::new(tool).args(["create", &image, "/"]))?;
    let unpacked = export(tool, &container, root.path());
    run(Command::new(tool).args(["rm", "-f", &container]))?;
    unpacked?;
    Ok(Built { config: convert(config), root })
}

fn export(tool: &str, container: &str, root: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::Invalid(format!("{tool} export: {e}"));
    let mut child = Command::new(tool).args(["export", container]).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let unpacked = child.stdout.take().map_or(Ok(()), |tar| unpack_tar(tar, root));
    let status = child.wait().map_err(failed)?;
    unpacked?;
    if status.success() { Ok(()) } else { Err(Error::Invalid(format!("{tool} export ended with {status}"))) }
}

/// Unpacks a root file system as other tools write it, on the builder's own machine, without owners and devices.
///
/// # Errors
/// `Content` when it cannot be read or written.
pub fn unpack_tar(tar: impl std::io::Read, root: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::Content { name: "the root file system".into(), source: e };
    let mut archive = tar::Archive::new(tar);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let kind = entry.header().entry_type();
        if kind.is_block_special() || kind.is_character_special() || kind.is_fifo() {
            continue;
        }
        if !entry.unpack_in(root).map_err(failed)? {
            let path = entry.path().map_err(failed)?.display().to_string();
            return Err(Error::Invalid(format!("the root file system holds {path:?}, which climbs out")));
        }
    }
    Ok(())
}

fn convert(config: DockerConfig) -> ImageConfig {
    let env = config.env.unwrap_or_default();
    ImageConfig {
        name: String::new(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: env.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect(),
        user: config.user.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::Invalid(format!("cannot run {}: {e}", command.get_program().display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Invalid(format!("{command:?} ended with {}: {}", output.status, said.trim_end())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
