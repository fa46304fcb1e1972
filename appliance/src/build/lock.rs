//! `image-recipes/packages.lock`: the exact version of every package of every tree.
//!
//! One line a package: `TREE NAME VERSION`, sorted. A tree is made with these versions pinned; where the mirror no longer has one,
//! apt takes what there is, and the comparison afterwards says so.

use super::error::{At, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Package name to version.
pub type Versions = BTreeMap<String, String>;

const HEADER: &str = "# Exact package versions of the trees. Made by `cargo appliance lock`; do not edit.\n";

/// The whole lock: tree name to versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock(BTreeMap<String, Versions>);

impl Lock {
    /// Reads the lock; an absent file is an empty lock.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).at("read", path),
        }
    }

    /// The versions of one tree; empty when the lock does not know the tree.
    #[must_use]
    pub fn tree(&self, name: &str) -> Versions {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Sets one tree's versions.
    pub fn set(&mut self, name: &str, versions: Versions) {
        self.0.insert(name.to_owned(), versions);
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (tree, versions) in &self.0 {
            for (name, version) in versions {
                let _ = writeln!(text, "{tree} {name} {version}");
            }
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut lock = Self::default();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if let [tree, name, version] = line.split_whitespace().collect::<Vec<_>>().as_slice() {
                lock.0.entry((*tree).to_owned()).or_default().insert((*name).to_owned(), (*version).to_owned());
            }
        }
        lock
    }
}

/// The installed packages by dpkg's own record (`var/lib/dpkg/status`).
#[must_use]
pub fn parse_status(status: &str) -> Versions {
    let mut versions = Versions::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        if let (Some(package), Some(version), Some(true)) =
            (field("Package"), field("Version"), field("Status").map(|s| s.ends_with(" installed")))
        {
            versions.insert(package.to_owned(), version.to_owned());
        }
    }
    versions
}

/// apt preferences that hold every package at its locked version, or let it move when that is gone.
#[must_use]
pub fn preferences(locked: &Versions) -> String {
    locked
        .iter()
        .map(|(name, version)| format!("Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"))
        .collect()
}

/// What differs from the lock, one line each; empty when nothing does.
#[must_use]
pub fn moved(tree: &str, locked: &Versions, now: &Versions) -> Vec<String> {
    let mut moved = Vec::new();
    for (name, version) in now {
        match locked.get(name) {
            Some(old) if old == version => {}
            Some(old) => moved.push(format!("{tree}: {name} {old} -> {version}")),
            None => moved.push(format!("{tree}: {name} {version} is new")),
        }
    }
    moved.extend(locked.keys().filter(|name| !now.contains_key(*name)).map(|name| format!("{tree}: {name} is gone")));
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(list: &[(&str, &str)]) -> Versions {
        list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_lock_reads_back_what_it_wrote() {
        let mut lock = Lock::default();
        lock.set("root", versions(&[("libc6", "2.41-12"), ("bash", "5.2-1+b1")]));
        lock.set("build", versions(&[("gcc", "4:14.2.0-1")]));
        assert_eq!(Lock::parse(&lock.text()), lock);
    }

    #[test]
    fn packages_that_are_only_configured_are_not_installed() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\nDescription: x\n Version: 9\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n";
        assert_eq!(parse_status(status), versions(&[("a", "1")]));
    }

    #[test]
    fn every_kind_of_move_is_named() {
        let old = versions(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let new = versions(&[("a", "1"), ("b", "2"), ("d", "1")]);
        assert_eq!(moved("root", &old, &new), ["root: b 1 -> 2", "root: d 1 is new", "root: c is gone"]);
        assert!(moved("root", &old, &old).is_empty());
    }
}
