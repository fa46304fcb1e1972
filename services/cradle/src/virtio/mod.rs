//! Virtio devices: each is a backend behind the same transport.
//!
//! [`mmio`] owns the registers and is called by the vCPUs. A backend owns what the device does and runs on a worker's thread.
//! Between them is a [`Slot`]: the queues, snapshot when the driver said DRIVER_OK, and from then on only the backend's, until
//! a reset takes them away under the slot's lock. Event descriptors are waited for edge-triggered and never read: one call less.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod vsock;

use crate::memory::Mem;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_queue::{Queue, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

/// The device is not of the transitional kind.
pub const F_VERSION_1: u64 = 1 << 32;
/// Descriptors in tables of their own.
pub const F_INDIRECT: u64 = 1 << 28;
/// Doorbells and interrupts only when asked for.
pub const F_EVENT_IDX: u64 = 1 << 29;

/// What a device is, to the transport.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The virtio device type.
    pub kind: u32,
    /// The features offered.
    pub features: u64,
    /// The largest size of each queue, a power of two.
    pub queues: Vec<u16>,
    /// How many of the queues, from the first, want doorbells.
    pub doorbells: usize,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Somebody else raises the line without setting the status bit: it always reads as set.
    pub interrupts_elsewhere: bool,
}

/// What the driver has set up.
#[derive(Debug)]
pub struct Active {
    /// The queues, in order.
    pub queues: Vec<Queue>,
    /// The features agreed on.
    pub features: u64,
    /// Counts activations, so that a backend sees that it was reset meanwhile.
    pub epoch: u32,
}

/// Where transport and backend meet.
#[derive(Debug)]
pub struct Slot {
    active: Mutex<Option<Active>>,
    /// Written by the guest for each queue.
    pub kicks: Vec<EventFd>,
    /// Written when the device was set up or reset.
    pub changed: EventFd,
    line: EventFd,
    status: AtomicU32,
}

/// The interrupt status bit for used buffers.
pub const STATUS_USED: u32 = 1;

impl Slot {
    /// A slot that is not set up, for a device with this many queues.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn new(queues: usize, line: EventFd) -> io::Result<Arc<Self>> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = (0..queues).map(|_| event()).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { active: Mutex::new(None), kicks, changed: event()?, line, status: AtomicU32::new(0) }))
    }

    /// The queues, if the driver has set the device up; while this is held they stay.
    pub fn active(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the driver that a queue has used buffers.
    pub fn interrupt(&self) {
        self.status.fetch_or(STATUS_USED, Ordering::SeqCst);
        let _ = self.line.write(1);
    }

    /// The line, for somebody else to raise.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}

/// Asks for doorbells again after a pass over a queue that found it empty; true when there is more after all.
///
/// `idle` counts passes in a row that took nothing, from 0: a driver whose ring says there is something while there is nothing
/// to take must not keep us busy.
pub fn look_again(queue: &mut Queue, mem: &Mem, took: bool, idle: &mut u8) -> bool {
    *idle = if took { 0 } else { *idle + 1 };
    queue.enable_notification(mem).unwrap_or(false) && *idle < 2
}

/// Interrupts the driver if it wants to hear of what was used in this queue.
pub fn notify(slot: &Slot, queue: &mut Queue, mem: &Mem) {
    if queue.needs_notification(mem).unwrap_or(true) {
        slot.interrupt();
    }
}

#[cfg(test)]
mod hostile_tests;
