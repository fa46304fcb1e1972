//! A machine before its devices: memory, KVM's side and processors, gone on from a template or about to boot.
//!
//! A template that does not fit costs nothing but the time to see it: everything is undone, and the guest boots. Who passed
//! the template is told, so that another one is made.

use crate::bundle::Names;
use crate::cpu;
use crate::memory::{self, Mem};
use crate::say;
use crate::template::{self, Identity, Template};
use crate::vm::{self, Vm};
use anyhow::{Context, Result};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use zone::bundle::Bundle;

/// The machine so far.
pub struct Begun {
    /// Its memory.
    pub mem: Arc<Mem>,
    /// KVM's side of it.
    pub vm: Vm,
    /// Its processors, by number.
    pub cpus: Vec<VcpuFd>,
    /// What it goes on from; none when it boots.
    pub template: Option<Template>,
}

/// Makes it.
///
/// # Errors
/// When there is no KVM, or no memory.
pub fn begin(bundle: &Bundle, names: &Names, spec: &[u8]) -> Result<Begun> {
    let kvm = vm::kvm(names.kvm(bundle.kvm.as_deref())?);
    let supported = cpu::supported(&kvm)?;
    // Sockets, random bytes and the balloon have slots, too.
    let devices = 3 + bundle.disks.len() + bundle.nets.len() + bundle.shares.len() + usize::from(bundle.spare_slots);
    if let Some(name) = bundle.template.as_deref().filter(|_| template::fits(bundle, devices, spec)) {
        match go_on(bundle, names, name, &kvm, &supported) {
            Ok(begun) => return Ok(begun),
            Err(error) => refuse(bundle, names, name, &format!("{error:#}")),
        }
    }
    let mem = Arc::new(memory::create(bytes(bundle), shared(bundle))?);
    let vm = Vm::new(&kvm, &mem)?;
    let cpus = (0..bundle.vcpus).map(|id| processor(&vm, &supported, id, bundle.vcpus)).collect::<Result<_>>()?;
    Ok(Begun { mem, vm, cpus, template: None })
}

fn bytes(bundle: &Bundle) -> u64 {
    u64::from(bundle.memory_mib) << 20
}

/// vhost-user daemons must see the memory, too.
fn shared(bundle: &Bundle) -> bool {
    !bundle.shares.is_empty()
}

fn go_on(bundle: &Bundle, names: &Names, name: &Path, kvm: &Kvm, supported: &CpuId) -> Result<Begun> {
    let (kernel, initramfs) = (names.open(&bundle.kernel, false)?, names.open(&bundle.initramfs, false)?);
    let identity = Identity::of(&kernel, &initramfs, supported)?;
    let template = Template::open(names, name, &identity)?;
    let mem = Arc::new(template.memory(bytes(bundle), shared(bundle))?);
    let vm = Vm::new(kvm, &mem)?;
    let cpu = processor(&vm, supported, 0, 1)?;
    template.state().set(&vm.fd, &cpu)?;
    template.mapped().for_each(|(start, len)| Vm::map_early(&cpu, start, len));
    Ok(Begun { mem, vm, cpus: vec![cpu], template: Some(template) })
}

fn processor(vm: &Vm, supported: &CpuId, id: u8, count: u8) -> Result<VcpuFd> {
    let cpu = vm.fd.create_vcpu(u64::from(id)).with_context(|| format!("KVM cannot create vCPU {id}"))?;
    cpu::set_cpuid(&cpu, supported, id, count)?;
    Ok(cpu)
}

/// Says why the guest boots; also to who has the template made, when a socket for that was passed.
fn refuse(bundle: &Bundle, names: &Names, name: &Path, why: &str) {
    say(&format!("the template does not fit, the guest is booted instead: {why}"));
    if let Some(socket) = names.beside(name, "-refused").map(UnixDatagram::from)
        && socket.set_nonblocking(true).is_ok()
    {
        // Who does not listen has another template made when it looks next.
        let _ = socket.send(format!("{} {why}", bundle.memory_mib).as_bytes());
    }
}
