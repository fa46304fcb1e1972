//! What the guest finds at an address: the devices' windows and the few ports.
//!
//! Any width and any address is answered: where nothing is, reads give ones and writes are lost.

use crate::serial::Serial;
use crate::slots::SpareSlot;
use crate::virtio::mmio::MmioDevice;
use std::sync::Mutex;

/// Where the devices' windows begin.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// How large one is.
pub const MMIO_WINDOW: u64 = 0x1000;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const SERIAL_BASE: u16 = 0x3f8;

/// All devices; shared by the vCPUs.
pub struct Bus {
    /// The virtio devices, in the order of their windows.
    pub devices: Vec<MmioDevice>,
    /// The windows behind them, for devices that come later.
    pub spare: Vec<SpareSlot>,
    /// The serial port, when somebody listens.
    pub serial: Option<Mutex<Serial>>,
}

/// What is behind an address.
enum Window<'a> {
    Device(&'a MmioDevice),
    Spare(&'a SpareSlot),
}

impl Bus {
    fn window(&self, address: u64) -> Option<(Window<'_>, u64)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let index = usize::try_from(offset / MMIO_WINDOW).ok()?;
        let window = match self.devices.get(index) {
            Some(device) => Window::Device(device),
            None => Window::Spare(self.spare.get(index - self.devices.len())?),
        };
        Some((window, offset % MMIO_WINDOW))
    }

    /// The guest reads memory that is none.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.window(address) {
            Some((Window::Device(device), offset)) => device.read(offset, data),
            Some((Window::Spare(slot), offset)) => slot.read(offset, data),
            None => {}
        }
    }

    /// The guest writes memory that is none.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.window(address) {
            Some((Window::Device(device), offset)) => device.write(offset, data),
            Some((Window::Spare(slot), offset)) => slot.write(offset, data),
            None => {}
        }
    }

    /// The guest reads a port.
    pub fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data.first_mut()) {
            // The keyboard controller's status: nothing pending, or a reboot would wait for it.
            (KEYBOARD_COMMAND, Some(byte)) => *byte = 0,
            (SERIAL_BASE..=0x3ff, Some(byte)) => {
                if let Some(Ok(mut serial)) = self.serial.as_ref().map(Mutex::lock) {
                    *byte = serial.read(port - SERIAL_BASE);
                }
            }
            _ => {}
        }
    }

    /// The guest writes a port; true when that asks for a reset of the machine.
    #[must_use]
    pub fn port_out(&self, port: u16, data: &[u8]) -> bool {
        match (port, data.first()) {
            (KEYBOARD_COMMAND, Some(&KEYBOARD_RESET)) => return true,
            (SERIAL_BASE..=0x3ff, Some(&byte)) => {
                if let Some(Ok(mut serial)) = self.serial.as_ref().map(Mutex::lock) {
                    serial.write(port - SERIAL_BASE, byte);
                }
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_reads_give_ones_at_any_width() {
        let bus = Bus { devices: Vec::new(), spare: Vec::new(), serial: None };
        for width in [0, 1, 2, 3, 4, 8, 16] {
            let mut data = vec![0; width];
            bus.read(MMIO_BASE + 3, &mut data);
            assert_eq!(data, vec![0xff; width]);
            bus.write(u64::MAX, &data);
            bus.port_in(0x3f8, &mut data);
            assert_eq!(data, vec![0xff; width]);
        }
    }

    #[test]
    fn only_the_reset_command_resets() {
        let bus = Bus { devices: Vec::new(), spare: Vec::new(), serial: None };
        assert!(bus.port_out(0x64, &[0xfe]));
        assert!(!bus.port_out(0x64, &[0xd1]));
        assert!(!bus.port_out(0x64, &[]));
        assert!(!bus.port_out(0x60, &[0xfe]));
    }
}
