//! `image-recipes/packages.lock`: the exact version of every package of every tree, and the hash of its .deb.
//!
//! One line a package: `TREE NAME VERSION SHA256`, sorted. A tree is made with these versions pinned; where nobody has one any more,
//! apt takes what there is, and the comparison afterwards says so.

use super::error::{At, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// What a package is, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub version: String,
    /// Of the .deb, in hex; empty in a lock from before hashes were in it.
    pub sha256: String,
}

/// Packages by their names.
pub type Packages = BTreeMap<String, Package>;

const HEADER: &str =
    "# Exact packages of the trees with the SHA-256 of each .deb. Made by `cargo appliance lock`; do not edit.\n";

/// The whole lock: tree name to packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock(BTreeMap<String, Packages>);

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

    /// The packages of one tree; empty when the lock does not know the tree.
    #[must_use]
    pub fn tree(&self, name: &str) -> Packages {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Sets one tree's packages.
    pub fn set(&mut self, name: &str, packages: Packages) {
        self.0.insert(name.to_owned(), packages);
    }

    /// The packages of all trees.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Package)> {
        self.0.values().flatten()
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = HEADER.to_owned();
        for (tree, packages) in &self.0 {
            for line in text_of(packages).lines() {
                let _ = writeln!(text, "{tree} {line}");
            }
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut lock = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((tree, package)) = line.split_once(' ') {
                lock.0.entry(tree.to_owned()).or_default().extend(parse_packages(package));
            }
        }
        lock
    }
}

/// `NAME VERSION SHA256`, a line each.
#[must_use]
pub fn text_of(packages: &Packages) -> String {
    packages.iter().fold(String::new(), |mut text, (name, package)| {
        let _ = writeln!(text, "{}", format!("{name} {} {}", package.version, package.sha256).trim_end());
        text
    })
}

/// The other way round.
#[must_use]
pub fn parse_packages(text: &str) -> Packages {
    let mut packages = Packages::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            packages.insert(name, Package { version, sha256: words.next().unwrap_or_default() });
        }
    }
    packages
}

/// The installed packages with their versions by dpkg's own record (`var/lib/dpkg/status`).
#[must_use]
pub fn parse_status(status: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
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
pub fn preferences(locked: &Packages) -> String {
    locked
        .iter()
        .map(|(name, package)| format!("Package: {name}\nPin: version {}\nPin-Priority: 1001\n\n", package.version))
        .collect()
}

/// What differs from the lock, one line each; empty when nothing does.
#[must_use]
pub fn moved(tree: &str, locked: &Packages, now: &Packages) -> Vec<String> {
    let mut moved = Vec::new();
    for (name, Package { version, sha256 }) in now {
        match locked.get(name) {
            None => moved.push(format!("{tree}: {name} {version} is new")),
            Some(old) if old.version != *version => moved.push(format!("{tree}: {name} {} -> {version}", old.version)),
            Some(old) if old.sha256 != *sha256 => moved.push(format!("{tree}: {name} {version} has another content")),
            Some(_) => {}
        }
    }
    moved.extend(locked.keys().filter(|name| !now.contains_key(*name)).map(|name| format!("{tree}: {name} is gone")));
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(list: &[(&str, &str, &str)]) -> Packages {
        let package = |version: &str, hash: &str| Package { version: version.into(), sha256: hash.into() };
        list.iter().map(|(name, version, hash)| ((*name).to_owned(), package(version, hash))).collect()
    }

    #[test]
    fn a_lock_reads_back_what_it_wrote() {
        let mut lock = Lock::default();
        lock.set("root", packages(&[("libc6", "2.41-12", "ab"), ("bash", "5.2-1+b1", "")]));
        lock.set("build", packages(&[("gcc", "4:14.2.0-1", "cd")]));
        assert_eq!(Lock::parse(&lock.text()), lock);
        assert_eq!(lock.all().count(), 3);
    }

    #[test]
    fn packages_that_are_only_configured_are_not_installed() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\nDescription: x\n Version: 9\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n";
        assert_eq!(parse_status(status).into_iter().collect::<Vec<_>>(), [("a".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn every_kind_of_move_is_named() {
        let old = packages(&[("a", "1", "x"), ("b", "1", "x"), ("c", "1", "x"), ("e", "1", "x")]);
        let new = packages(&[("a", "1", "x"), ("b", "2", "x"), ("d", "1", "x"), ("e", "1", "y")]);
        assert_eq!(
            moved("root", &old, &new),
            ["root: b 1 -> 2", "root: d 1 is new", "root: e 1 has another content", "root: c is gone"]
        );
        assert!(moved("root", &old, &old).is_empty());
    }
}
