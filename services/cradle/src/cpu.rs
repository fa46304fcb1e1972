//! A virtual CPU as it is when the guest starts: what it says it can (CPUID), and its registers at the PVH entry.

use crate::boot::pvh::START_INFO;
use anyhow::{Context, Result};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuFd};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPER_THREADS: u32 = 1 << 28;
const PROTECTED: u64 = 1;
const EXTENSION_TYPE: u64 = 1 << 4;

/// What the host's KVM can give.
///
/// # Errors
/// When KVM does not say.
pub fn supported(kvm: &Kvm) -> Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM does not tell what CPUs it can give")
}

/// Sets what vCPU `id` of `count` says of itself: all that is supported, and each vCPU a core of one socket.
///
/// # Errors
/// When KVM refuses.
pub fn set_cpuid(vcpu: &VcpuFd, supported: &CpuId, id: u8, count: u8) -> Result<()> {
    let mut cpuid = supported.clone();
    let (id, count) = (u32::from(id), u32::from(count));
    let bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (count << 16) | (id << 24);
                // The timer's deadline mode needs no calibration against a clock that is not there.
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                entry.edx = if count > 1 { entry.edx | HYPER_THREADS } else { entry.edx & !HYPER_THREADS };
            }
            4 => entry.eax = (entry.eax & 0x3fff) | ((count.next_power_of_two() - 1) << 26),
            0xb | 0x1f => {
                entry.edx = id;
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (bits, count, (2 << 8) | 1),
                    n => (0, 0, n),
                };
            }
            0x8000_0008 => entry.ecx = (bits << 12) | (count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    vcpu.set_cpuid2(&cpuid).context("KVM refuses the CPU's features")
}

/// Sets the registers of the first vCPU: 32-bit protected mode, flat, at the kernel's PVH entry.
///
/// # Errors
/// When KVM refuses.
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut sregs = vcpu.get_sregs().context("cannot read the CPU's registers")?;
    let flat = |selector, type_, db| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0x8, 0xb, 1);
    let data = flat(0x10, 0x3, 1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..Default::default() };
    (sregs.cr0, sregs.cr4, sregs.efer) = (PROTECTED | EXTENSION_TYPE, 0, 0);
    vcpu.set_sregs(&sregs).context("cannot set the CPU's segments")?;
    let regs = kvm_regs { rip: entry, rbx: START_INFO, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).context("cannot set the CPU's registers")
}
