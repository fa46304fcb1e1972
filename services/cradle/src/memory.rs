//! The guest's memory: where it lies and how it is made.
//!
//! ```text
//! 0            640 KiB     1 MiB                 3 GiB            4 GiB
//! | RAM, start info | tables | RAM, kernel, initramfs | devices, APIC | RAM …
//! ```
//! Private anonymous memory unless a vhost-user daemon must see it too; then one shared memory file.

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

/// The guest's memory as the devices see it.
pub type Mem = GuestMemoryMmap<()>;

/// Below this is low memory; from here to [`HIGH`] there is none.
pub const GAP: u64 = 0xc000_0000;
/// Memory goes on here.
pub const HIGH: u64 = 1 << 32;

/// Where the memory lies.
#[must_use]
pub fn ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(GAP);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH), (bytes - low) as usize));
    }
    ranges
}

/// Makes the memory; `shared` for vhost-user.
///
/// # Errors
/// When the host has no room for it.
pub fn create(bytes: u64, shared: bool) -> Result<Mem> {
    let what = || format!("cannot map {} MiB of guest memory", bytes >> 20);
    if !shared {
        let mem = Mem::from_ranges(&ranges(bytes)).with_context(what)?;
        advise_huge(&mem);
        return Ok(mem);
    }
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).with_context(what)?);
    file.set_len(bytes).with_context(what)?;
    let mut offset = 0;
    let mut with_files = Vec::new();
    for (start, len) in ranges(bytes) {
        let file = file.try_clone().with_context(what)?;
        with_files.push((start, len, Some(FileOffset::new(file, offset))));
        offset += len as u64;
    }
    Mem::from_ranges_with_files(with_files).with_context(what)
}

/// Asks for huge pages: far fewer faults and shorter page walks. A host that has none gives small ones.
fn advise_huge(mem: &Mem) {
    for region in mem.iter() {
        let Ok(pointer) = region.get_host_address(vm_memory::MemoryRegionAddress(0)) else { continue };
        // SAFETY: the range is exactly this region's own mapping, which lives as long as `mem`; the advice changes no content.
        unsafe { libc::madvise(pointer.cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
    }
}

/// Puts a file's content in place of a part of the memory, at the same offset as in the file, privately: what is written stays
/// in this process, what is not is the page cache's own page.
///
/// # Errors
/// When the part is not within one region, or the host refuses.
pub fn map_file(mem: &Mem, file: &File, start: GuestAddress, len: usize) -> Result<()> {
    let (region, offset) = mem.to_region_addr(start).context("the part is outside of the memory")?;
    anyhow::ensure!(offset.0 + len as u64 <= region.len(), "the part is outside of the memory");
    let place = region.get_host_address(offset).context("guest memory has no address")?;
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
    // SAFETY: `place` and `len` are within the region's own mapping, which lives as long as `mem`, is private and anonymous, and
    // keeps its protection; the new one is taken away with it.
    let mapped = unsafe { libc::mmap(place.cast(), len, protection, flags, file.as_raw_fd(), start.0 as libc::off_t) };
    if mapped == libc::MAP_FAILED {
        Err(std::io::Error::last_os_error()).context("cannot map the file")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes as _;

    #[test]
    fn memory_leaves_the_gap_for_devices_free() {
        assert_eq!(ranges(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(ranges(4 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(HIGH), 1 << 30)]);
    }

    #[test]
    fn shared_memory_can_be_seen_through_its_file() {
        let mem = create(32 << 20, true).unwrap();
        mem.write_obj(0x1122_3344u32, GuestAddress(0x5000)).unwrap();
        let region = mem.iter().next().unwrap();
        let mut bytes = [0; 4];
        std::os::unix::fs::FileExt::read_at(region.file_offset().unwrap().file(), &mut bytes, 0x5000).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
    }
}
