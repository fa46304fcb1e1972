//! The initramfs: the given archive, and behind it one more with the guest's specification.
//!
//! The kernel unpacks archives that follow each other, as long as each starts at a multiple of four (buffer-format in the
//! kernel's documentation), so nothing is copied or repacked.

use super::Placed;
use crate::memory::Mem;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Seek as _;
use vm_memory::{Bytes as _, GuestAddress};
use zone::guest::SPEC_FILE;

const PAGE: u64 = 4096;

/// Writes it to the end of low memory, above the kernel.
///
/// # Errors
/// When it does not fit or cannot be read.
pub fn load(mem: &Mem, archive: &mut File, spec: &[u8], kernel_end: u64, low_end: u64) -> Result<Placed> {
    let len = archive.metadata().context("cannot read the initramfs")?.len();
    let spec = entry(SPEC_FILE.trim_start_matches('/'), spec);
    let spec_at = len.next_multiple_of(4);
    let total = spec_at + spec.len() as u64;
    let Some(start) = low_end.checked_sub(total).map(|s| s / PAGE * PAGE).filter(|start| *start >= kernel_end) else {
        bail!("the initramfs has {total} bytes, the guest's memory has no room for it");
    };
    let start = GuestAddress(start);
    // A passed descriptor may have been read before.
    archive.rewind().context("cannot read the initramfs")?;
    mem.read_exact_volatile_from(start, archive, len as usize).context("cannot read the initramfs")?;
    mem.write_slice(&spec, GuestAddress(start.0 + spec_at)).context("cannot write the guest's specification")?;
    Ok(Placed { start, len: total })
}

/// A newc archive with one file that root alone may read.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(content.len() + 512);
    member(&mut archive, name, 0o100_600, content);
    member(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_archive_has_headers_of_110_bytes_and_everything_at_multiples_of_four() {
        let archive = entry("spec.json", b"hello");
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[110..120], b"spec.json\0");
        assert_eq!(&archive[120..125], b"hello");
        assert_eq!(&archive[128..134], b"070701");
        assert_eq!(&archive[128 + 110..128 + 121], b"TRAILER!!!\0");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn it_lies_at_the_end_of_memory_and_never_over_the_kernel() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"07070").unwrap();
        let placed = load(&mem, &mut file, b"{}", 16 << 20, 32 << 20).unwrap();
        assert_eq!(placed.start.0, (32 << 20) - PAGE);
        let mut start = [0; 14];
        mem.read_slice(&mut start, placed.start).unwrap();
        assert_eq!(&start, b"07070\0\0\x00070701");
        assert!(load(&mem, &mut file, b"{}", 32 << 20, 32 << 20).unwrap_err().to_string().contains("no room"));
    }
}
