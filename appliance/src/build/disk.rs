//! The disk image: a GPT by systemd-repart with an ESP, a verity root, an empty second slot, the state partition and room for a pool.
//!
//! repart runs twice: the root hash is known only after the first run, and the kernel image on the ESP names it.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::{Key, hash_file};
use super::root::{Root, copy, write};
use super::tools::Tools;
use super::trees::Tree;
use std::fs;
use std::path::{Path, PathBuf};

/// What the image is made of.
pub struct Parts<'a> {
    pub root: &'a Root,
    pub initrd: &'a Path,
    pub root_tree: &'a Tree,
    pub tools_tree: &'a Tree,
    pub recipes: &'a Path,
    pub version: &'a str,
    /// The signed extension of the development variant.
    pub extension: Option<&'a Path>,
}

/// A finished image.
pub struct Disk {
    pub image: PathBuf,
    pub sha256: String,
    pub size: u64,
}

/// Makes the image.
///
/// # Errors
/// The failure of systemd-repart or ukify.
pub fn make(cache: &Cache, host: Host, tools: &Tools, parts: &Parts<'_>, progress: &mut dyn Progress) -> Result<Disk> {
    let mut key = Key::new("image", 1)
        .text("root", &parts.root.key)
        .text("initrd", &hash_file(parts.initrd)?)
        .text("tools", &parts.tools_tree.identity())
        .text("version", parts.version)
        .tree(&parts.recipes.join("disk"))?;
    if let Some(extension) = parts.extension {
        key = key.text("extension", &hash_file(extension)?);
    }
    let seed = uuid(&key.clone().hex());
    let entry = cache.step(progress, "image", key, |dir, progress| {
        Maker { cache, host, tools, parts, dir, seed: &seed }.run(progress)
    })?;
    let image = entry.join("kraudbox.raw");
    let size = fs::metadata(&image).at("read", &image)?.len();
    let sha256 = host::read(&entry.join("sha256"))?.trim().to_owned();
    Ok(Disk { image, sha256, size })
}

struct Maker<'a> {
    cache: &'a Cache,
    host: Host,
    tools: &'a Tools,
    parts: &'a Parts<'a>,
    dir: &'a Path,
    seed: &'a str,
}

impl Maker<'_> {
    fn run(&self, progress: &mut dyn Progress) -> Result<()> {
        let (definitions, esp, image) =
            (self.dir.join("repart.d"), self.dir.join("esp"), self.dir.join("kraudbox.raw"));
        fs::create_dir(&esp).at("make", &esp)?;
        self.definitions(&definitions, &esp)?;
        let report = self.repart(&definitions, &image, &["--empty=create", "--size=auto", "--defer-partitions=esp"])?;
        let hash = root_hash(&report).ok_or_else(|| Error::Recipe {
            path: definitions.clone(),
            what: "systemd-repart reported no root hash".into(),
        })?;
        self.boot_files(&esp, &hash)?;
        self.repart(&definitions, &image, &[])?;
        let log = self.cache.log("image");
        let sum = host::output("image", &log, self.tools.command("sha256sum").arg(&image))?;
        write(&self.dir.join("sha256"), sum.split_whitespace().next().unwrap_or_default())?;
        write(&self.dir.join("roothash"), &hash)?;
        self.host.remove(&self.dir.join("state"))?;
        progress.note(&format!("root hash {hash}"));
        Ok(())
    }

    /// The committed definitions with this build's folders filled in.
    fn definitions(&self, to: &Path, esp: &Path) -> Result<()> {
        let state = self.state()?;
        let from = self.parts.recipes.join("disk");
        for entry in fs::read_dir(&from).at("read", &from)?.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "conf") {
                let text = host::read(&path)?
                    .replace("@ROOT@", &self.parts.root.path.to_string_lossy())
                    .replace("@STATE@", &state.to_string_lossy())
                    .replace("@ESP@", &esp.to_string_lossy());
                write(&to.join(entry.file_name()), &text)?;
            }
        }
        Ok(())
    }

    /// The state partition's content: the root's own, with the extension in the development variant.
    fn state(&self) -> Result<PathBuf> {
        let Some(extension) = self.parts.extension else { return Ok(self.parts.root.state.clone()) };
        let state = self.dir.join("state");
        let script = r#"set -eu; cp -a "$1" "$3"; mkdir -p "$3/lib/extensions"; cp --sparse=always "$2" "$3/lib/extensions/kraud-dev.raw"; chown -R 0:0 "$3/lib/extensions""#;
        let mut command = self.tools.privileged(self.host, "sh");
        command.args(["-c", script, "state"]).arg(&self.parts.root.state).arg(extension).arg(&state);
        host::run("image", &self.cache.log("image"), &mut command)?;
        Ok(state)
    }

    fn repart(&self, definitions: &Path, image: &Path, more: &[&str]) -> Result<String> {
        let mut command = self.tools.privileged(self.host, "systemd-repart");
        command.args(["--offline=yes", "--dry-run=no", "--sector-size=512", "--architecture=x86-64", "--json=pretty"]);
        command
            .arg(format!("--definitions={}", definitions.display()))
            .arg(format!("--seed={}", self.seed))
            .args(more)
            .arg(image);
        host::output("image", &self.cache.log("image"), &mut command)
    }

    /// systemd-boot and the kernel image with the root's hash in its command line.
    fn boot_files(&self, esp: &Path, hash: &str) -> Result<()> {
        let kernel = super::compile::kernel_version(&self.parts.root_tree.path)?;
        let line = host::read(&self.parts.recipes.join("disk/cmdline"))?;
        let uki = esp.join(format!("EFI/Linux/kraudbox-{}.efi", self.parts.version));
        copy(
            &self.tools.tree().join("usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
            &esp.join("EFI/BOOT/BOOTX64.EFI"),
        )?;
        write(&esp.join("loader/loader.conf"), "timeout 0\neditor no\n")?;
        fs::create_dir_all(esp.join("EFI/Linux")).at("make", esp)?;
        let mut command = self.tools.privileged(self.host, "ukify");
        command.arg("build").arg("--linux").arg(self.parts.root_tree.path.join(format!("boot/vmlinuz-{kernel}")));
        command.arg("--initrd").arg(self.parts.initrd).args(["--uname", &kernel]);
        command.arg(format!("--cmdline={} kraud.roothash={hash}", line.trim()));
        command.arg("--os-release").arg(format!("@{}", self.parts.root.path.join("usr/lib/os-release").display()));
        command.arg("--output").arg(&uki);
        host::run("image", &self.cache.log("image"), &mut command)
    }
}

/// The root's hash in repart's JSON report.
fn root_hash(report: &str) -> Option<String> {
    let partitions: serde_json::Value = serde_json::from_str(report).ok()?;
    let hash =
        partitions.as_array()?.iter().find_map(|p| p.get("roothash").or_else(|| p.get("root_hash"))?.as_str())?;
    (hash.len() == 64).then(|| hash.to_owned())
}

/// The first 32 hex digits of a key as a UUID.
#[must_use]
pub fn uuid(hex: &str) -> String {
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_hash_is_found_in_the_report() {
        let hash = "ab".repeat(32);
        let report = format!(r#"[{{"type":"esp"}},{{"type":"root-x86-64","roothash":"{hash}"}}]"#);
        assert_eq!(root_hash(&report), Some(hash));
        assert_eq!(root_hash("[]"), None);
        assert_eq!(root_hash("not json"), None);
    }

    #[test]
    fn a_key_makes_a_uuid() {
        assert_eq!(uuid("00112233445566778899aabbccddeeff"), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
