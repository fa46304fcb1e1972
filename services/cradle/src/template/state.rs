//! A machine's registers, as KVM gives and takes them.
//!
//! Kept in memory layout: the file is read by the same version on the same boot of the same host.
//! Order when setting (KVM's documentation, and what the registers depend on): CPUID before everything; the local APIC before its
//! registers that are MSRs; events last.

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::io::Read;

const MAX_MSRS: u64 = 4096;

/// The whole machine's.
#[derive(Default)]
pub struct MachineState {
    chips: [kvm_irqchip; 3],
    clock: kvm_clock_data,
    cpu: Cpu,
}

/// A virtual CPU's.
#[derive(Default)]
pub struct Cpu {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
}

impl MachineState {
    /// Reads everything of a machine with one CPU, which stands still.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn get(kvm: &Kvm, vm: &VmFd, cpu: &VcpuFd) -> Result<Self> {
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..kvm_irqchip::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).context("cannot read the interrupt controllers")?;
        }
        let mut clock = vm.get_clock().context("cannot read the clock")?;
        // Goes on from there, not from what has passed since.
        clock.flags = 0;
        Ok(Self { chips, clock, cpu: Cpu::get(kvm, cpu)? })
    }

    /// Makes a new machine like it.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set(&self, vm: &VmFd, cpu: &VcpuFd) -> Result<()> {
        for chip in &self.chips {
            vm.set_irqchip(chip).context("cannot set the interrupt controllers")?;
        }
        vm.set_clock(&self.clock).context("cannot set the clock")?;
        self.cpu.set(cpu)
    }

    /// Appends it to a file's content.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.chips.iter().for_each(|chip| put(out, chip));
        put(out, &self.clock);
        let cpu = &self.cpu;
        put(out, &cpu.mp);
        put(out, &cpu.regs);
        put(out, &cpu.sregs);
        cpu.xsave.region.iter().for_each(|word| put(out, word));
        put(out, &cpu.xcrs);
        put(out, &cpu.debug);
        put(out, &cpu.lapic);
        put(out, &cpu.events);
        put(out, &(cpu.msrs.len() as u64));
        cpu.msrs.iter().for_each(|msr| put(out, msr));
    }

    /// Reads what [`MachineState::write`] wrote.
    ///
    /// # Errors
    /// When the file ends early.
    pub fn read(file: &mut impl Read) -> Result<Self> {
        let chips = [take(file)?, take(file)?, take(file)?];
        let clock = take(file)?;
        let cpu = Cpu {
            mp: take(file)?,
            regs: take(file)?,
            sregs: take(file)?,
            xsave: take_xsave(file)?,
            xcrs: take(file)?,
            debug: take(file)?,
            lapic: take(file)?,
            events: take(file)?,
            msrs: Vec::new(),
        };
        let count: u64 = take(file)?;
        ensure!(count <= MAX_MSRS, "the state has {count} registers");
        let msrs = (0..count).map(|_| take(file)).collect::<Result<_>>()?;
        Ok(Self { chips, clock, cpu: Cpu { msrs, ..cpu } })
    }
}

impl Cpu {
    fn get(kvm: &Kvm, cpu: &VcpuFd) -> Result<Self> {
        let what = "cannot read the CPU's registers";
        Ok(Self {
            mp: cpu.get_mp_state().context(what)?,
            regs: cpu.get_regs().context(what)?,
            sregs: cpu.get_sregs().context(what)?,
            xsave: cpu.get_xsave().context(what)?,
            xcrs: cpu.get_xcrs().context(what)?,
            debug: cpu.get_debug_regs().context(what)?,
            lapic: cpu.get_lapic().context(what)?,
            events: cpu.get_vcpu_events().context(what)?,
            msrs: get_msrs(kvm, cpu)?,
        })
    }

    fn set(&self, cpu: &VcpuFd) -> Result<()> {
        let what = "cannot set the CPU's registers";
        cpu.set_mp_state(self.mp).context(what)?;
        cpu.set_regs(&self.regs).context(what)?;
        cpu.set_sregs(&self.sregs).context(what)?;
        // SAFETY: no more than the 4096 bytes of the structure are read: no feature beyond them was ever asked for.
        unsafe { cpu.set_xsave(&self.xsave) }.context(what)?;
        cpu.set_xcrs(&self.xcrs).context(what)?;
        cpu.set_debug_regs(&self.debug).context(what)?;
        cpu.set_lapic(&self.lapic).context(what)?;
        let msrs = Msrs::from_entries(&self.msrs).ok().context("the state has too many registers")?;
        let set = cpu.set_msrs(&msrs).context(what)?;
        ensure!(set == self.msrs.len(), "KVM refuses the register {:#x}", self.msrs.get(set).map_or(0, |m| m.index));
        cpu.set_vcpu_events(&self.events).context(what)
    }
}

/// All model-specific registers that can be set again; the deadline of the timer last, after the time that it counts in.
fn get_msrs(kvm: &Kvm, cpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>> {
    const DEADLINE: u32 = 0x6e0;
    let list = kvm.get_msr_index_list().context("KVM does not list its registers")?;
    let mut found = Vec::new();
    for &index in list.as_slice().iter().filter(|index| **index != DEADLINE).chain([&DEADLINE]) {
        let one = kvm_msr_entry { index, ..kvm_msr_entry::default() };
        let Ok(mut msrs) = Msrs::from_entries(&[one]) else { continue };
        if !matches!(cpu.get_msrs(&mut msrs), Ok(1)) {
            continue;
        }
        // What KVM reads but does not take back, as some read-only ones, is left out.
        if matches!(cpu.set_msrs(&msrs), Ok(1)) {
            found.extend(msrs.as_slice());
        }
    }
    Ok(found)
}

fn take_xsave(file: &mut impl Read) -> Result<kvm_xsave> {
    let mut xsave = kvm_xsave::default();
    for word in &mut xsave.region {
        *word = take(file)?;
    }
    Ok(xsave)
}

fn put<T: Copy>(out: &mut Vec<u8>, value: &T) {
    // SAFETY: the values are KVM's structures of plain numbers, whose every byte was written by KVM or by `Default`'s zeroes.
    out.extend(unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) });
}

fn take<T: Copy + Default>(file: &mut impl Read) -> Result<T> {
    let mut value = T::default();
    // SAFETY: the bytes are those of `value`, which lives; the structures are plain numbers, for which any bytes are a value.
    let bytes = unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(&mut value).cast::<u8>(), size_of::<T>()) };
    file.read_exact(bytes).context("the state ends early")?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_a_short_file_is_refused() {
        let mut state = MachineState::default();
        state.cpu.regs.rip = 0x1234;
        state.clock.clock = 77;
        state.cpu.msrs = vec![kvm_msr_entry { index: 0x10, data: 9, ..kvm_msr_entry::default() }];
        let mut bytes = Vec::new();
        state.write(&mut bytes);
        let again = MachineState::read(&mut bytes.as_slice()).unwrap();
        assert_eq!((again.cpu.regs.rip, again.clock.clock, again.cpu.msrs[0].data), (0x1234, 77, 9));
        assert!(MachineState::read(&mut &bytes[..bytes.len() - 1]).is_err());
    }
}
