//! What a template was made of, and on which machine: kept in it, and compared before a guest goes on from it.
//!
//! Files are known by device, inode, size and time of change, which needs no look at their content: a template does not outlive
//! the host's boot, which is a part of its own. The processor is all that a guest is told of it (CPUID), word for word.

use crate::cpu;
use anyhow::{Context, Result, ensure};
use kvm_bindings::CpuId;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;

/// What is compared, in the order of the file.
const PARTS: [&str; 5] = ["kernel", "initramfs", "monitor", "boot of the host", "processor"];
const MAX_PART: u64 = 64 << 10;

/// What must be the same for the maker of a template and for who goes on from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity([Vec<u8>; PARTS.len()]);

impl Identity {
    /// Of this program on this machine, with this kernel and initramfs.
    ///
    /// # Errors
    /// When a file cannot be asked.
    pub fn of(kernel: &File, initramfs: &File, supported: &CpuId) -> Result<Self> {
        let monitor = File::open("/proc/self/exe").context("cannot look at this program's own file")?;
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").context("cannot read the id of the host's boot")?;
        let told = cpu::identity(supported.as_slice(), 0, 1);
        let words = told.iter().flat_map(|e| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx]);
        let processor = words.flat_map(u32::to_le_bytes).collect();
        Ok(Self([file(kernel)?, file(initramfs)?, file(&monitor)?, boot, processor]))
    }

    /// Appends it to a file's content.
    pub fn write(&self, out: &mut Vec<u8>) {
        for part in &self.0 {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
    }

    /// Reads what [`Identity::write`] wrote.
    ///
    /// # Errors
    /// When the file ends early, or holds something else.
    pub fn read(file: &mut impl Read) -> Result<Self> {
        let mut parts: [Vec<u8>; PARTS.len()] = Default::default();
        for part in &mut parts {
            let mut length = [0; 8];
            file.read_exact(&mut length).context("it ends early")?;
            let length = u64::from_le_bytes(length);
            ensure!(length <= MAX_PART, "it is damaged");
            part.resize(length as usize, 0);
            file.read_exact(part).context("it ends early")?;
        }
        Ok(Self(parts))
    }

    /// The first part in which they differ.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = self.0.iter().zip(&other.0).zip(PARTS);
        parts.into_iter().find(|((mine, theirs), _)| mine != theirs).map(|(_, name)| name)
    }
}

fn file(file: &File) -> Result<Vec<u8>> {
    let meta = file.metadata().context("cannot look at a file")?;
    let words = [meta.dev(), meta.ino(), meta.size(), meta.ctime().cast_unsigned(), meta.ctime_nsec().cast_unsigned()];
    Ok(words.into_iter().flat_map(u64::to_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    fn cpuid(eax: u32) -> CpuId {
        CpuId::from_entries(&[kvm_cpuid_entry2 { function: 7, eax, ..Default::default() }]).unwrap()
    }

    #[test]
    fn another_kernel_or_processor_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| File::create(dir.path().join(name)).unwrap();
        let (kernel, other, initramfs) = (make("kernel"), make("other"), make("initramfs"));
        let identity = Identity::of(&kernel, &initramfs, &cpuid(1)).unwrap();
        let mut bytes = Vec::new();
        identity.write(&mut bytes);
        let again = Identity::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(identity.difference(&again), None);
        let of = |kernel, eax| Identity::of(kernel, &initramfs, &cpuid(eax)).unwrap();
        assert_eq!(identity.difference(&of(&other, 1)), Some("kernel"));
        assert_eq!(identity.difference(&of(&kernel, 2)), Some("processor"));
        // Its content was exchanged in place.
        std::fs::write(dir.path().join("kernel"), "x").unwrap();
        assert_eq!(identity.difference(&of(&kernel, 1)), Some("kernel"));
        assert!(Identity::read(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(Identity::read(&mut [0xff; 16].as_slice()).is_err());
    }
}
