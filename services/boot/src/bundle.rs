//! An update: one signed file with everything that a slot needs.
//!
//! It is a bali image without an entrypoint, holding (in this order) `about.json`, `kernel.efi`, `root.erofs`, `root.verity`. Nothing of
//! it is looked at before its signature holds, and nothing is written before `about.json` says that it is for this machine.

use crate::version::Version;
use anyhow::{Context, Result, bail, ensure};
use bali::image::{Image, Kind};
use bali::{Keyring, source::Source};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// Says what the rest is; the first entry.
pub const ABOUT: &str = "about.json";
/// The kernel image for the ESP.
pub const KERNEL: &str = "kernel.efi";
/// What goes to the slot's two partitions, by their names without the slot's letter.
pub const PARTS: [(&str, &str); 2] = [("root.erofs", "kraud-root"), ("root.verity", "kraud-verity")];
const ABOUT_MAX_BYTES: u64 = 64 << 10;

/// What an update says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What it is; other kinds of update are not understood by this version.
    pub kind: String,
    /// The version that it brings.
    pub version: String,
    /// The processor that it is for.
    pub architecture: String,
    /// Which machines it is for, such as `stable`.
    pub channel: String,
    /// The root's dm-verity hash.
    pub root_hash: String,
    /// Seconds since 1970 after which nobody should take it any more; 0 for never.
    #[serde(default)]
    pub expires: u64,
}

/// What an update must fit.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The version that runs.
    pub version: Version,
    /// The channel that this machine follows.
    pub channel: String,
    /// Seconds since 1970, as far as this machine knows.
    pub now: u64,
}

impl About {
    /// Whether the update is for this machine.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check(&self, machine: &Machine) -> Result<Version> {
        ensure!(self.kind == "image", "it is an update of kind `{}`, which this version does not know", self.kind);
        ensure!(
            self.architecture == "x86-64",
            "it is for processors of kind {}, this one is x86-64",
            self.architecture
        );
        ensure!(
            self.channel == machine.channel,
            "it is for the channel `{}`, this machine follows `{}`",
            self.channel,
            machine.channel
        );
        let version = Version::parse(&self.version)?;
        ensure!(version > machine.version, "it brings {version}, and {} runs already", machine.version);
        ensure!(self.expires == 0 || machine.now < self.expires, "it has expired: get a newer one");
        let hex = self.root_hash.len() == 64 && self.root_hash.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(hex, "its root hash is none");
        Ok(version)
    }
}

/// A verified update.
#[derive(Debug)]
pub struct Bundle {
    image: Image,
    /// What it says of itself.
    pub about: About,
}

impl Bundle {
    /// Fetches an update and verifies it with the keys in `keys`.
    ///
    /// # Errors
    /// Those of [`Image::open`]; when it is signed but no update.
    pub fn open(source: &str, keys: &Path) -> Result<Self> {
        let keyring = Keyring::load(keys)?;
        // A plain name is a file here, and not an installed service.
        let source = if source.contains('/') { source.to_owned() } else { format!("./{source}") };
        let mut image = Image::open(&Source::parse(&source, Path::new("/"))?, &keyring)?;
        let mut about = None;
        let mut first = true;
        image.for_each(|path, kind, data| {
            if std::mem::take(&mut first) && path == ABOUT && matches!(kind, Kind::File { .. }) {
                let mut text = Vec::new();
                // Checked below: what is cut off is no JSON.
                let _ = data.take(ABOUT_MAX_BYTES).read_to_end(&mut text);
                about = serde_json::from_slice(&text).ok();
            }
            Ok(())
        })?;
        let Some(about) = about else { bail!("{source} is signed, but is no update") };
        Ok(Self { image, about })
    }

    /// Gives each part of the update to `take`, with its length.
    ///
    /// # Errors
    /// `take`'s own; when a part is missing.
    pub fn parts(&mut self, mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<()>) -> Result<()> {
        let mut missing: Vec<&str> = PARTS.iter().map(|(file, _)| *file).chain([KERNEL]).collect();
        let mut failed = Ok(());
        self.image.for_each(|path, kind, data| {
            if let (Kind::File { len, .. }, true) = (kind, failed.is_ok()) {
                missing.retain(|name| *name != path);
                failed = take(path, *len, data).with_context(|| format!("cannot write {path}"));
            }
            Ok(())
        })?;
        failed?;
        ensure!(missing.is_empty(), "the update lacks {}", missing.join(", "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            kind: "image".into(),
            version: "1.2.0".into(),
            architecture: "x86-64".into(),
            channel: "stable".into(),
            root_hash: "a".repeat(64),
            expires: 0,
        }
    }

    fn refused(change: impl FnOnce(&mut About)) -> String {
        let machine = Machine { version: Version::parse("1.1.9").unwrap(), channel: "stable".into(), now: 1000 };
        let mut about = about();
        change(&mut about);
        about.check(&machine).map_or_else(|error| error.to_string(), |version| format!("taken: {version}"))
    }

    #[test]
    fn an_update_is_taken_only_by_the_machines_that_it_is_for() {
        assert_eq!(refused(|_| ()), "taken: 1.2.0");
        assert_eq!(refused(|a| a.expires = 1001), "taken: 1.2.0");
        type Change = fn(&mut About);
        let cases: [(&str, Change); 8] = [
            ("1.1.9 runs already", |a| a.version = "1.1.9".into()),
            ("1.1.9 runs already", |a| a.version = "1.0".into()),
            ("no version", |a| a.version = "latest".into()),
            ("kind `service`", |a| a.kind = "service".into()),
            ("aarch64", |a| a.architecture = "aarch64".into()),
            ("channel `beta`", |a| a.channel = "beta".into()),
            ("expired", |a| a.expires = 1000),
            ("hash", |a| a.root_hash = "zz".into()),
        ];
        for (reason, change) in cases {
            let said = refused(change);
            assert!(said.contains(reason), "{said}");
        }
    }

    /// A bundle made of `files`, and the folder of the keys that its maker has.
    fn bundle(dir: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        for (name, text) in files {
            std::fs::write(root.join(name), text).unwrap();
        }
        let keys = dir.join("keys");
        std::fs::create_dir_all(&keys).unwrap();
        let key = bali::SigningKey::generate().unwrap();
        key.save(&keys.join("zone")).unwrap();
        let file = dir.join("update");
        bali::build::Content::from_root(&root).unwrap().write(&file, &key).unwrap();
        file
    }

    #[test]
    fn every_changed_or_missing_byte_and_every_other_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&about()).unwrap();
        let file = bundle(dir.path(), &[(ABOUT, &text), (KERNEL, "k"), ("root.erofs", "r"), ("root.verity", "v")]);
        let keys = dir.path().join("keys");
        let name = file.to_str().unwrap();
        assert_eq!(Bundle::open(name, &keys).unwrap().about, about());
        let whole = std::fs::read(&file).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            std::fs::write(&file, &changed).unwrap();
            assert!(Bundle::open(name, &keys).is_err(), "byte {at}");
        }
        for length in [0, 50, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&file, &whole[..length]).unwrap();
            assert!(Bundle::open(name, &keys).is_err(), "cut at {length}");
        }
        std::fs::write(&file, &whole).unwrap();
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        bali::SigningKey::generate().unwrap().save(&other.join("k")).unwrap();
        assert!(Bundle::open(name, &other).is_err());
    }

    #[test]
    fn a_signed_file_that_is_no_update_or_lacks_a_part_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = bundle(dir.path(), &[("something", "else")]);
        let error = Bundle::open(file.to_str().unwrap(), &dir.path().join("keys")).unwrap_err().to_string();
        assert!(error.contains("no update"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let text = serde_json::to_string(&about()).unwrap();
        let file = bundle(dir.path(), &[(ABOUT, &text), (KERNEL, "k"), ("root.erofs", "r")]);
        let mut bundle = Bundle::open(file.to_str().unwrap(), &dir.path().join("keys")).unwrap();
        let error = bundle.parts(|_, _, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("lacks root.verity"), "{error}");
    }
}
