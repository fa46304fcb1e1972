//! Our own programs, compiled in the release profile.
//!
//! The step's key is over the sources and the compiler, so that a checkout whose programs were compiled before, in whatever
//! folder, compiles nothing. Programs are static and know no path of this computer, which is why they can be shared and why
//! the same sources give the same bytes everywhere.

use super::Progress;
use super::cache::Cache;
use super::error::{Error, Result};
use super::host;
use super::key::Key;
use super::root::copy;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What programs are compiled for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What any program is compiled from besides its folders.
const ALWAYS: [&str; 4] = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", ".cargo/config.toml"];

/// Programs that are compiled together.
pub(crate) struct Programs<'a> {
    /// The step's name.
    pub step: &'a str,
    /// The workspace's root.
    pub workspace: &'a Path,
    /// Folders of the workspace that hold all sources.
    pub folders: &'a [&'a str],
    /// Package and binary of each.
    pub wanted: &'a [(String, String)],
}

impl Programs<'_> {
    /// The folder with the binaries.
    ///
    /// # Errors
    /// When a source cannot be read or changes meanwhile, or when cargo fails.
    pub fn compile(&self, cache: &Cache, progress: &mut dyn Progress) -> Result<PathBuf> {
        let key = self.key(cache)?;
        let before = key.clone().hex();
        cache.step(progress, self.step, key, |dir, _| {
            let release = self.cargo(cache)?;
            if self.key(cache)?.hex() != before {
                let what = "was changed while it was compiled; run the command again".into();
                return Err(Error::Recipe { path: self.workspace.to_owned(), what });
            }
            self.wanted.iter().try_for_each(|(_, binary)| copy(&release.join(binary), &dir.join(binary)))
        })
    }

    fn key(&self, cache: &Cache) -> Result<Key> {
        let compiler = host::output(
            self.step,
            &cache.log(self.step),
            Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                .current_dir(self.workspace)
                .arg("-vV"),
        )?;
        let mut key = Key::new(self.step, 2).text("compiler", &compiler);
        for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
            key = key.text(flags, &std::env::var(flags).unwrap_or_default());
        }
        for (package, binary) in self.wanted {
            key = key.text("package", package).text("binary", binary);
        }
        for file in ALWAYS {
            key = key.file(&self.workspace.join(file))?;
        }
        self.folders.iter().try_fold(key, |key, folder| key.text("folder", folder).tree(&self.workspace.join(folder)))
    }

    /// Compiles; the folder where cargo puts binaries.
    fn cargo(&self, cache: &Cache) -> Result<PathBuf> {
        let target = cache.target(self.workspace);
        let mut command = host::cargo();
        command
            .current_dir(self.workspace)
            .args(["build", "--release", "--locked", "--target", TARGET, "--config"])
            .arg(self.without_paths(cache, &target)?)
            .arg("--target-dir")
            .arg(&target);
        for (package, _) in self.wanted {
            command.args(["-p", package]);
        }
        host::run(self.step, &cache.log(self.step), &mut command)?;
        Ok(target.join(TARGET).join("release"))
    }

    /// A setting of cargo that takes the places of this computer out of what panics say of themselves.
    fn without_paths(&self, cache: &Cache, target: &Path) -> Result<String> {
        let mut fetch = host::cargo();
        fetch.current_dir(self.workspace).args(["fetch", "--locked", "--target", TARGET]);
        // A folder of sources is there, and has its name, only when they are.
        host::run(self.step, &cache.log(self.step), &mut fetch)?;
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo"))).ok_or(Error::NoHome)?;
        let sources = home.join("registry/src");
        let registries = std::fs::read_dir(&sources).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut places: Vec<_> = registries.map(|path| (path, "/crates")).collect();
        places.sort();
        places.push((target.to_owned(), "/target"));
        Ok(rustflags(&places))
    }
}

/// `places` by other names, in the form of `cargo --config`; cargo adds it to the flags of the workspace.
fn rustflags(places: &[(PathBuf, &str)]) -> String {
    let flag = |(from, to): &(PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
    let flags = places.iter().map(|place| serde_json::Value::from(flag(place)).to_string()).collect::<Vec<_>>();
    // A string of JSON is one of TOML.
    format!("target.{TARGET}.rustflags=[{}]", flags.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_flags_that_cargo_reads() {
        let places = [(PathBuf::from("/home/a \"b\"/src"), "/crates"), ("/t".into(), "/target")];
        assert_eq!(
            rustflags(&places),
            r#"target.x86_64-unknown-linux-gnu.rustflags=["--remap-path-prefix=/home/a \"b\"/src=/crates","--remap-path-prefix=/t=/target"]"#
        );
    }
}
