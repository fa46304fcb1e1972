//! A verity file system: data and a hash tree on two partitions, whose root hash the signed kernel image names.
//!
//! The superblock of the tree (cryptsetup: `docs/on-disk-format-verity`) is not to be trusted: all that it can do is name a tree that
//! does not have the hash.

use crate::dm;
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 512;
const SALT_MAX_BYTES: usize = 256;

/// The superblock of a hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    algorithm: String,
    data_block_bytes: u32,
    hash_block_bytes: u32,
    data_blocks: u64,
    salt: String,
}

impl Superblock {
    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or of another kind than this machine makes.
    pub fn parse(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Self> {
        let u32_at = |at: usize| bytes[at..at + 4].try_into().map_or(0, u32::from_le_bytes);
        ensure!(bytes.starts_with(b"verity\0\0"), "there is no hash tree");
        ensure!((u32_at(8), u32_at(12)) == (1, 1), "its hash tree is of an unknown version");
        let algorithm = bytes[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
        ensure!(
            !algorithm.is_empty() && algorithm.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-'),
            "its hash has no name"
        );
        let salt_bytes = usize::from(u16::from_le_bytes([bytes[80], bytes[81]]));
        ensure!(salt_bytes <= SALT_MAX_BYTES, "its salt is too long");
        let superblock = Self {
            algorithm: String::from_utf8_lossy(algorithm).into_owned(),
            data_block_bytes: u32_at(64),
            hash_block_bytes: u32_at(68),
            data_blocks: bytes[72..80].try_into().map_or(0, u64::from_le_bytes),
            salt: if salt_bytes == 0 { "-".into() } else { hex(&bytes[88..88 + salt_bytes]) },
        };
        let sizes = [superblock.data_block_bytes, superblock.hash_block_bytes];
        ensure!(
            sizes.iter().all(|size| (512..=4096).contains(size) && size.is_power_of_two()),
            "its blocks have no size"
        );
        ensure!(superblock.sectors().is_some(), "it has too many blocks");
        Ok(superblock)
    }

    /// How long the data is, in units of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> Option<u64> {
        self.data_blocks.checked_mul(u64::from(self.data_block_bytes) / 512)
    }

    /// What device-mapper is told (Linux: `Documentation/admin-guide/device-mapper/verity.rst`). The tree begins in the block after
    /// the superblock.
    fn parameters(&self, data: &Path, tree: &Path, hash: &str) -> String {
        let Self { algorithm, data_block_bytes, hash_block_bytes, data_blocks, salt } = self;
        let (data, tree) = (data.display(), tree.display());
        format!("1 {data} {tree} {data_block_bytes} {hash_block_bytes} {data_blocks} 1 {algorithm} {hash} {salt}")
    }
}

/// Opens `data` as the device `name` and gives its node. Whether it has the hash is seen at the first block that is read.
///
/// # Errors
/// When there is no hash tree, or the kernel refuses it.
pub fn open(name: &str, data: &Path, tree: &Path, hash: &str) -> Result<PathBuf> {
    ensure!(!hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "`{hash}` is no root hash");
    let mut bytes = [0; SUPERBLOCK_BYTES];
    let shown = tree.display();
    File::open(tree)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .with_context(|| format!("cannot read {shown}"))?;
    let superblock = Superblock::parse(&bytes).with_context(|| format!("cannot use {shown}"))?;
    dm::create_read_only(name, superblock.sectors().unwrap_or(0), "verity", &superblock.parameters(data, tree, hash))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Text always takes more.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(b"verity\0\0");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&10_u64.to_le_bytes());
        bytes[80] = 2;
        bytes[88..90].copy_from_slice(&[0xab, 0x0c]);
        bytes
    }

    #[test]
    fn a_superblock_becomes_what_device_mapper_is_told() {
        let found = Superblock::parse(&superblock()).unwrap();
        assert_eq!(found.sectors(), Some(80));
        let told = found.parameters(Path::new("/dev/vda2"), Path::new("/dev/vda3"), "feed");
        assert_eq!(told, "1 /dev/vda2 /dev/vda3 4096 4096 10 1 sha256 feed ab0c");
    }

    #[test]
    fn a_tree_without_salt_has_a_dash_for_it() {
        let mut bytes = superblock();
        bytes[80] = 0;
        assert_eq!(Superblock::parse(&bytes).unwrap().salt, "-");
    }

    #[test]
    fn nonsense_is_refused() {
        let changes: [(usize, &[u8]); 7] =
            [(0, b"VERITY"), (8, &[2]), (12, &[0]), (32, b"sha 256"), (64, &[0, 0]), (72, &[0xff; 8]), (80, &[1, 1])];
        for (at, change) in changes {
            let mut bytes = superblock();
            bytes[at..at + change.len()].copy_from_slice(change);
            assert!(Superblock::parse(&bytes).is_err(), "{at}");
        }
        assert!(open("n", Path::new("/dev/null"), Path::new("/dev/null"), "not hex").is_err());
    }
}
