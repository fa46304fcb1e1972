//! A release: the image, the update that brings other machines to it, what it consists of, and their checksums, in one folder.
//!
//! The update is one file signed by bali with the key of the cache, as the services are; what it consists of stands in
//! `services/boot/src/bundle.rs`.

use super::cache::Cache;
use super::disk::Slot;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::hash_file;
use super::root::{copy, write};
use super::sbom;
use super::{BuildOptions, Built, Quiet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an update of an image consists of.
#[derive(Clone, Debug)]
pub struct Update {
    pub version: String,
    pub slot: Slot,
    pub kernel: PathBuf,
}

/// Puts a release into `out`; returns its files. With `update_only` the image itself is left out.
///
/// # Errors
/// When a file cannot be written or the update not be signed.
pub fn write_release(options: &BuildOptions, built: &Built, out: &Path, update_only: bool) -> Result<Vec<PathBuf>> {
    let cache = super::open(options, Host::detect()?, &mut Quiet)?;
    fs::create_dir_all(out).at("make", out)?;
    let version = &built.update.version;
    let update = out.join(format!("kraudbox-{version}.update.tar.gz"));
    pack(&cache, built, &update)?;
    let list = out.join(format!("kraudbox-{version}.spdx.json"));
    copy(&built.root.join(sbom::PLACE), &list)?;
    let mut files = vec![update, list];
    if !update_only {
        let image = out.join(format!("kraudbox-{version}.raw"));
        host::run("release", &cache.log("release"), &mut host::sparse_copy(&built.image, &image))?;
        files.push(image);
    }
    let mut sums = String::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        sums.push_str(&format!("{}  {name}\n", hash_file(file)?));
    }
    let list = out.join("SHA256SUMS");
    write(&list, &sums)?;
    files.push(list);
    Ok(files)
}

fn pack(cache: &Cache, built: &Built, out: &Path) -> Result<()> {
    let (log, update) = (cache.log("release"), &built.update);
    let stage = tempfile::tempdir_in(out.parent().unwrap_or(Path::new("."))).at("make a folder beside", out)?;
    let about = serde_json::json!({
        "kind": "image",
        "version": update.version,
        "architecture": "x86-64",
        "channel": "stable",
        "root_hash": update.slot.root_hash,
        "expires": 0,
    });
    write(&stage.path().join("about.json"), &about.to_string())?;
    copy(&update.kernel, &stage.path().join("kernel.efi"))?;
    for (from, to) in [("image.root.raw", "root.erofs"), ("image.verity.raw", "root.verity")] {
        copy(&update.slot.dir.join(from), &stage.path().join(to))?;
    }
    let bali = built.root.join("usr/bin/bali");
    let key = cache.kept("keys")?.join("zone");
    if !key.exists() {
        return Err(Error::Recipe { path: key, what: "there is no signing key: build an image first".into() });
    }
    let mut command = Command::new(bali);
    command.args(["build", "--rootfs"]).arg(stage.path()).arg("-o").arg(out).arg("--key").arg(key);
    host::run("release", &log, &mut command)
}
