//! The machine's disks: an overlay over the built image, an empty pool disk (or none: then the overlay is larger than the image), the
//! firmware's variables.
//!
//! The disks outlive the machine, so that a stopped zone goes on where it was. They belong to one image: when another one was built,
//! they are put aside (one generation is kept in `previous/`) and new ones are made.

use super::run::{Image, Options};
use super::state::StateDir;
use crate::build::Tools;
use crate::build::host::sparse_copy;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::Path;

/// The image that the zone's own disk lies over.
pub const BASE: &str = "base.img";
/// The pool's own disk.
pub const POOL: &str = "pool.img";
/// What is kept of one zone.
const FILES: [&str; 5] = [BASE, "os.qcow2", POOL, "vars.fd", "disks.json"];
const ONE_DISK_GIB: u32 = 20;

/// Whether the zone's pool has a disk of its own.
#[must_use]
pub fn has_pool(dir: &StateDir) -> bool {
    dir.file(POOL).exists()
}

#[derive(Serialize, Deserialize)]
struct Disks {
    image_sha256: String,
}

/// What became of a zone's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The zone goes on where it was.
    Kept,
    /// There was none, or a fresh one was asked for.
    New,
    /// The image is another one; the disks before are in `previous/`.
    PutAside,
}

/// Makes what is missing.
///
/// # Errors
/// When a file cannot be made, or the pool is asked to shrink.
pub fn prepare(dir: &StateDir, image: &Image, options: &Options) -> Result<Prepared> {
    let fresh = options.fresh;
    let before: Option<Disks> = if dir.file("os.qcow2").exists() { dir.read_json("disks.json")? } else { None };
    let prepared = match before {
        Some(_) if fresh => {
            remove(dir.path(), keeps_base(dir, image))?;
            Prepared::New
        }
        Some(disks) if disks.image_sha256 == image.sha256 => Prepared::Kept,
        Some(_) => {
            put_aside(dir)?;
            Prepared::PutAside
        }
        None => {
            remove(dir.path(), keeps_base(dir, image))?;
            Prepared::New
        }
    };
    if prepared != Prepared::Kept {
        if !keeps_base(dir, image) {
            link_or_copy(&image.file, &dir.file(BASE))?;
        }
        copy(&image.ovmf_vars, &dir.file("vars.fd"))?;
        let gib = options.one_disk.then(|| options.disk_gib.unwrap_or(ONE_DISK_GIB));
        overlay(&image.tools, dir, gib)?;
        if !options.one_disk {
            pool(&dir.file(POOL), options.disk_gib)?;
        }
    } else if has_pool(dir) {
        pool(&dir.file(POOL), options.disk_gib)?;
    }
    dir.write_json("disks.json", &Disks { image_sha256: image.sha256.clone() })?;
    Ok(prepared)
}

/// The image that the zones of this directory had, when there is one.
///
/// # Errors
/// When the note about it cannot be read.
pub fn image_of(dir: &StateDir) -> Result<Option<String>> {
    let disks: Option<Disks> = if dir.file(BASE).exists() { dir.read_json("disks.json")? } else { None };
    Ok(disks.map(|disks| disks.image_sha256))
}

/// A zone that begins anew without a build keeps the image that lies here.
fn keeps_base(dir: &StateDir, image: &Image) -> bool {
    image.file == dir.file(BASE)
}

fn remove(dir: &Path, keep_base: bool) -> Result<()> {
    for name in FILES.into_iter().filter(|name| !(keep_base && *name == BASE)) {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn put_aside(dir: &StateDir) -> Result<()> {
    let aside = dir.file("previous");
    fs::create_dir_all(&aside).with_context(|| format!("cannot make {}", aside.display()))?;
    remove(&aside, false)?;
    for name in FILES {
        let from = dir.file(name);
        if from.exists() {
            fs::rename(&from, aside.join(name)).with_context(|| format!("cannot move {}", from.display()))?;
        }
    }
    Ok(())
}

/// The base must stay what it is for as long as the overlay lives, whatever happens to the builder's cache.
fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    finish(&mut sparse_copy(from, to)).with_context(|| format!("cannot copy the image {}", from.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(to, writable).with_context(|| format!("cannot make {} writable", to.display()))
}

fn overlay(tools: &Tools, dir: &StateDir, gib: Option<u32>) -> Result<()> {
    let mut command = tools.command("qemu-img");
    // The base's name is relative to the overlay: both move together.
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", BASE]).arg(dir.file("os.qcow2"));
    if let Some(gib) = gib {
        command.arg(format!("{gib}G"));
    }
    finish(&mut command).context("cannot make the zone's disk")
}

fn pool(path: &Path, gib: Option<u32>) -> Result<()> {
    const DEFAULT_GIB: u32 = 16;
    let open = || File::options().write(true).create(true).truncate(false).open(path);
    let file = open().with_context(|| format!("cannot make {}", path.display()))?;
    let present = file.metadata()?.len();
    let wanted = match gib {
        Some(gib) => u64::from(gib) << 30,
        None if present > 0 => present,
        None => u64::from(DEFAULT_GIB) << 30,
    };
    if wanted < present {
        bail!(
            "the zone's pool disk has {} GiB already: give `--disk` at least that, or `--fresh` for an empty one",
            present >> 30
        );
    }
    file.set_len(wanted).with_context(|| format!("cannot make {} {} GiB large", path.display(), wanted >> 30))
}

fn finish(command: &mut std::process::Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_grows_and_never_shrinks() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("pool.img");
        pool(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 16 << 30);
        pool(&path, Some(20)).unwrap();
        pool(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 20 << 30);
        assert!(pool(&path, Some(8)).unwrap_err().to_string().contains("--fresh"));
    }

    #[test]
    fn disks_put_aside_replace_those_before_them() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        for generation in ["one", "two"] {
            for name in FILES {
                dir.write_secret(name, generation.as_bytes()).unwrap();
            }
            put_aside(&dir).unwrap();
            assert!(!dir.file("os.qcow2").exists());
        }
        assert_eq!(fs::read(dir.file("previous/pool.img")).unwrap(), b"two");
    }

    #[test]
    fn the_base_outlives_the_builders_copy() {
        let temp = tempfile::tempdir().unwrap();
        let (from, to) = (temp.path().join("image"), temp.path().join("base"));
        fs::write(&from, "first").unwrap();
        link_or_copy(&from, &to).unwrap();
        fs::remove_file(&from).unwrap();
        assert_eq!(fs::read(to).unwrap(), b"first");
    }
}
