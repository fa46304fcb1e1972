//! Empty slots: windows on the bus that become devices while the guest runs, and empty again.
//!
//! An empty slot shows a device of type 0, a placeholder that a driver leaves alone (virtio 1.2, section 4.2.2): three exits at
//! the guest's start and nothing else. The guest's agent binds the driver anew when the slot has become a device.

use crate::virtio::mmio::{MAGIC, MmioDevice};
use std::sync::{PoisonError, RwLock};

/// A window that may have a device.
#[derive(Default)]
pub struct SpareSlot(RwLock<Option<MmioDevice>>);

impl SpareSlot {
    /// The guest reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(device) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            return device.read(offset, data);
        }
        let value = match offset {
            0x00 => MAGIC,
            0x04 => 2,
            0x08 => 0,
            _ => return,
        };
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    /// The guest writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(device) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            device.write(offset, data);
        }
    }

    /// Whether a device can be plugged.
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Makes it this device, or empty; gives what it was.
    pub fn set(&self, device: Option<MmioDevice>) -> Option<MmioDevice> {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::{Slot, rng};
    use std::sync::Arc;
    use vmm_sys_util::eventfd::EventFd;

    fn word(slot: &SpareSlot, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        slot.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn an_empty_slot_is_a_placeholder_that_becomes_a_device_and_a_placeholder_again() {
        let slot = SpareSlot::default();
        slot.write(0x70, &1u32.to_le_bytes());
        assert_eq!((word(&slot, 0), word(&slot, 8), word(&slot, 0x70)), (MAGIC, 0, u32::MAX));
        let mem = Arc::new(crate::memory::create(32 << 20, false).unwrap());
        let inner = Slot::new(1, EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
        assert!(slot.set(Some(MmioDevice::new(rng::identity(), inner, mem))).is_none());
        assert!(!slot.is_empty());
        assert_eq!((word(&slot, 8), word(&slot, 0x70)), (4, 0));
        assert!(slot.set(None).is_some());
        assert_eq!(word(&slot, 8), 0);
    }
}
