//! A virtual CPU as it is when the guest starts: what it says it can (CPUID), and its registers at the PVH entry.

use crate::boot::pvh::START_INFO;
use anyhow::{Context, Result};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Kvm, VcpuFd};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
/// Guests run no machines of their own.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
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

/// Sets what vCPU `id` of `count` says of itself: all that is supported but virtualization, and each vCPU a core of one socket.
///
/// # Errors
/// When KVM refuses.
pub fn set_cpuid(vcpu: &VcpuFd, supported: &CpuId, id: u8, count: u8) -> Result<()> {
    let entries = identity(supported.as_slice(), u32::from(id), u32::from(count));
    let cpuid = CpuId::from_entries(&entries).ok().context("the CPU has too many features to tell")?;
    vcpu.set_cpuid2(&cpuid).context("KVM refuses the CPU's features")
}

/// What vCPU `id` of `count` says of itself.
#[must_use]
pub fn identity(supported: &[kvm_cpuid_entry2], id: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
    let bits = count.next_power_of_two().trailing_zeros();
    let mut entries: Vec<_> =
        supported.iter().copied().filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_000a)).collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xffff) | (count << 16) | (id << 24);
                // The timer's deadline mode needs no calibration against a clock that is not there.
                entry.ecx = (entry.ecx | HYPERVISOR | TSC_DEADLINE) & !VMX;
                entry.edx = if count > 1 { entry.edx | HYPER_THREADS } else { entry.edx & !HYPER_THREADS };
            }
            4 => entry.eax = (entry.eax & 0x3fff) | ((count.next_power_of_two() - 1) << 26),
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => entry.ecx = (bits << 12) | (count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
            _ => {}
        }
    }
    // The topology: one thread a core, all cores in one package.
    for (index, (eax, ebx, ecx)) in [(0, 1, 1 << 8), (bits, count, (2 << 8) | 1), (0, 0, 2)].into_iter().enumerate() {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index: index as u32,
            flags,
            eax,
            ebx,
            ecx,
            edx: id,
            ..Default::default()
        });
    }
    entries
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX, ..Default::default() }
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package_and_cannot_virtualize() {
        let supported = [entry(1), entry(0xb), entry(0x8000_0001), entry(0x8000_000a)];
        let told = identity(&supported, 2, 3);
        let find = |function, index| told.iter().find(|e| e.function == function && e.index == index).unwrap();
        assert_eq!(find(1, 0).ebx >> 16, 0x0203);
        assert_eq!(find(1, 0).ecx & VMX, 0);
        assert_eq!(find(0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!((find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).edx), (2, 3, 2));
        assert!(told.iter().all(|e| e.function != 0x8000_000a));
    }
}
