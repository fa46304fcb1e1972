//! The boot menu: one kernel image for each slot, with the tries that it has left in its name (the boot loader's counting,
//! <https://uapi-group.org/specifications/specs/boot_loader_specification/#boot-counting>).
//!
//! `kraudbox-1.2.0+3.efi` has three tries; each start of it makes that `+2-1`, `+1-2`, `+0-3`. With none left the loader takes another
//! entry. Without a counter it has proved itself.

use crate::version::Version;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const PREFIX: &str = "kraudbox-";
/// How often a new image may fail to prove itself.
const TRIES: u32 = 3;
/// The loader's own word on which file it counts down, as UTF-16 after four bytes of attributes.
const COUNTED: &str = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// A kernel image in the boot menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it boots.
    pub version: Version,
    /// Tries left, while it has not proved itself.
    pub tries: Option<u32>,
    /// The file.
    pub path: PathBuf,
}

impl Entry {
    fn parse(path: PathBuf) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(".efi")?;
        let (version, counter) = stem.split_once('+').map_or((stem, None), |(v, c)| (v, Some(c)));
        let tries = match counter {
            Some(counter) => Some(counter.split('-').next()?.parse().ok()?),
            None => None,
        };
        Some(Self { version: Version::parse(version).ok()?, tries, path })
    }

    /// The menu's file names: without a counter the entry has proved itself.
    fn name(version: &Version, counter: &str) -> String {
        format!("{PREFIX}{version}{counter}.efi")
    }
}

/// All entries of ours, newest first.
///
/// # Errors
/// When the menu cannot be read.
pub fn all(menu: &Path) -> Result<Vec<Entry>> {
    let files = fs::read_dir(menu).with_context(|| format!("cannot read {}", menu.display()))?;
    let mut entries: Vec<_> = files.flatten().filter_map(|file| Entry::parse(file.path())).collect();
    entries.sort_by(|a, b| b.version.cmp(&a.version));
    Ok(entries)
}

/// Removes every entry but that of the version that runs: the other slot is going to change under them.
///
/// # Errors
/// When one cannot be removed.
pub fn keep_only(menu: &Path, running: &Version) -> Result<()> {
    for entry in all(menu)?.iter().filter(|entry| entry.version != *running) {
        fs::remove_file(&entry.path).with_context(|| format!("cannot remove {}", entry.path.display()))?;
    }
    sync(menu)
}

/// Adds a kernel image with all its tries; it appears by one rename.
///
/// # Errors
/// When it cannot be written.
pub fn add(menu: &Path, version: &Version, kernel: &Path) -> Result<()> {
    let path = menu.join(Entry::name(version, &format!("+{TRIES}")));
    fs::rename(kernel, &path).with_context(|| format!("cannot make {}", path.display()))?;
    sync(menu)
}

/// Says that a version has proved itself, or that it never will.
///
/// # Errors
/// When its entry is not there or cannot be renamed.
pub fn judge(menu: &Path, version: &Version, good: bool) -> Result<()> {
    let entries = all(menu)?;
    let entry = entries.iter().find(|e| e.version == *version).context("the version that runs is not in the menu")?;
    let counter = if good { String::new() } else { format!("+0-{TRIES}") };
    let to = menu.join(Entry::name(version, &counter));
    fs::rename(&entry.path, &to).with_context(|| format!("cannot rename {}", entry.path.display()))?;
    sync(menu)
}

/// Whether the loader counts this boot: the image that runs has not proved itself yet.
#[must_use]
pub fn is_counted() -> bool {
    Path::new(COUNTED).exists()
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot write {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn menu(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn counters_are_read_and_strangers_are_left_alone() {
        let dir = menu(&[
            "kraudbox-0.9.0.efi",
            "kraudbox-0.10.0+2-1.efi",
            "other.efi",
            "kraudbox-x.efi",
            "kraudbox-1.0+.efi",
        ]);
        let found: Vec<_> = all(dir.path()).unwrap().into_iter().map(|e| (e.version.to_string(), e.tries)).collect();
        assert_eq!(found, [("0.10.0".into(), Some(2)), ("0.9.0".into(), None)]);
    }

    #[test]
    fn a_new_entry_has_three_tries_and_replaces_all_but_the_one_that_runs() {
        let dir = menu(&["kraudbox-1.0.efi", "kraudbox-0.9.efi", "kraudbox-1.1+0-3.efi", "new.tmp"]);
        keep_only(dir.path(), &Version::parse("1.0").unwrap()).unwrap();
        add(dir.path(), &Version::parse("1.2").unwrap(), &dir.path().join("new.tmp")).unwrap();
        assert_eq!(names(dir.path()), ["kraudbox-1.0.efi", "kraudbox-1.2+3.efi"]);
    }

    #[test]
    fn a_good_entry_loses_its_counter_and_a_bad_one_its_tries() {
        let version = Version::parse("1.2").unwrap();
        for (good, expected) in [(true, "kraudbox-1.2.efi"), (false, "kraudbox-1.2+0-3.efi")] {
            let dir = menu(&["kraudbox-1.2+2-1.efi"]);
            judge(dir.path(), &version, good).unwrap();
            assert_eq!(names(dir.path()), [expected]);
        }
    }
}
