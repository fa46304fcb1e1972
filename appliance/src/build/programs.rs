//! Our own programs, compiled in the release profile.
//!
//! The step's key is over the sources and the compiler, so that a checkout whose programs were compiled before, in whatever
//! folder, compiles nothing. Programs are static and know no path of the checkout, which is why they can be shared.

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
        let mut key = Key::new(self.step, 1).text("compiler", &compiler);
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
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.workspace.join("target"), PathBuf::from);
        let mut command = host::cargo();
        command
            .current_dir(self.workspace)
            .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(&target);
        for (package, _) in self.wanted {
            command.args(["-p", package]);
        }
        host::run(self.step, &cache.log(self.step), &mut command)?;
        Ok(target.join(TARGET).join("release"))
    }
}
