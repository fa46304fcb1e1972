//! Which packages a tree would be made of, by apt and the mirrors' indexes alone: nothing is downloaded or installed.
//!
//! apt runs in a folder of its own with the tree's sources and pins, and twice, as mmdebstrap installs: what is essential first, then
//! the rest on top of that. Nothing of the machine's apt is read but the keys that it trusts, and nothing needs root.

use super::error::{At, Result};
use super::lock::{Package, Packages};
use super::mirror::SUITE;
use super::{debs, host};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders that apt wants.
const FOLDERS: [&str; 7] = ["conf.d", "lists/partial", "archives/partial", "keys", "sources.d", "preferences.d", "log"];

/// apt in a folder of its own.
#[derive(Debug)]
pub struct Apt {
    dir: tempfile::TempDir,
    log: PathBuf,
}

impl Apt {
    /// Fetches the indexes of `sources`, which are lines of apt's sources. What it says goes to `log`.
    ///
    /// # Errors
    /// When a mirror does not answer, or its signature is nobody's that this machine trusts.
    pub fn new(sources: &str, log: &Path) -> Result<Self> {
        let apt = Self { dir: tempfile::tempdir().at("make", std::env::temp_dir())?, log: log.to_owned() };
        let dir = apt.dir.path();
        for folder in FOLDERS {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).at("make", &folder)?;
        }
        trust(&dir.join("keys"))?;
        apt.write("sources.list", sources)?;
        apt.write("status", "")?;
        apt.write("preferences", "")?;
        host::run("packages", log, apt.command("apt-get", false).args(["update", "-q"]))?;
        Ok(apt)
    }

    /// The packages that mmdebstrap would make a tree of: those of `list` and what they need, on top of what is essential (and apt,
    /// unless the tree is `bare`), and those of `beside`, which are unpacked and not installed.
    ///
    /// # Errors
    /// When a package is not there, or cannot be installed.
    pub fn resolve(&self, list: &[String], bare: bool, beside: &[&str], preferences: &str) -> Result<Packages> {
        self.write("preferences", preferences)?;
        self.write("status", "")?;
        let essential =
            format!("?narrow(?or(?archive(^{SUITE}$),?codename(^{SUITE}$)),?architecture(amd64),?essential)");
        let first: &[&str] = if bare { &["install", &essential] } else { &["dist-upgrade"] };
        let mut packages = self.uris(bare, first)?;
        self.write("status", &self.as_installed(&packages)?)?;
        let mut then = vec!["install"];
        then.extend(list.iter().map(String::as_str));
        packages.extend(self.uris(bare, &then)?);
        for name in beside {
            packages.extend(self.uris(bare, &["download", name])?);
        }
        Ok(packages)
    }

    fn uris(&self, bare: bool, words: &[&str]) -> Result<Packages> {
        let mut command = self.command("apt-get", bare);
        command.args(["-qq", "--yes", "--allow-downgrades", "--print-uris"]).args(words);
        Ok(parse_uris(&host::output("packages", &self.log, &mut command)?))
    }

    /// dpkg's record of a machine that has these packages.
    fn as_installed(&self, packages: &Packages) -> Result<String> {
        let names = packages.iter().map(|(name, package)| format!("{name}={}", package.version));
        let shown = host::output("packages", &self.log, self.command("apt-cache", false).arg("show").args(names))?;
        Ok(shown.replace("\nVersion: ", "\nStatus: install ok installed\nVersion: "))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.path().join(name);
        fs::write(&path, text).at("write", path)
    }

    fn command(&self, program: &str, bare: bool) -> Command {
        // apt counts itself as essential unless told not to, and remembers that in its cache.
        let (essential, remembered) = if bare { (",", "bare") } else { ("apt", "full") };
        let dir = self.dir.path();
        let mut command = Command::new(program);
        // Read before any other configuration; the machine's own is looked for under this folder, where there is none.
        let config = dir.join("apt.conf");
        let text = format!(
            r#"Dir "{0}/"; Dir::Etc "{0}/"; Dir::Etc::main "none"; Dir::Etc::parts "conf.d";
Dir::Etc::sourcelist "sources.list"; Dir::Etc::sourceparts "sources.d"; Dir::Etc::preferences "preferences";
Dir::Etc::preferencesparts "preferences.d"; Dir::Etc::trusted "none.gpg"; Dir::Etc::trustedparts "keys";
Dir::State "{0}/"; Dir::State::lists "lists"; Dir::State::status "{0}/status"; Dir::State::extended_states "extended";
Dir::Cache "{0}/"; Dir::Cache::archives "archives"; Dir::Log "{0}/log"; APT::Architecture "amd64"; APT::Architectures "amd64";
APT::Install-Recommends "false"; APT::Sandbox::User "root"; APT::Get::List-Cleanup "false"; Acquire::Languages "none";
Acquire::Retries "3"; Acquire::ForceHash "SHA256"; pkgCacheGen::ForceEssential "{essential}";
Dir::Cache::pkgcache "{remembered}.bin"; Dir::Cache::srcpkgcache "{remembered}-src.bin";
"#,
            dir.display()
        );
        let _ = fs::write(&config, text);
        command.env("APT_CONFIG", config);
        command
    }
}

/// The keys of Debian's archive that this machine has.
fn trust(keys: &Path) -> Result<()> {
    for dir in ["/usr/share/keyrings", "/etc/apt/trusted.gpg.d"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            let known = name.starts_with("debian-archive-") && !name.contains("removed");
            if known && [".gpg", ".asc", ".pgp"].iter().any(|end| name.ends_with(end)) {
                // apt looks only at two of the names that there are.
                let name = name.replace(".pgp", ".gpg");
                fs::copy(&path, keys.join(name)).at("copy", path)?;
            }
        }
    }
    Ok(())
}

/// Lines `'URL' FILE SIZE SHA256:HASH`.
fn parse_uris(text: &str) -> Packages {
    let mut packages = Packages::new();
    for line in text.lines().filter_map(|line| line.strip_prefix('\'')) {
        let mut words = line.split_whitespace().skip(1);
        let (file, hash) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        if let (Some((name, version)), Some(sha256)) = (debs::parse_name(file), hash.strip_prefix("SHA256:")) {
            packages.insert(name, Package { version, sha256: sha256.to_owned() });
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_fetch_is_read() {
        let text = "Reading…\n'http://m/pool/b/bc_1.07-4_amd64.deb' bc_1.07-4_amd64.deb 105 SHA256:ab\n\
            'http://m/pool/b/bison_3.deb' bison_2%3a3.8_amd64.deb 1 SHA256:cd\n'http://m/x' x 1 MD5Sum:00\n";
        let packages = parse_uris(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages["bison"], Package { version: "2:3.8".into(), sha256: "cd".into() });
    }
}
