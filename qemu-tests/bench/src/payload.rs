//! Bytes that are copied: such as no file system and no pipe makes smaller.

use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::path::Path;

const BLOCK: usize = 1 << 20;

/// A file of so many MiB that cannot be compressed.
///
/// # Errors
/// When there is no room for it.
pub fn file(path: &Path, mib: u32) -> Result<()> {
    let mut out = std::fs::File::create(path).with_context(|| format!("make {}", path.display()))?;
    let mut block = noise(BLOCK);
    for number in 0..mib {
        // Blocks differ, should somebody look for those that do not.
        block[..4].copy_from_slice(&number.to_le_bytes());
        out.write_all(&block).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A tar archive (ustar) with one file of so many MiB.
#[must_use]
pub fn tar(name: &str, mib: u32) -> Vec<u8> {
    let length = mib as usize * BLOCK;
    let mut header = [0u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{length:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    let block = noise(BLOCK);
    (0..mib).for_each(|_| tar.extend_from_slice(&block));
    tar.extend_from_slice(&[0; 1024]);
    tar
}

/// Pseudo-random bytes (xorshift64).
fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_archive_is_one_that_tar_reads() {
        let dir = std::env::temp_dir().join(format!("bench-payload-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("x.tar"), tar("payload", 2)).unwrap();
        let said = Command::new("tar").arg("-xf").arg(dir.join("x.tar")).arg("-C").arg(&dir).output().unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(std::fs::read(dir.join("payload")).unwrap().len(), 2 * BLOCK);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
