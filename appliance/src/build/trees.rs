//! The Debian trees, made by mmdebstrap: `tools`, `build`, `root` and `dev`.
//!
//! An entry holds `tree/`, which nobody changes afterwards, and `packages`, the list of what is in it, with the hashes of the files
//! that it was made from. The versions in it are the key of all that is made from the tree.

use super::Progress;
use super::cache::Cache;
use super::debs;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::Key;
use super::lock::{self, Lock, Packages};
use super::mirror::{SUITE, Sources};
use super::resolve::Apt;
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
const UNPACK: &str = r#"cd "$1/var/cache/apt/archives" && for name in @NAMES@; do APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download -q $name && dpkg-deb -x ${name}_*.deb "$1/usr/src/$name" || exit 1; done"#;
/// The folder of the local package cache, and that of a tree's own until they are taken there.
pub const DEBS: &str = "debs";
/// Packages of the build tree that are unpacked and not installed.
const UNPACKED: [&str; 1] = ["zfs-dkms"];

/// A finished tree.
#[derive(Clone, Debug)]
pub struct Tree {
    pub path: PathBuf,
    pub packages: Packages,
}

impl Tree {
    /// The versions as text, for keys of what is made from the tree.
    #[must_use]
    pub fn identity(&self) -> String {
        self.packages.iter().fold(String::new(), |mut text, (name, package)| {
            let _ = writeln!(text, "{name} {}", package.version);
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
    /// Refuse a tree that is not exactly as the lock says.
    pub strict: bool,
}

impl Trees<'_> {
    /// Makes or finds the tree `name`, whose packages are in `packages/NAME.list`.
    ///
    /// # Errors
    /// When the mirror does not carry the suite or a package, or mmdebstrap fails; [`Error::Unlocked`].
    pub fn make(&self, name: &str, progress: &mut dyn Progress) -> Result<Tree> {
        let list = self.list(name)?;
        let locked = self.lock.tree(name);
        let key = Key::new(name, 2)
            .text("packages", &list.join(","))
            .text("lock", &lock::text_of(&locked))
            .text("suite", SUITE);
        let step = format!("tree-{name}");
        let has_moved = |entry: &Path| Ok(!lock::moved(name, &locked, &packages_of(entry)?).is_empty());
        let key = match self.cache.find(&step, &key) {
            // A tree that took newer versions is of no use here, and one that did not may lie beside it.
            Some(entry) if self.strict && has_moved(&entry)? => key.text("strict", ""),
            _ => key,
        };
        let entry = self.cache.step(progress, &step, key, |dir, progress| {
            let log = self.cache.log(&step);
            let debs = self.cache.kept(DEBS)?;
            let archive = dir.join("archive");
            let (have, all) = debs::offer(&locked, &debs, &archive, &log)?;
            let mut sources = self.sources.text();
            if have > 0 {
                // First, so that nothing is fetched twice; with all there, nobody is asked at all.
                sources = format!("{}\n{}", debs::source(&archive), if self.strict && all { "" } else { &sources });
            }
            if self.strict {
                let apt = Apt::new(&sources, &log).map_err(|error| self.explain(error))?;
                self.require(name, &locked, &self.resolve(&apt, name, &locked)?)?;
            }
            self.host.may(&step, progress)?;
            self.host.need("mmdebstrap", "mmdebstrap", &log, progress)?;
            fs::write(dir.join("preferences"), lock::preferences(&locked)).at("write", dir)?;
            fs::write(dir.join("sources"), sources).at("write", dir)?;
            fs::create_dir(dir.join(DEBS)).at("make", dir)?;
            self.bootstrap(name, &list.join(","), dir, &log)?;
            let packages = debs::take(&dir.join(DEBS), &debs)?;
            debs::check(&host::read(&dir.join("tree/var/lib/dpkg/status"))?, &packages, dir)?;
            if self.strict {
                self.require(name, &locked, &packages)?;
            }
            for folder in [&archive, &dir.join(DEBS)] {
                self.host.remove(folder)?;
            }
            fs::write(dir.join("packages"), lock::text_of(&packages)).at("write", dir)
        })?;
        Ok(Tree { path: entry.join("tree"), packages: packages_of(&entry)? })
    }

    /// apt with the indexes of the mirror.
    ///
    /// # Errors
    /// When the mirror does not answer.
    pub fn apt(&self) -> Result<Apt> {
        let log = self.cache.log("packages");
        let _ = fs::remove_file(&log);
        Apt::new(&self.sources.text(), &log).map_err(|error| self.explain(error))
    }

    /// What the tree `name` would be made of now, without `locked` in the way of newer versions when that is empty.
    ///
    /// # Errors
    /// When a package is not there.
    pub fn resolve(&self, apt: &Apt, name: &str, locked: &Packages) -> Result<Packages> {
        let beside: &[&str] = if name == "build" { &UNPACKED } else { &[] };
        let preferences = lock::preferences(locked);
        apt.resolve(&self.list(name)?, is_bare(name), beside, &preferences).map_err(|error| self.explain(error))
    }

    fn require(&self, name: &str, locked: &Packages, now: &Packages) -> Result<()> {
        let moved = lock::moved(name, locked, now);
        if moved.is_empty() {
            return Ok(());
        }
        Err(Error::Unlocked { moved: moved.iter().map(|line| format!("  {line}\n")).collect() })
    }

    fn list(&self, name: &str) -> Result<Vec<String>> {
        host::read_list(&self.recipes.join("packages").join(format!("{name}.list")))
    }

    fn bootstrap(&self, name: &str, packages: &str, dir: &Path, log: &Path) -> Result<()> {
        // What it mounts goes with it, though it be killed.
        let mut command = self.host.command("unshare");
        command.args(["--mount", "--propagation", "slave", "--", "env"]);
        // The kernel's package would make an initrd that nobody boots.
        command.args(["INITRD=No", &format!("SOURCE_DATE_EPOCH={EPOCH}"), "mmdebstrap", "--mode=root"]);
        let lean = matches!(name, "root" | "dev");
        command.arg(if is_bare(name) { "--variant=essential" } else { "--variant=apt" });
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
            command.arg(format!("--customize-hook={}", UNPACK.replace("@NAMES@", &UNPACKED.join(" "))));
        }
        command.arg("--skip=essential/unlink");
        command.arg(format!("--customize-hook=mv \"$1\"/var/cache/apt/archives/*.deb {}", quote(&dir.join(DEBS))));
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
    const UNSETTLED: &str = "it is being brought up to date: try again in a quarter of an hour";
    const KNOWN: [(&str, &str); 16] = [
        ("Mirror sync in progress", UNSETTLED),
        ("Hash Sum mismatch", UNSETTLED),
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

/// Whether a tree has only what is essential and not apt.
fn is_bare(name: &str) -> bool {
    name == "root"
}

fn packages_of(entry: &Path) -> Result<Packages> {
    Ok(lock::parse_packages(&host::read(&entry.join("packages"))?))
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
