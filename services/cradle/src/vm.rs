//! The KVM machine: memory, interrupt controller, lines and doorbells.

use crate::memory::Mem;
use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

/// Three pages that Intel's KVM wants below 4 GiB, outside of memory and devices.
const TSS: usize = 0xfffb_d000;

/// KVM itself, by its descriptor.
#[must_use]
pub fn kvm(kvm: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and from here on nobody else's; if it is no KVM, its calls fail.
    unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) }
}

/// The machine.
pub struct Vm {
    /// Its descriptor.
    pub fd: VmFd,
}

impl Vm {
    /// A machine with this memory and KVM's own interrupt controllers, without a timer chip: the kernel has the APIC's.
    ///
    /// # Errors
    /// When there is no KVM, or it refuses.
    pub fn new(kvm: &Kvm, mem: &Mem) -> Result<Self> {
        let fd = kvm.create_vm().context("KVM cannot create a machine")?;
        fd.set_tss_address(TSS).context("KVM refuses the address of its TSS")?;
        fd.create_irq_chip().context("KVM cannot create an interrupt controller")?;
        for (slot, region) in mem.iter().enumerate() {
            let host =
                region.get_host_address(vm_memory::MemoryRegionAddress(0)).context("guest memory has no address")?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is this process's mapping of exactly this length, and `run` keeps the memory until the process
            // ends; regions do not overlap by construction.
            unsafe { fd.set_user_memory_region(slot) }.context("KVM refuses the guest's memory")?;
        }
        Ok(Self { fd })
    }

    /// An interrupt line that is raised by writing the descriptor.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn line(&self, line: u32) -> Result<EventFd> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).context("cannot make an event descriptor")?;
        self.fd.register_irqfd(&event, line).with_context(|| format!("KVM refuses the interrupt line {line}"))?;
        Ok(event)
    }

    /// A doorbell: the guest's writes of `value` to `address` write the descriptor.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .with_context(|| format!("KVM refuses the doorbell at {address:#x}"))
    }

    /// Has KVM map a part of the guest's memory before the guest touches it: one call in place of a fault a page. No error when it
    /// cannot (Linux before 6.11, or without nested paging): then the faults come.
    pub fn map_early(cpu: &VcpuFd, start: u64, len: u64) {
        /// `KVM_PRE_FAULT_MEMORY`, `_IOWR(0xAE, 0xd5, struct kvm_pre_fault_memory)`.
        const PRE_FAULT: libc::c_ulong = 0xc040_aed5;
        let mut range = [start, len, 0, 0, 0, 0, 0, 0];
        loop {
            // SAFETY: the structure is eight 64-bit numbers: address, size, flags, and padding of zeroes; KVM writes the first two.
            let result = unsafe { libc::ioctl(cpu.as_raw_fd(), PRE_FAULT, range.as_mut_ptr()) };
            let interrupted = result < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted;
            if range[1] == 0 || (result < 0 && !interrupted) {
                return;
            }
        }
    }

    /// Takes a line back.
    pub fn no_line(&self, event: &EventFd, line: u32) {
        let _ = self.fd.unregister_irqfd(event, line);
    }

    /// Takes a doorbell back.
    pub fn no_doorbell(&self, event: &EventFd, address: u64, value: u32) {
        let _ = self.fd.unregister_ioevent(event, &IoEventAddress::Mmio(address), value);
    }
}
