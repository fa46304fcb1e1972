//! The PVH start info: what the kernel is told about memory, initramfs and command line.
//!
//! Source: Xen's public/arch-x86/hvm/start_info.h.

use super::Placed;
use crate::memory::{Mem, ranges};
use anyhow::{Result, bail};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes as _, GuestAddress};

/// Where the start info is; the first register argument of the entry.
pub const START_INFO: u64 = 0x6000;
const MODULES: u64 = 0x6100;
const MEMORY_MAP: u64 = 0x7000;
const CMDLINE: u64 = 0x2_0000;
const MAX_CMDLINE: usize = 4096 - 1;
const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// The end of the memory below the tables.
const BASE_END: u64 = 0x9_fc00;
/// The kernel's memory begins.
pub const ONE_MIB: u64 = 0x10_0000;

/// Writes start info, memory map, module list and command line.
///
/// # Errors
/// When the command line is too long.
pub fn write_start_info(mem: &Mem, memory: u64, cmdline: &str, initramfs: Placed) -> Result<()> {
    if cmdline.len() > MAX_CMDLINE {
        bail!("the kernel's command line has {} bytes, at most {MAX_CMDLINE} fit", cmdline.len());
    }
    mem.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    mem.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    let map = memory_map(memory);
    for (index, entry) in map.iter().enumerate() {
        mem.write_obj(*entry, GuestAddress(MEMORY_MAP + (index * size_of::<hvm_memmap_table_entry>()) as u64))?;
    }
    mem.write_obj(
        hvm_modlist_entry { paddr: initramfs.start.0, size: initramfs.len, ..Default::default() },
        GuestAddress(MODULES),
    )?;
    mem.write_obj(
        hvm_start_info {
            magic: MAGIC,
            version: 1,
            nr_modules: 1,
            modlist_paddr: MODULES,
            cmdline_paddr: CMDLINE,
            memmap_paddr: MEMORY_MAP,
            memmap_entries: map.len() as u32,
            ..Default::default()
        },
        GuestAddress(START_INFO),
    )?;
    Ok(())
}

fn memory_map(memory: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end: u64, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![entry(0, BASE_END, RAM), entry(BASE_END, ONE_MIB, RESERVED)];
    for (start, len) in ranges(memory) {
        map.push(entry(start.0.max(ONE_MIB), start.0 + len as u64, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_covers_all_memory_once_and_leaves_the_gap_out() {
        let map: Vec<_> = memory_map(4 << 30).iter().map(|e| (e.addr, e.addr + e.size, e.type_)).collect();
        assert_eq!(
            map,
            [(0, BASE_END, RAM), (BASE_END, ONE_MIB, RESERVED), (ONE_MIB, 3 << 30, RAM), (4 << 30, 5 << 30, RAM)]
        );
    }

    #[test]
    fn the_start_info_points_at_what_was_written() {
        let mem = crate::memory::create(64 << 20, false).unwrap();
        let initramfs = Placed { start: GuestAddress(0x300_0000), len: 77 };
        write_start_info(&mem, 64 << 20, "quiet", initramfs).unwrap();
        let info: hvm_start_info = mem.read_obj(GuestAddress(START_INFO)).unwrap();
        let mut text = [0; 6];
        mem.read_slice(&mut text, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&text, b"quiet\0");
        let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x300_0000, 77));
        assert!(write_start_info(&mem, 64 << 20, &"x".repeat(5000), initramfs).is_err());
    }
}
