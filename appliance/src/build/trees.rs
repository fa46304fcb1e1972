//! The Debian trees, made by mmdebstrap: `tools`, `build`, `root` and `dev`.
//!
//! An entry holds `tree/`, which nobody changes afterwards, and `versions`, the list of what is in it: the key of all that is
//! made from the tree.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::Key;
use super::lock::{self, Lock, Versions};
use super::mirror::{SUITE, Sources};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Time stamps in trees and images: a build's result does not depend on the day.
pub const EPOCH: &str = "1767225600";
/// All trees.
pub const NAMES: [&str; 4] = ["tools", "build", "root", "dev"];
/// What the `root` and `dev` trees leave out of each package.
const NO_DOCS: [&str; 5] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*"];
/// The sources of the ZFS modules, unpacked and not installed: their package would compile them its own way.
const FETCH_ZFS: &str = r#"cd "$1/usr/src" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download -q zfs-dkms && dpkg-deb -x zfs-dkms_*.deb zfs-dkms && rm zfs-dkms_*.deb"#;

/// A finished tree.
#[derive(Clone, Debug)]
pub struct Tree {
    pub path: PathBuf,
    pub versions: Versions,
}

impl Tree {
    /// The versions as text, for keys of what is made from the tree.
    #[must_use]
    pub fn identity(&self) -> String {
        self.versions.iter().fold(String::new(), |mut text, (name, version)| {
            let _ = writeln!(text, "{name} {version}");
            text
        })
    }
}

/// What all trees are made from.
pub struct Trees<'a> {
    pub cache: &'a Cache,
    pub host: Host,
    pub recipes: &'a Path,
    pub sources: &'a Sources,
    pub lock: &'a Lock,
    /// Part of every tree's key: makes them anew although the cache has them.
    pub fresh: Option<String>,
}

impl Trees<'_> {
    /// Makes or finds the tree `name`, whose packages are in `packages/NAME.list`.
    ///
    /// # Errors
    /// When the mirror does not carry the suite or a package, or mmdebstrap fails.
    pub fn make(&self, name: &str, progress: &mut dyn Progress) -> Result<Tree> {
        let packages = self.packages(name)?;
        let preferences = lock::preferences(&self.lock.tree(name));
        let mut key = key(name, &packages, &preferences);
        if let Some(fresh) = &self.fresh {
            key = key.text("fresh", fresh);
        }
        let step = format!("tree-{name}");
        let entry = self.cache.step(progress, &step, key, |dir, progress| {
            let log = self.cache.log(&step);
            self.host.may(&step, progress)?;
            self.host.need_mmdebstrap(&log, progress)?;
            fs::write(dir.join("preferences"), &preferences).at("write", dir)?;
            fs::write(dir.join("sources"), self.sources.text()).at("write", dir)?;
            self.bootstrap(name, &packages, dir, &log)?;
            let status = host::read(&dir.join("tree/var/lib/dpkg/status"))?;
            let versions = lock::parse_status(&status);
            let tree = Tree { path: dir.join("tree"), versions };
            fs::write(dir.join("versions"), tree.identity()).at("write", dir)
        })?;
        let versions = host::read(&entry.join("versions"))?;
        let versions =
            versions.lines().filter_map(|l| l.split_once(' ')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        Ok(Tree { path: entry.join("tree"), versions })
    }

    /// Gives a tree that was made without a lock the key that it has once its versions are the lock, so that the next build
    /// finds it.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn keep_as_locked(&self, name: &str, tree: &Tree) -> Result<()> {
        let key = key(name, &self.packages(name)?, &lock::preferences(&tree.versions));
        let Some(entry) = tree.path.parent() else { return Ok(()) };
        self.cache.rekey(&format!("tree-{name}"), entry, key)
    }

    fn packages(&self, name: &str) -> Result<String> {
        Ok(host::read_list(&self.recipes.join("packages").join(format!("{name}.list")))?.join(","))
    }

    fn bootstrap(&self, name: &str, packages: &str, dir: &Path, log: &Path) -> Result<()> {
        let mut command = self.host.command("env");
        // The kernel's package would make an initrd that nobody boots.
        command.args(["INITRD=No", &format!("SOURCE_DATE_EPOCH={EPOCH}"), "mmdebstrap", "--mode=root"]);
        let lean = matches!(name, "root" | "dev");
        command.arg(if name == "root" { "--variant=essential" } else { "--variant=apt" });
        command.args([
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=force-confold",
            "--aptopt=APT::Install-Recommends \"false\"",
            "--aptopt=Acquire::Retries \"3\"",
        ]);
        if lean {
            command.args(NO_DOCS.map(|path| format!("--dpkgopt=path-exclude={path}")));
        }
        command.arg("--setup-hook=mkdir -p \"$1/etc/initramfs-tools\" && echo update_initramfs=no > \"$1/etc/initramfs-tools/update-initramfs.conf\"");
        command.arg(format!(
            "--setup-hook=mkdir -p \"$1/etc/apt/preferences.d\" && cp {} \"$1/etc/apt/preferences.d/lock\"",
            quote(&dir.join("preferences"))
        ));
        if name == "build" {
            command.arg(format!("--customize-hook={FETCH_ZFS}"));
        }
        command.arg(format!("--include={packages}")).arg(SUITE).arg(dir.join("tree")).arg(dir.join("sources"));
        host::run("tree", log, &mut command).map_err(|error| self.explain(error))
    }

    /// Turns the failures that a user can do something about into words.
    fn explain(&self, error: Error) -> Error {
        let Error::Tool { ref log, .. } = error else { return error };
        match reason(&fs::read_to_string(log).unwrap_or_default()) {
            Some((reason, todo)) => {
                Error::Mirror { url: self.sources.url.clone(), suite: SUITE, reason, todo, log: log.clone() }
            }
            None => error,
        }
    }
}

/// What apt says of a mirror that does not do, and what helps.
fn reason(log: &str) -> Option<(String, &'static str)> {
    const UNREACHED: &str = "see that this computer reaches it, or give another one with --mirror URL";
    const UNKNOWN_KEY: &str = "this computer's package debian-archive-keyring may be too old, upgrade it, or give another mirror with --mirror URL";
    const LACKING: &str = "give another one with --mirror URL";
    const KNOWN: [(&str, &str); 14] = [
        ("NO_PUBKEY", UNKNOWN_KEY),
        ("EXPKEYSIG", UNKNOWN_KEY),
        ("Missing key", UNKNOWN_KEY),
        ("Could not resolve", UNREACHED),
        ("Temporary failure resolving", UNREACHED),
        ("Could not connect", UNREACHED),
        ("Unable to connect", UNREACHED),
        ("Connection failed", UNREACHED),
        ("404 ", LACKING),
        ("does not have a Release file", LACKING),
        ("Unable to locate package", LACKING),
        ("has no installation candidate", LACKING),
        ("Unable to fetch some archives", LACKING),
        ("File not found", LACKING),
    ];
    KNOWN.iter().find_map(|(mark, todo)| {
        let line = log.lines().find(|line| line.contains(mark))?;
        Some((line.trim_start_matches(|c: char| !c.is_alphanumeric()).trim().to_owned(), *todo))
    })
}

fn key(name: &str, packages: &str, preferences: &str) -> Key {
    Key::new(name, 1).text("packages", packages).text("lock", preferences).text("suite", SUITE)
}

/// A path as one word of a shell's command.
#[must_use]
pub fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_says_of_a_mirror_becomes_something_to_do() {
        let refused = "Err:1 http://m trixie InRelease\n  Could not connect to m:80 (::1). - connect (111: Connection refused)\nE: The repository 'http://m trixie Release' does not have a Release file.\n";
        let (said, todo) = reason(refused).unwrap();
        assert!(said.starts_with("Could not connect to m:80") && todo.contains("reaches"), "{said} {todo}");
        let (_, todo) = reason("E: The repository 'http://m trixie Release' does not have a Release file.").unwrap();
        assert_eq!(todo, "give another one with --mirror URL");
        let (_, todo) = reason("W: GPG error: NO_PUBKEY 6ED0E7B82643E131").unwrap();
        assert!(todo.contains("debian-archive-keyring"));
        assert!(reason("dpkg: error processing package").is_none());
    }
}
