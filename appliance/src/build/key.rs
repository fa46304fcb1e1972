//! Keys of the cache: a hash over everything that a step reads.
//!
//! Every part is length-prefixed and named, so that no two different sets of inputs give the same bytes.

use super::error::{At, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use zone::ids::hex;

/// A key under construction.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    /// Starts a key; raise `version` when the step's own code changes what it makes.
    #[must_use]
    pub fn new(step: &str, version: u32) -> Self {
        Self(Sha256::new()).text("step", step).text("version", &version.to_string())
    }

    /// Adds a value.
    #[must_use]
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.part(name.as_bytes());
        self.part(value.as_bytes());
        self
    }

    /// Adds one file's content.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(self, path: &Path) -> Result<Self> {
        let hash = hash_file(path)?;
        Ok(self.text("file", &hash))
    }

    /// Adds all below a folder: names, links, contents, and what can be run. The other modes of a checkout are its user's taste.
    ///
    /// # Errors
    /// When something in it cannot be read.
    pub fn tree(mut self, dir: &Path) -> Result<Self> {
        let mut entries = fs::read_dir(dir).at("read", dir)?.collect::<std::io::Result<Vec<_>>>().at("read", dir)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).at("read", &path)?;
            self.part(entry.file_name().as_bytes());
            let kind: u8 = if meta.is_dir() { 0 } else { 1 + u8::from(meta.permissions().mode() & 0o100 != 0) };
            self.part(&[kind]);
            if meta.is_dir() {
                self = self.tree(&path)?;
                self.part(b"end of folder");
            } else if meta.is_symlink() {
                self.part(fs::read_link(&path).at("read", &path)?.as_os_str().as_bytes());
            } else {
                self = self.file(&path)?;
            }
        }
        Ok(self)
    }

    /// The key as a file name.
    #[must_use]
    pub fn hex(self) -> String {
        hex(&self.0.finalize())[..32].to_owned()
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// A file's SHA-256 in hex.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).at("read", path)?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_join_to_the_same_bytes_give_different_keys() {
        let one = Key::new("s", 1).text("a", "bc").hex();
        let other = Key::new("s", 1).text("ab", "c").hex();
        assert_ne!(one, other);
    }

    #[test]
    fn a_tree_key_sees_modes_and_moved_files() {
        let dir = tempfile::tempdir().unwrap();
        let of = || Key::new("s", 1).tree(dir.path()).unwrap().hex();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x").unwrap();
        let first = of();
        fs::set_permissions(dir.path().join("d/f"), fs::Permissions::from_mode(0o755)).unwrap();
        let second = of();
        fs::rename(dir.path().join("d/f"), dir.path().join("f")).unwrap();
        let third = of();
        assert!(first != second && second != third && first != third);
    }
}
