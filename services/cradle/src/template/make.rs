//! `kcradle template`: boots a guest with empty slots and keeps it where its agent asks for its orders.

use super::{Draft, Identity, MachineState};
use crate::boot::{self, Parts, cmdline};
use crate::bundle;
use crate::bus::{Bus, MMIO_BASE, MMIO_WINDOW};
use crate::cpu;
use crate::jail;
use crate::memory;
use crate::run::line_of;
use crate::slots::SpareSlot;
use crate::vm::{self, Vm};
use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::{VcpuExit, VcpuFd};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PF_W, PF_X, PT_LOAD};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use vm_memory::ByteValued as _;
use zone::template::{SLOTS, WORD};

/// A guest that has not come so far by then never will; emulated machines are slow.
const LIMIT_S: u32 = 900;

/// Makes the template of the bundle in `dir` where the bundle says, or in `dir`. Of the bundle, only kernel, initramfs and
/// memory count besides. `strict`: refuses to where the jail is not complete.
///
/// # Errors
/// When the guest cannot be booted, ends early, or takes too long (then by SIGALRM).
pub fn make(dir: &Path, strict: bool) -> Result<()> {
    let (bundle, names) = bundle::load(dir)?;
    ensure!(super::fits(&bundle, 0, b""), "a template has one vCPU, no console and nothing added to the command line");
    let bytes = u64::from(bundle.memory_mib) << 20;
    let mem = memory::create(bytes, false)?;
    let kvm = vm::kvm(names.kvm(bundle.kvm.as_deref())?);
    let supported = cpu::supported(&kvm)?;
    let vm = Vm::new(&kvm, &mem)?;
    let (mut kernel, mut initramfs) = (names.open(&bundle.kernel, false)?, names.open(&bundle.initramfs, false)?);
    let identity = Identity::of(&kernel, &initramfs, &supported)?;
    let code = code(&kernel).context("cannot read the kernel's headers")?;
    let place = bundle.template.as_deref().unwrap_or(Path::new(""));
    let files = Draft::create(&names, place)?;
    let lines: Vec<u32> = (0..SLOTS).map(line_of).collect();
    let mut parts = Parts {
        kernel: &mut kernel,
        initramfs: &mut initramfs,
        spec: b"",
        cmdline: &cmdline::build(&lines, false, &format!("{WORD}=1")),
        vcpus: 1,
        memory: bytes,
    };
    let entry = boot::load(&mem, &mut parts)?;
    let mut cpu = vm.fd.create_vcpu(0).context("KVM cannot create a vCPU")?;
    cpu::set_cpuid(&cpu, &supported, 0, 1)?;
    cpu::set_entry(&cpu, entry)?;
    drop(names);
    jail::enter(strict)?;
    // SAFETY: takes a number; nothing in this process handles the signal, which ends it.
    unsafe { libc::alarm(LIMIT_S) };
    let spare = (0..SLOTS).map(|_| SpareSlot::default()).collect();
    run_to_the_request(&mut cpu, &Bus { devices: Vec::new(), spare, serial: None })?;
    let state = MachineState::get(&kvm, &vm.fd, &cpu)?;
    files.save(&mem, bytes, &code, &identity, &state)
}

/// Where the kernel's code and constants lie, in whole large pages: what is beside them is written to, and copied as a whole.
fn code(kernel: &File) -> Result<Range<u64>> {
    const LARGE: u64 = 2 << 20;
    let (mut header, mut entry) = (Elf64_Ehdr::default(), Elf64_Phdr::default());
    kernel.read_exact_at(header.as_mut_slice(), 0)?;
    for index in 0..u64::from(header.e_phnum) {
        kernel.read_exact_at(entry.as_mut_slice(), header.e_phoff + index * size_of::<Elf64_Phdr>() as u64)?;
        if entry.p_type == PT_LOAD && entry.p_flags & (PF_X | PF_W) == PF_X {
            let end = entry.p_paddr.saturating_add(entry.p_filesz) / LARGE * LARGE;
            return Ok(entry.p_paddr.next_multiple_of(LARGE)..end);
        }
    }
    Ok(0..0)
}

fn run_to_the_request(cpu: &mut VcpuFd, bus: &Bus) -> Result<()> {
    // The kernel looks at each slot once at its boot; the second look at the last one is the agent's.
    let (last, mut looks) = (MMIO_BASE + (SLOTS as u64 - 1) * MMIO_WINDOW, 0);
    while looks < 2 {
        match cpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if bus.port_out(port, data) {
                    bail!("the guest ended before its agent asked for a spec: is the agent in the initramfs too old?");
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.port_in(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read(address, data);
                looks += u32::from(address == last);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => {}
            Ok(other) => bail!("the guest crashed: {other:?}"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(error).context("the guest crashed"),
        }
    }
    // The read is done only when KVM is entered again, which then leaves at once.
    cpu.set_kvm_immediate_exit(1);
    let left = cpu.run().err().map(kvm_ioctls::Error::errno);
    cpu.set_kvm_immediate_exit(0);
    ensure!(left == Some(libc::EINTR), "KVM did not stop when asked to");
    Ok(())
}
