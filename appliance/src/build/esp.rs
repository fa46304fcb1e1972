//! The EFI system partition as a file: a FAT with the same bytes wherever and whenever it is made.
//!
//! systemd-repart would fill it in the order in which the computer's file system lists a folder, with the times of its files.

use super::cache::Cache;
use super::error::{At, Result};
use super::host;
use super::tools::Tools;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const LENGTH: u64 = 512 << 20;

/// Makes `image` with `files`: the place of each in the partition, and where it is now.
///
/// # Errors
/// When the programs that write a FAT fail.
pub(super) fn make(cache: &Cache, tools: &Tools, files: &[(String, PathBuf)], image: &Path) -> Result<()> {
    let log = cache.log("image");
    File::create(image).and_then(|file| file.set_len(LENGTH)).at("make", image)?;
    let mut mkfs = tools.command("mkfs.fat");
    mkfs.args(["-F", "32", "-S", "512", "-s", "8", "-n", "KRAUD-ESP", "--invariant"]).arg(image);
    host::run("image", &log, &mut mkfs)?;
    let folders: BTreeSet<_> = files.iter().flat_map(|(place, _)| above(place)).collect();
    let mut mmd = mtools(tools, "mmd", image);
    mmd.args(folders.iter().map(|folder| format!("::/{folder}")));
    host::run("image", &log, &mut mmd)?;
    for (place, from) in files {
        host::run("image", &log, mtools(tools, "mcopy", image).arg(from).arg(format!("::/{place}")))?;
    }
    Ok(())
}

/// A program of mtools; the times that it writes are [`super::trees::EPOCH`], in the zone that it is told here.
fn mtools(tools: &Tools, program: &str, image: &Path) -> Command {
    let mut command = tools.command(program);
    command.env("TZ", "UTC").env("MTOOLSRC", "/dev/null").arg("-i").arg(image);
    command
}

/// The folders above a place, outermost first.
fn above(place: &str) -> impl Iterator<Item = &str> {
    place.match_indices('/').map(|(at, _)| &place[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        assert_eq!(above("EFI/BOOT/BOOTX64.EFI").collect::<Vec<_>>(), ["EFI", "EFI/BOOT"]);
        assert_eq!(above("file").count(), 0);
    }
}
