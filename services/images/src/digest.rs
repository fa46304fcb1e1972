//! Content addresses: the only algorithm here is SHA-256.
//!
//! A [`Digest`] is always well formed, so it can stand in a path.

use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read, Write};
use zone::{ApiError, ErrorKind};

/// The SHA-256 of some content: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Reads `sha256:HEX`.
    ///
    /// # Errors
    /// `Invalid` when it is anything else.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        text.strip_prefix("sha256:").and_then(Self::from_hex).ok_or_else(|| {
            ApiError::new(
                ErrorKind::Invalid,
                format!("{text:.100?} is no digest; it must be sha256: and 64 hexadecimal digits"),
            )
        })
    }

    /// Reads 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let good = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Self(hex.to_owned()))
    }

    /// The digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(zone::ids::hex(&Sha256::digest(bytes)))
    }

    /// The hexadecimal digits alone.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, as progress lines show it.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Counts and hashes what is written through it.
pub struct HashWriter<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W: Write> HashWriter<W> {
    /// Writes on to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// How many bytes were written.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The digest of what was written, its length, and the writer.
    pub fn finish(self) -> (Digest, u64, W) {
        (Digest(zone::ids::hex(&self.hasher.finalize())), self.count, self.inner)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Copies `from` to its end into `to`, at most `limit` bytes; returns the digest and the length.
///
/// # Errors
/// `FileTooLarge` when there is more; whatever reading or writing gives.
pub fn copy_hashed(from: impl Read, to: impl Write, limit: u64) -> io::Result<(Digest, u64)> {
    let mut writer = HashWriter::new(to);
    io::copy(&mut from.take(limit.saturating_add(1)), &mut writer)?;
    if writer.count() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than the limit of {limit} bytes")));
    }
    writer.flush()?;
    let (digest, count, _) = writer.finish();
    Ok((digest, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_refused_unless_it_is_sha256_in_lower_case() {
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            "sha256:../../etc/passwd",
            &format!("sha256:{}", "A".repeat(64)),
            &"0".repeat(64),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&format!("sha256:{}", "0a".repeat(32))).is_ok());
    }

    #[test]
    fn a_copy_stops_at_its_limit_and_gives_the_known_hash() {
        let mut out = Vec::new();
        let (digest, n) = copy_hashed(&b"abc"[..], &mut out, 3).unwrap();
        assert_eq!((digest.hex(), n), ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3));
        assert_eq!(copy_hashed(&b"abcd"[..], &mut out, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
