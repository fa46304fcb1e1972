//! The disk image: a GPT by systemd-repart with an ESP, a verity root, an empty second slot of the same size, and room for the state
//! partition and the pool, which are encrypted at first boot. The development variant has one more verity partition.
//!
//! repart runs twice: the first run makes the read-only file systems and their hash trees as files ([`slot`]), which an update
//! consists of too; the second puts them on a disk beside the kernel image that names their hashes.

use super::cache::Cache;
use super::compile;
use super::error::{At, Error, Result};
use super::esp;
use super::extension::Extension;
use super::host::{self, Host};
use super::key::{Key, hash_file};
use super::root::{Root, write};
use super::secure_boot::Keys;
use super::tools::Tools;
use super::trees::Tree;
use super::{Flaw, Progress};
use std::fs;
use std::path::{Path, PathBuf};

/// What the image is made of.
pub struct Parts<'a> {
    pub root: &'a Root,
    /// What the firmware starts.
    pub loader: &'a Path,
    pub keys: &'a Keys,
    pub initrd: &'a Path,
    pub root_tree: &'a Tree,
    pub tools_tree: &'a Tree,
    pub recipes: &'a Path,
    pub version: &'a str,
    /// The extension of the development variant.
    pub extension: Option<&'a Extension>,
}

/// systemd-boot's settings. Only our own entries: what it would find by itself is what started it. A firmware in setup mode takes our
/// keys without being asked: somebody has put it into that mode.
const LOADER_CONF: &str = "timeout 0\neditor no\nauto-entries no\nsecure-boot-enroll force\n";

/// A finished image.
pub struct Disk {
    pub image: PathBuf,
    pub sha256: String,
    pub size: u64,
}

/// The read-only file systems with their hash trees, as files.
#[derive(Clone, Debug)]
pub struct Slot {
    /// `image.root.raw` and `image.verity.raw`.
    pub dir: PathBuf,
    pub root_hash: String,
    dev: Option<Dev>,
}

/// The same of the development extension: `image.dev.raw` and `image.dev-verity.raw`.
#[derive(Clone, Debug)]
struct Dev {
    dir: PathBuf,
    hash: String,
}

/// Makes the read-only file systems. Each in a run of its own: repart leaves out of a root what has a partition of its own, as `/usr`.
///
/// # Errors
/// The failure of systemd-repart.
pub fn slot(cache: &Cache, host: Host, tools: &Tools, parts: &Parts<'_>, progress: &mut dyn Progress) -> Result<Slot> {
    let mut files = |step: &str, key: &str, label: &str, mark: &str, content: &Path| -> Result<(PathBuf, String)> {
        let recipes = parts.recipes.join("disk").join(step);
        let key = Key::new(step, 2).text("content", key).text("tools", &parts.tools_tree.identity()).tree(&recipes)?;
        let seed = uuid(&key.clone().hex());
        let entry = cache.step(progress, step, key, |dir, progress| {
            host.may(step, progress)?;
            let (definitions, image) = (dir.join("repart.d"), dir.join("image.raw"));
            let fill = |text: String| Some(text.replace(mark, &content.to_string_lossy()));
            self::definitions(&recipes, &definitions, fill)?;
            let more = ["--empty=create", "--size=auto", "--split=yes"];
            let report = repart(cache, host, tools, &definitions, &image, &seed, &more)?;
            fs::remove_file(&image).at("remove", &image)?;
            let hash = verity_hash(&report, label).ok_or_else(|| Error::Recipe {
                path: recipes.clone(),
                what: format!("systemd-repart reported no hash of {label}"),
            })?;
            write(&dir.join("hash"), &hash)
        })?;
        let hash = host::read(&entry.join("hash"))?;
        Ok((entry, hash))
    };
    let (dir, root_hash) = files("slot", &parts.root.key, "kraud-root-a", "@ROOT@", &parts.root.path)?;
    let dev = match parts.extension {
        Some(extension) => {
            let (dir, hash) = files("dev", &extension.key, "kraud-dev", "@DEV@", &extension.content)?;
            Some(Dev { dir, hash })
        }
        None => None,
    };
    Ok(Slot { dir, root_hash, dev })
}

/// The kernel image that boots a slot, and makes the machine be of `parts.version`.
///
/// # Errors
/// ukify's failure.
pub fn kernel(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    parts: &Parts<'_>,
    slot: &Slot,
    flaw: Flaw,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let line = host::read(&parts.recipes.join("disk/cmdline"))?;
    let dev = slot.dev.as_ref().map(|dev| format!(" kraud.devhash={}", dev.hash)).unwrap_or_default();
    let hash = match flaw {
        Flaw::Verity => slot.root_hash.chars().rev().collect(),
        _ => slot.root_hash.clone(),
    };
    let line = format!("{} kraud.version={} kraud.roothash={hash}{dev}", line.trim(), parts.version);
    let version = compile::kernel_version(&parts.root_tree.path)?;
    let key = Key::new("kernel", 2)
        .text("line", &line)
        .text("certificate", &parts.keys.id)
        .text("initrd", &hash_file(parts.initrd)?)
        .text("packages", &parts.root_tree.identity())
        .text("tools", &parts.tools_tree.identity());
    let entry = cache.step(progress, "kernel", key, |dir, progress| {
        host.may("kernel", progress)?;
        write(&dir.join("os-release"), &os_release(parts.version))?;
        let mut command = tools.privileged(host, "ukify");
        command.arg("build").arg("--linux").arg(parts.root_tree.path.join(format!("boot/vmlinuz-{version}")));
        command.arg("--initrd").arg(parts.initrd).args(["--uname", &version]).arg(format!("--cmdline={line}"));
        command.arg("--os-release").arg(format!("@{}", dir.join("os-release").display()));
        let unsigned = dir.join("unsigned.efi");
        host::run("kernel", &cache.log("kernel"), command.arg("--output").arg(&unsigned))?;
        parts.keys.sign(cache, tools, &unsigned, &dir.join("kernel.efi"))?;
        host.remove(&unsigned)
    })?;
    Ok(entry.join("kernel.efi"))
}

/// Makes the image.
///
/// # Errors
/// The failure of systemd-repart.
pub fn make(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    parts: &Parts<'_>,
    slot: &Slot,
    kernel: &Path,
    progress: &mut dyn Progress,
) -> Result<Disk> {
    let mut key = Key::new("image", 4)
        .text("slot", &slot.root_hash)
        .text("dev", slot.dev.as_ref().map_or("", |dev| &dev.hash))
        .text("kernel", &hash_file(kernel)?)
        .text("certificate", &parts.keys.id)
        .file(parts.loader)?
        .text("tools", &parts.tools_tree.identity())
        .tree(&parts.recipes.join("disk"))?;
    for (place, file) in parts.keys.enrolled() {
        key = key.text("enrolled", &place).file(&file)?;
    }
    // Of nothing that is signed: the ids of partitions are the same whoever builds.
    let seed = Key::new("image-seed", 1).text("version", parts.version).tree(&parts.recipes.join("disk"))?;
    let seed = uuid(&seed.hex());
    let entry = cache.step(progress, "image", key, |dir, progress| {
        host.may("image", progress)?;
        let (definitions, esp, image) = (dir.join("repart.d"), dir.join("esp.img"), dir.join("kraudbox.raw"));
        self::esp(cache, tools, parts, kernel, &esp)?;
        let fill = |text: String| {
            let text = text.replace("@ESP@", &esp.to_string_lossy()).replace("@SLOT@", &slot.dir.to_string_lossy());
            match &slot.dev {
                Some(dev) => Some(text.replace("@DEV@", &dev.dir.to_string_lossy())),
                None => (!text.contains("@DEV@")).then_some(text),
            }
        };
        self::definitions(&parts.recipes.join("disk"), &definitions, fill)?;
        repart(cache, host, tools, &definitions, &image, &seed, &["--empty=create", "--size=auto"])?;
        fs::remove_file(&esp).at("remove", &esp)?;
        let sum = host::output("image", &cache.log("image"), tools.command("sha256sum").arg(&image))?;
        write(&dir.join("sha256"), sum.split_whitespace().next().unwrap_or_default())
    })?;
    let image = entry.join("kraudbox.raw");
    let size = fs::metadata(&image).at("read", &image)?.len();
    let sha256 = host::read(&entry.join("sha256"))?.trim().to_owned();
    Ok(Disk { image, sha256, size })
}

/// The EFI system partition: ours that starts systemd-boot, that, its settings, the kernel image, and the keys for a firmware without.
fn esp(cache: &Cache, tools: &Tools, parts: &Parts<'_>, kernel: &Path, esp: &Path) -> Result<()> {
    let stage = tempfile::tempdir().at("make", std::env::temp_dir())?;
    let (first, second) = (stage.path().join("loader"), stage.path().join("systemd-boot"));
    let systemd_boot = tools.tree().join("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    parts.keys.sign(cache, tools, parts.loader, &first)?;
    parts.keys.sign(cache, tools, &systemd_boot, &second)?;
    let settings = stage.path().join("loader.conf");
    write(&settings, LOADER_CONF)?;
    let mut files = vec![
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), first),
        ("EFI/systemd/systemd-bootx64.efi".to_owned(), second),
        ("loader/loader.conf".to_owned(), settings),
        (format!("EFI/Linux/kraudbox-{}.efi", parts.version), kernel.to_owned()),
    ];
    files.extend(parts.keys.enrolled());
    esp::make(cache, tools, &files, esp)
}

/// What systemd-boot sorts the menu by, and what the root says of itself.
pub(crate) fn os_release(version: &str) -> String {
    format!(
        "ID=kraudbox\nID_LIKE=debian\nNAME=kraudbox\nPRETTY_NAME=\"kraudbox {version}\"\nVERSION_ID={version}\nIMAGE_ID=kraudbox\nIMAGE_VERSION={version}\n"
    )
}

/// The committed definitions with this build's folders filled in; `fill` leaves one out by nothing.
fn definitions(from: &Path, to: &Path, fill: impl Fn(String) -> Option<String>) -> Result<()> {
    for entry in fs::read_dir(from).at("read", from)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "conf")
            && let Some(text) = fill(host::read(&path)?)
        {
            write(&to.join(entry.file_name()), &text)?;
        }
    }
    Ok(())
}

fn repart(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    definitions: &Path,
    image: &Path,
    seed: &str,
    more: &[&str],
) -> Result<String> {
    let mut command = tools.privileged(host, "systemd-repart");
    command.args(["--offline=yes", "--dry-run=no", "--sector-size=512", "--architecture=x86-64", "--json=pretty"]);
    command.arg(format!("--definitions={}", definitions.display())).arg(format!("--seed={seed}")).args(more).arg(image);
    host::output("image", &cache.log("image"), &mut command)
}

/// The verity hash of the partition called `label` in repart's JSON report.
fn verity_hash(report: &str, label: &str) -> Option<String> {
    let partitions: serde_json::Value = serde_json::from_str(report).ok()?;
    let partition = partitions.as_array()?.iter().find(|p| p["label"] == label)?;
    let hash = partition.get("roothash").or_else(|| partition.get("root_hash"))?.as_str()?;
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
    fn each_partition_s_hash_is_found_by_its_label() {
        let (one, other) = ("ab".repeat(32), "cd".repeat(32));
        let report = format!(
            r#"[{{"label":"kraud-esp"}},{{"label":"kraud-dev","roothash":"{other}"}},{{"label":"kraud-root-a","roothash":"{one}"}}]"#
        );
        assert_eq!(verity_hash(&report, "kraud-root-a"), Some(one));
        assert_eq!(verity_hash(&report, "kraud-dev"), Some(other));
        assert_eq!(verity_hash("[]", "kraud-dev"), None);
        assert_eq!(verity_hash("not json", "kraud-dev"), None);
    }

    #[test]
    fn a_key_makes_a_uuid() {
        assert_eq!(uuid("00112233445566778899aabbccddeeff"), "00112233-4455-6677-8899-aabbccddeeff");
    }
}
