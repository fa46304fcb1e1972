//! Monitor, agent and guest kernel: verified and unpacked once, one directory per version.
//!
//! ```text
//! /run/kraud/cradle/VERSION/{kcradle,vmlinux,initramfs.cpio[,rw.ext4]}
//! ```
//! A version's directory appears by a rename, so it is whole or not there. Old ones stay until the next boot: a monitor
//! that is just starting may still open files there.

use anyhow::{Context as _, bail};
use bali::source::Source;
use bali::{Image, Keyring};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The files that a version must have.
const FILES: [&str; 3] = ["kcradle", "vmlinux", "initramfs.cpio"];

/// Unpacks the signed image into `base`, if that version is not there yet; the directory with its files.
///
/// # Errors
/// When the signature does not hold, or a file is missing in the image.
pub fn unpack(image: &Path, keys: &Path, base: &Path) -> anyhow::Result<PathBuf> {
    let keys = Keyring::load(keys).with_context(|| format!("cannot read the keys in {}", keys.display()))?;
    let mut image =
        Image::open(&Source::Path(image.to_owned()), &keys).context("cannot use the image of the monitor")?;
    let version: String = image.id().chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    let dir = base.join(&version);
    if !dir.exists() {
        let new = base.join(format!(".{version}.new"));
        crate::disk::remove_dir(&new)?;
        crate::disk::make_dir(&new, 0o755)?;
        bali::unpack::unpack(&mut image, &new).context("cannot unpack the image of the monitor")?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open {new:?} to all"))?;
        fs::rename(&new, &dir).with_context(|| format!("cannot rename {new:?}"))?;
    }
    locate(&dir)
}

/// The directory below `dir` that has the monitor's files.
///
/// # Errors
/// When there is none.
pub fn locate(dir: &Path) -> anyhow::Result<PathBuf> {
    for below in ["", "bin", "cradle", "usr/lib/cradle"] {
        let place = dir.join(below);
        if FILES.iter().all(|f| place.join(f).is_file()) {
            return Ok(place);
        }
    }
    bail!("{} does not have {} side by side", dir.display(), FILES.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        for file in ["kcradle", "initramfs.cpio"] {
            fs::write(dir.path().join("bin").join(file), "").unwrap();
        }
        assert!(locate(dir.path()).unwrap_err().to_string().contains("vmlinux"));
        fs::write(dir.path().join("bin/vmlinux"), "").unwrap();
        assert_eq!(locate(dir.path()).unwrap(), dir.path().join("bin"));
    }
}
