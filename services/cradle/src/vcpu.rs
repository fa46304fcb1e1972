//! Runs a virtual CPU on its thread, and says how the guest ended.

use crate::bus::Bus;
use crate::say;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use vmm_sys_util::eventfd::EventFd;

/// The guest ended by itself.
pub const ENDED: u8 = 0;
/// The guest crashed.
pub const CRASHED: u8 = 2;
/// KVM gives this now and then before a vCPU first runs, when a signal meets its helper thread's creation.
const MAX_RETRIES: u32 = 16;

/// How the guest ended; the first to say it is believed.
#[derive(Debug)]
pub struct End {
    code: AtomicI32,
    event: EventFd,
}

impl End {
    /// Not ended.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { code: AtomicI32::new(-1), event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? }))
    }

    /// The guest has ended with this exit code of the monitor.
    pub fn set(&self, code: u8) {
        let _ = self.code.compare_exchange(-1, i32::from(code), Ordering::SeqCst, Ordering::SeqCst);
        let _ = self.event.write(1);
    }

    /// The exit code, once there is one.
    #[must_use]
    pub fn code(&self) -> Option<u8> {
        u8::try_from(self.code.load(Ordering::SeqCst)).ok()
    }

    /// Becomes readable when the guest has ended.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Runs until the guest ends.
pub fn run(id: u8, mut vcpu: VcpuFd, bus: &Bus, end: &End) {
    let mut retries = 0;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::IoIn(port, data)) => bus.port_in(port, data),
            Ok(VcpuExit::IoOut(port, data)) => {
                if bus.port_out(port, data) {
                    return end.set(ENDED);
                }
            }
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => {}
            Ok(VcpuExit::SystemEvent(_, _)) => return end.set(ENDED),
            Ok(exit) => {
                let what = match exit {
                    VcpuExit::Shutdown => "triple fault".to_owned(),
                    VcpuExit::FailEntry(reason, _) => {
                        format!("the processor refuses to enter the guest, reason {reason:#x}")
                    }
                    VcpuExit::InternalError => "KVM cannot emulate an instruction".to_owned(),
                    other => format!("unexpected exit {other:?}"),
                };
                say(&format!("the guest crashed on vCPU {id}: {what}"));
                return end.set(CRASHED);
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) if error.errno() == libc::ENOMEM && retries < MAX_RETRIES => retries += 1,
            Err(error) => {
                say(&format!("the guest crashed on vCPU {id}: {error}"));
                return end.set(CRASHED);
            }
        }
    }
}
