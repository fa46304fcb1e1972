//! Keys: ed25519, private ones as PKCS#8 PEM, public ones as SubjectPublicKeyInfo PEM (RFC 8410), as `openssl` reads them.
//!
//! A trusted key is a file `*.pub` in a folder; its name means nothing, its id is the hash of the key.

use crate::error::{Error, Result};
use crate::format::{key_id, signed_message};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zone::ids::hex;

const KEY_FILE_MAX_BYTES: u64 = 4096;
const KEYS_MAX: usize = 256;

/// A private key.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", hex(&self.id()[..8]))
    }
}

impl SigningKey {
    /// A new key from the kernel's random bytes.
    ///
    /// # Errors
    /// `File` when /dev/urandom cannot be read.
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut seed))
            .map_err(Error::file("read", "/dev/urandom"))?;
        Ok(Self(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// Reads a private key.
    ///
    /// # Errors
    /// `File` when it cannot be read, `BadKey` when it is none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_small(path)?;
        ed25519_dalek::SigningKey::from_pkcs8_pem(&text)
            .map(Self)
            .map_err(|e| Error::BadKey { path: path.to_owned(), reason: e.to_string() })
    }

    /// Writes the private key to `path`, readable by its owner only, and the public one to `path` + `.pub`.
    ///
    /// # Errors
    /// `File` when one of them exists already or cannot be written.
    pub fn save(&self, path: &Path) -> Result<PathBuf> {
        let bad = |e: &dyn std::fmt::Display| Error::BadKey { path: path.to_owned(), reason: e.to_string() };
        let private = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|e| bad(&e))?;
        let public = self.0.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|e| bad(&e))?;
        let mut public_path = path.as_os_str().to_owned();
        public_path.push(".pub");
        let public_path = PathBuf::from(public_path);
        write_new(path, private.as_bytes(), 0o600)?;
        write_new(&public_path, public.as_bytes(), 0o644)?;
        Ok(public_path)
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        key_id(self.0.verifying_key().as_bytes())
    }

    /// Signs the content of an image, given its hash.
    #[must_use]
    pub fn sign(&self, body_sha256: &[u8; 32]) -> [u8; 64] {
        self.0.sign(&signed_message(&self.id(), body_sha256)).to_bytes()
    }
}

/// The keys that are trusted.
#[derive(Clone, Debug)]
pub struct Keyring {
    dir: PathBuf,
    keys: BTreeMap<[u8; 32], VerifyingKey>,
}

impl Keyring {
    /// Reads every `*.pub` in a folder.
    ///
    /// # Errors
    /// `File` when the folder cannot be read, `BadKey` when one of the files is no key: a key that cannot be read is
    /// a mistake that somebody should see, not one to skip.
    pub fn load(dir: &Path) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(Error::file("read the keys in", dir))? {
            let path = entry.map_err(Error::file("read the keys in", dir))?.path();
            if path.extension().is_none_or(|e| e != "pub") {
                continue;
            }
            if keys.len() == KEYS_MAX {
                return Err(Error::TooLarge { name: dir.display().to_string(), limit: format!("{KEYS_MAX} keys") });
            }
            let key = VerifyingKey::from_public_key_pem(&read_small(&path)?)
                .map_err(|e| Error::BadKey { path: path.clone(), reason: e.to_string() })?;
            keys.insert(key_id(key.as_bytes()), key);
        }
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// Checks a signature.
    ///
    /// # Errors
    /// `UnknownKey` or `BadSignature`, about the image `name`.
    pub fn verify(&self, name: &str, id: &[u8; 32], body_sha256: &[u8; 32], signature: &[u8; 64]) -> Result<()> {
        let key = self.keys.get(id).ok_or_else(|| Error::UnknownKey {
            name: name.into(),
            key_id: hex(&id[..8]),
            keys: self.dir.clone(),
        })?;
        key.verify_strict(&signed_message(id, body_sha256), &Signature::from_bytes(signature))
            .map_err(|_| Error::BadSignature { name: name.into() })
    }
}

fn read_small(path: &Path) -> Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|f| f.take(KEY_FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(Error::file("read", path))?;
    Ok(text)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()))
        .map_err(Error::file("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_saved_key_signs_what_its_public_half_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::generate().unwrap();
        let path = dir.path().join("release");
        key.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let ring = Keyring::load(dir.path()).unwrap();
        let loaded = SigningKey::load(&path).unwrap();
        let signature = loaded.sign(&[1; 32]);
        ring.verify("x", &key.id(), &[1; 32], &signature).unwrap();
        assert!(matches!(ring.verify("x", &key.id(), &[2; 32], &signature), Err(Error::BadSignature { .. })));
        assert!(matches!(ring.verify("x", &[0; 32], &[1; 32], &signature), Err(Error::UnknownKey { .. })));
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        SigningKey::generate().unwrap().save(&path).unwrap();
        assert!(matches!(SigningKey::generate().unwrap().save(&path), Err(Error::File { .. })));
    }

    #[test]
    fn a_broken_key_in_the_folder_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bad.pub"), "nonsense").unwrap();
        assert!(matches!(Keyring::load(dir.path()), Err(Error::BadKey { .. })));
    }
}
