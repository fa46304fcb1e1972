//! What stands in the guest's memory when it starts: kernel, initramfs, tables, command line.

pub mod cmdline;
pub mod initramfs;
pub mod mptable;
pub mod pvh;

use crate::memory::{GAP, Mem};
use anyhow::{Context, Result, bail};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader as _};
use std::fs::File;
use vm_memory::GuestAddress;

/// Everything that is written before the first instruction.
pub struct Parts<'a> {
    /// The kernel.
    pub kernel: &'a mut File,
    /// The initramfs.
    pub initramfs: &'a mut File,
    /// The file that is added to it.
    pub spec: &'a [u8],
    /// The command line.
    pub cmdline: &'a str,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory, bytes.
    pub memory: u64,
}

/// Writes it all; gives the address of the first instruction.
///
/// # Errors
/// When a file is not what it should be or does not fit.
pub fn load(mem: &Mem, parts: &mut Parts<'_>) -> Result<u64> {
    let loaded = Elf::load(mem, None, parts.kernel, None)
        .context("the kernel is no ELF vmlinux that fits the guest's memory")?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        bail!("the kernel has no PVH entry note, build it with CONFIG_PVH");
    };
    let low_end = parts.memory.min(GAP);
    let initramfs = initramfs::load(mem, parts.initramfs, parts.spec, loaded.kernel_end, low_end)?;
    mptable::write(mem, parts.vcpus).context("cannot write the processor table")?;
    pvh::write_start_info(mem, parts.memory, parts.cmdline, initramfs).context("cannot write the start info")?;
    Ok(entry.0)
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where it starts.
    pub start: GuestAddress,
    /// Bytes.
    pub len: u64,
}
