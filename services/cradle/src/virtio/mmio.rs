//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): a device's registers.
//!
//! The queues' addresses are taken once, at DRIVER_OK, checked, and handed to the backend; later writes to them change nothing
//! until the device is reset.

use super::{Active, F_EVENT_IDX, F_VERSION_1, Identity, STATUS_USED, Slot};
use crate::memory::Mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_queue::{Queue, QueueT as _};

/// What every window begins with.
pub const MAGIC: u32 = 0x7472_6976;
const VENDOR: u32 = 0x4452_524b;
const CONFIG: u64 = 0x100;
/// The doorbells' register.
pub const QUEUE_NOTIFY: u64 = 0x50;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// A device on the bus.
pub struct MmioDevice {
    identity: Identity,
    slot: Arc<Slot>,
    mem: Arc<Mem>,
    registers: Mutex<Registers>,
}

#[derive(Debug, Default)]
struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: usize,
    queues: Vec<QueueRegisters>,
    epoch: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    size: u32,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl MmioDevice {
    /// A device that no driver has found yet.
    #[must_use]
    pub fn new(identity: Identity, slot: Arc<Slot>, mem: Arc<Mem>) -> Self {
        let registers =
            Registers { queues: vec![QueueRegisters::default(); identity.queues.len()], ..Registers::default() };
        Self { identity, slot, mem, registers: Mutex::new(registers) }
    }

    /// The guest reads a register; what is none stays as it is.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let at = at as usize;
            if let Some(bytes) = self.identity.config.get(at..at.saturating_add(data.len())) {
                data.copy_from_slice(bytes);
            }
            return;
        }
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        if let Some(value) = self.register(offset) {
            *data = value.to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> Option<u32> {
        // The interrupt's status is read in each interrupt: no lock for it.
        if offset == 0x60 {
            return Some(if self.identity.interrupts_elsewhere {
                STATUS_USED
            } else {
                self.slot.status.load(Ordering::SeqCst)
            });
        }
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = registers.queues.get(registers.queue_select);
        Some(match offset {
            0x00 => MAGIC,
            0x04 => 2,
            0x08 => self.identity.kind,
            0x0c => VENDOR,
            0x10 => half(self.identity.features | F_VERSION_1, registers.device_features_select),
            0x34 => self.identity.queues.get(registers.queue_select).map_or(0, |max| u32::from(*max)),
            0x44 => queue.map_or(0, |q| u32::from(q.ready)),
            0x70 => registers.status,
            0xfc => 0,
            _ => return None,
        })
    }

    /// The guest writes a register.
    pub fn write(&self, offset: u64, data: &[u8]) {
        // No device has a configuration that the driver may change.
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match offset {
            0x64 => {
                self.slot.status.fetch_and(!value, Ordering::SeqCst);
            }
            QUEUE_NOTIFY => {
                if let Some(kick) = self.slot.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            _ => {
                let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
                if offset == 0x70 {
                    self.set_status(&mut registers, value);
                } else {
                    registers.write(offset, value);
                }
            }
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            self.reset(registers);
            return;
        }
        let known = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED);
        let before = registers.status;
        // Bits are only ever added; a reset takes them away.
        registers.status |= known;
        if known & FEATURES_OK != 0 && before & FEATURES_OK == 0 {
            let offered = self.identity.features | F_VERSION_1;
            if registers.driver_features & !offered != 0 || registers.driver_features & F_VERSION_1 == 0 {
                registers.status &= !FEATURES_OK;
            }
        }
        if registers.status & DRIVER_OK != 0 && before & DRIVER_OK == 0 {
            match self.queues(registers) {
                Some(queues) => {
                    registers.epoch = registers.epoch.wrapping_add(1);
                    *self.slot.active() =
                        Some(Active { queues, features: registers.driver_features, epoch: registers.epoch });
                    let _ = self.slot.changed.write(1);
                }
                None => registers.status = (registers.status & !DRIVER_OK) | NEEDS_RESET,
            }
        }
    }

    fn reset(&self, registers: &mut Registers) {
        let epoch = registers.epoch;
        *registers = Registers {
            queues: vec![QueueRegisters::default(); self.identity.queues.len()],
            epoch,
            ..Registers::default()
        };
        // Waits until the backend lets go of the queues.
        let was = self.slot.active().take();
        self.slot.status.store(0, Ordering::SeqCst);
        if was.is_some() {
            let _ = self.slot.changed.write(1);
        }
    }

    /// The queues as the driver has set them up; none when that makes no sense.
    fn queues(&self, registers: &Registers) -> Option<Vec<Queue>> {
        if registers.status & FEATURES_OK == 0 {
            return None;
        }
        let mut queues = Vec::with_capacity(registers.queues.len());
        for (set, max) in registers.queues.iter().zip(&self.identity.queues) {
            let mut queue = Queue::new(*max).ok()?;
            if set.ready {
                let size = u16::try_from(set.size).ok().filter(|size| size.is_power_of_two() && size <= max)?;
                queue.set_size(size);
                queue.try_set_desc_table_address(vm_memory::GuestAddress(set.descriptors)).ok()?;
                queue.try_set_avail_ring_address(vm_memory::GuestAddress(set.driver)).ok()?;
                queue.try_set_used_ring_address(vm_memory::GuestAddress(set.device)).ok()?;
                queue.set_event_idx(registers.driver_features & F_EVENT_IDX != 0);
                queue.set_ready(true);
                if !queue.is_valid(&*self.mem) {
                    return None;
                }
            }
            queues.push(queue);
        }
        Some(queues)
    }
}

impl Registers {
    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_select = value,
            0x24 => self.driver_features_select = value,
            0x20 if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_features_select, value);
            }
            0x30 => self.queue_select = value as usize,
            _ if self.status & DRIVER_OK == 0 => {
                let Some(queue) = self.queues.get_mut(self.queue_select) else { return };
                match offset {
                    0x38 => queue.size = value,
                    0x44 => queue.ready = value & 1 != 0,
                    0x80 => set_half(&mut queue.descriptors, 0, value),
                    0x84 => set_half(&mut queue.descriptors, 1, value),
                    0x90 => set_half(&mut queue.driver, 0, value),
                    0x94 => set_half(&mut queue.driver, 1, value),
                    0xa0 => set_half(&mut queue.device, 0, value),
                    0xa4 => set_half(&mut queue.device, 1, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, select: u32, value: u32) {
    match select {
        0 => *target = (*target & !0xffff_ffff) | u64::from(value),
        1 => *target = (*target & 0xffff_ffff) | (u64::from(value) << 32),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    fn device() -> MmioDevice {
        let identity = Identity {
            kind: 4,
            features: F_EVENT_IDX,
            queues: vec![16],
            doorbells: 1,
            config: vec![1, 2, 3, 4, 5],
            interrupts_elsewhere: false,
        };
        let slot = Slot::new(1, EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
        MmioDevice::new(identity, slot, Arc::new(crate::memory::create(32 << 20, false).unwrap()))
    }

    fn write(device: &MmioDevice, offset: u64, value: u32) {
        device.write(offset, &value.to_le_bytes());
    }

    fn read(device: &MmioDevice, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn negotiate(device: &MmioDevice, features: u64) {
        write(device, 0x70, ACKNOWLEDGE | DRIVER);
        for select in 0..2 {
            write(device, 0x24, select);
            write(device, 0x20, half(features, select));
        }
        write(device, 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn set_up(device: &MmioDevice, size: u32, descriptors: u32) {
        negotiate(device, F_VERSION_1);
        write(device, 0x38, size);
        write(device, 0x80, descriptors);
        write(device, 0x90, 0x2000);
        write(device, 0xa0, 0x3000);
        write(device, 0x44, 1);
        write(device, 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    #[test]
    fn a_driver_that_follows_the_order_gets_its_queues_to_the_backend() {
        let device = device();
        set_up(&device, 8, 0x1000);
        assert_eq!(read(&device, 0x70), 15);
        let active = device.slot.active();
        let queue = &active.as_ref().unwrap().queues[0];
        assert_eq!((queue.size(), queue.desc_table(), queue.ready()), (8, 0x1000, true));
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let device = device();
        negotiate(&device, F_VERSION_1 | 1);
        assert_eq!(read(&device, 0x70) & FEATURES_OK, 0);
    }

    #[test]
    fn a_queue_that_cannot_be_asks_for_a_reset_and_reaches_no_backend() {
        for (size, descriptors) in
            [(0, 0x1000), (7, 0x1000), (32, 0x1000), (65536 + 8, 0x1000), (8, 0x1001), (8, 0xffff_f000)]
        {
            let device = device();
            set_up(&device, size, descriptors);
            assert_eq!(read(&device, 0x70) & (DRIVER_OK | NEEDS_RESET), NEEDS_RESET, "{size} {descriptors:#x}");
            assert!(device.slot.active().is_none());
        }
    }

    #[test]
    fn a_queue_does_not_change_once_the_driver_is_there() {
        let device = device();
        set_up(&device, 8, 0x1000);
        write(&device, 0x38, 16);
        write(&device, 0x80, 0x9000);
        write(&device, 0x70, 15);
        assert_eq!(device.slot.active().as_ref().unwrap().queues[0].desc_table(), 0x1000);
        write(&device, 0x70, 0);
        assert!(device.slot.active().is_none());
        set_up(&device, 16, 0x4000);
        let active = device.slot.active();
        assert_eq!(active.as_ref().map(|a| (a.queues[0].desc_table(), a.epoch)), Some((0x4000, 2)));
    }

    #[test]
    fn odd_widths_and_offsets_do_nothing() {
        let device = device();
        for offset in 0..0x120 {
            for width in [1usize, 2, 3, 5, 8, 16] {
                device.write(offset, &vec![0xa5; width]);
                device.read(offset, &mut vec![0; width]);
            }
        }
        assert_eq!(read(&device, 0x70), 0);
        assert_eq!(read(&device, 0xb0), 0xffff_ffff);
        let mut byte = [0];
        device.read(0x104, &mut byte);
        assert_eq!(byte, [5]);
        let mut beyond = [9, 9];
        device.read(0x104, &mut beyond);
        assert_eq!(beyond, [9, 9]);
    }
}
