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
        let entry = self.cache.step(progress, &step, key, |dir, _| {
            let log = self.cache.log(&step);
            self.host.need_mmdebstrap(&log)?;
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

    /// Turns the two failures that a user can do something about into words.
    fn explain(&self, error: Error) -> Error {
        let Error::Tool { ref log, .. } = error else { return error };
        let text = fs::read_to_string(log).unwrap_or_default();
        let known = [
            "Unable to locate package",
            "has no installation candidate",
            "404 ",
            "Could not resolve",
            "Could not connect",
            "does not have a Release file",
            "NO_PUBKEY",
        ];
        match text.lines().find(|line| known.iter().any(|k| line.contains(k))) {
            Some(line) => Error::Mirror {
                url: self.sources.url.clone(),
                suite: SUITE,
                reason: format!(
                    "{}; give another one with --mirror URL (the whole output is in {})",
                    line.trim(),
                    log.display()
                ),
            },
            None => error,
        }
    }
}

fn key(name: &str, packages: &str, preferences: &str) -> Key {
    Key::new(name, 1).text("packages", packages).text("lock", preferences).text("suite", SUITE)
}

/// A path as one word of a shell's command.
#[must_use]
pub fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}
