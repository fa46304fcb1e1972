//! The serial port (a 16550A): output to a file, no input.
//!
//! It is there for watching a kernel that fails; what the file may grow to is bounded, the rest is dropped.

use std::fs::File;
use std::io::Write as _;
use vmm_sys_util::eventfd::EventFd;

/// The port's interrupt.
pub const IRQ: u32 = 4;
const MAX_BYTES: u64 = 16 << 20;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

const DIVISOR_LATCH: u8 = 0x80;
const ENABLE_EMPTY: u8 = 0x02;
const ID_NONE: u8 = 0x01;
const ID_EMPTY: u8 = 0x02;
const ID_FIFO: u8 = 0xc0;
const STATUS_EMPTY: u8 = 0x60;
const MODEM_READY: u8 = 0xb0;

/// The port.
#[derive(Debug)]
pub struct Serial {
    out: File,
    interrupt: EventFd,
    written: u64,
    enabled: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: bool,
    empty_pending: bool,
}

impl Serial {
    /// A port that writes to `out`.
    #[must_use]
    pub fn new(out: File, interrupt: EventFd) -> Self {
        Self {
            out,
            interrupt,
            written: 0,
            enabled: 0,
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            fifo: false,
            empty_pending: false,
        }
    }

    fn latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn empty(&mut self) {
        if self.enabled & ENABLE_EMPTY != 0 {
            self.empty_pending = true;
            let _ = self.interrupt.write(1);
        }
    }

    /// The guest reads a register.
    pub fn read(&mut self, register: u16) -> u8 {
        match register {
            DATA if self.latched() => self.divisor[0],
            INTERRUPT_ENABLE if self.latched() => self.divisor[1],
            DATA => 0,
            INTERRUPT_ENABLE => self.enabled,
            INTERRUPT_ID => {
                let fifo = if self.fifo { ID_FIFO } else { 0 };
                fifo | if std::mem::take(&mut self.empty_pending) { ID_EMPTY } else { ID_NONE }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => STATUS_EMPTY,
            MODEM_STATUS => MODEM_READY,
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// The guest writes a register.
    pub fn write(&mut self, register: u16, value: u8) {
        match register {
            DATA if self.latched() => self.divisor[0] = value,
            INTERRUPT_ENABLE if self.latched() => self.divisor[1] = value,
            DATA => {
                if self.written < MAX_BYTES && self.out.write_all(&[value]).is_ok() {
                    self.written += 1;
                }
                self.empty();
            }
            INTERRUPT_ENABLE => {
                self.enabled = value & 0x0f;
                self.empty();
            }
            INTERRUPT_ID => self.fifo = value & 1 != 0,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_reach_the_file_and_an_empty_register_interrupts_once() {
        let mut file = tempfile::tempfile().unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut serial = Serial::new(file.try_clone().unwrap(), interrupt.try_clone().unwrap());
        serial.write(DATA, b'a');
        assert!(interrupt.read().is_err());
        serial.write(INTERRUPT_ENABLE, ENABLE_EMPTY);
        serial.write(DATA, b'b');
        assert_eq!(interrupt.read().unwrap(), 2);
        assert_eq!(serial.read(INTERRUPT_ID), ID_EMPTY);
        assert_eq!(serial.read(INTERRUPT_ID), ID_NONE);
        std::io::Seek::rewind(&mut file).unwrap();
        assert_eq!(std::io::read_to_string(file).unwrap(), "ab");
    }
}
