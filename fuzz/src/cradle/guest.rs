//! A guest as a program in the input: registers of any width, rings, memory, and turns of the device in between.
//!
//! ```text
//!  0 register, value           1 width, offset, bytes        2 width, offset (read)       3 set the device up
//!  4 queue, slot, descriptor   5 queue, descriptors (a chain, made available)             6 address, bytes
//!  7 a turn of the device
//! ```
//! Memory is two regions with a gap, so that buffers can cross both.

use crate::input::Input;
use cradle::memory::Mem;
use cradle::virtio::mmio::MmioDevice;
use cradle::virtio::{Identity, Slot};
use std::sync::Arc;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const LOW: u64 = 0x1_0000;
const HIGH: u64 = 0x1_8000;
const END: u64 = 0x2_0000;
/// Descriptors of a queue in a well set up device.
const SIZE: u64 = 8;
/// Registers that a driver writes, the doorbell and a few that are none.
const REGISTERS: [u64; 20] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x00, 0x34, 0x60, 0x100,
    0x104,
];

/// The guest's memory.
pub fn memory() -> Arc<Mem> {
    let ranges = [(GuestAddress(0), LOW as usize), (GuestAddress(HIGH), (END - HIGH) as usize)];
    #[allow(clippy::expect_used)]
    Arc::new(Mem::from_ranges(&ranges).expect("the machine that fuzzes has some memory"))
}

/// An event descriptor.
pub fn event() -> EventFd {
    #[allow(clippy::expect_used)]
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).expect("the machine that fuzzes has descriptors")
}

/// A guest with one device.
pub struct Guest {
    pub mem: Arc<Mem>,
    pub slot: Arc<Slot>,
    device: MmioDevice,
    queues: u64,
    /// Where each queue's driver is.
    index: Vec<u16>,
}

/// An address near everything that matters.
pub fn address(input: &mut Input<'_>) -> u64 {
    let kind = input.byte();
    let near = u64::from(input.word());
    match kind {
        0xff => input.quad(),
        0xfe => u64::MAX - near,
        0xfd => END.wrapping_sub(near & 0xff),
        0xfc => LOW - (near & 0xff),
        0xfb => HIGH + (near & 0xff),
        _ => 0x4000 + (near & 0x3fff),
    }
}

/// A length: mostly small.
fn length(input: &mut Input<'_>) -> u32 {
    match input.byte() {
        0xff => input.double(),
        0xfe => u32::from(input.word()),
        small => u32::from(small) * 8,
    }
}

impl Guest {
    /// With this device.
    pub fn new(identity: Identity, mem: Arc<Mem>) -> Self {
        let queues = identity.queues.len();
        #[allow(clippy::expect_used)]
        let slot = Slot::new(queues, event()).expect("the machine that fuzzes has descriptors");
        let device = MmioDevice::new(identity, slot.clone(), mem.clone());
        Self { mem, slot, device, queues: queues as u64, index: vec![0; queues] }
    }

    fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn base(queue: u64) -> u64 {
        0x1000 * (queue % 3 + 1)
    }

    /// As a driver would, with what features it likes, and at most one queue that is somewhere else.
    pub fn set_up(&mut self, features: u32, odd: Option<(u64, u32)>) {
        for (offset, value) in [(0x70, 0), (0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(offset, value);
        }
        for queue in 0..self.queues {
            let base = Self::base(queue) as u32;
            for (offset, value) in
                [(0x30, queue as u32), (0x38, SIZE as u32), (0x80, base), (0x90, base + 0x400), (0xa0, base + 0x800)]
            {
                self.write(offset, value);
            }
            if let Some((register, value)) = odd
                && queue == u64::from(value >> 24) % self.queues
            {
                self.write(register, value & 0xff_ffff);
            }
            self.write(0x44, 1);
            let zeroes = [0; 0xc00];
            let _ = self.mem.write_slice(&zeroes, GuestAddress(Self::base(queue)));
        }
        self.write(0x70, 15);
        self.index.fill(0);
    }

    fn descriptor(&self, queue: u64, slot: u64, input: &mut Input<'_>, next: Option<u16>) {
        let (address, length, byte) = (address(input), length(input), input.byte());
        let (flags, next) = match next {
            Some(next) => (u16::from(byte & 2) | 1, next),
            None => (u16::from(byte & 7), u16::from(byte >> 3)),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let _ = self.mem.write_slice(&bytes, GuestAddress(Self::base(queue) + slot % SIZE * 16));
    }

    fn chain(&mut self, input: &mut Input<'_>) {
        let (queue, count) = (u64::from(input.byte()) % self.queues, u64::from(input.byte() % 5) + 1);
        let Some(index) = self.index.get_mut(queue as usize) else { return };
        let head = u64::from(*index) * 2 % SIZE;
        let at = Self::base(queue) + 0x404 + u64::from(*index) % SIZE * 2;
        *index = index.wrapping_add(1);
        let index = *index;
        let _ = self.mem.write_obj(head as u16, GuestAddress(at));
        for slot in head..head + count {
            let next = (slot + 1 < head + count).then_some(((slot + 1) % SIZE) as u16);
            self.descriptor(queue, slot, input, next);
        }
        let _ = self.mem.write_obj(index, GuestAddress(Self::base(queue) + 0x402));
    }

    /// One step of the program; true when it is the device's turn.
    pub fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.byte() % 8 {
            0 => {
                let register = usize::from(input.byte()) % REGISTERS.len();
                self.write(REGISTERS[register], input.double());
            }
            1 => {
                let offset = u64::from(input.word());
                self.device.write(offset, input.piece());
            }
            2 => {
                let (offset, width) = (u64::from(input.word()), usize::from(input.byte() % 20));
                self.device.read(offset, &mut vec![0; width]);
            }
            3 => {
                let (features, odd) = (input.double(), input.byte());
                let odd = (odd & 1 != 0).then(|| (REGISTERS[usize::from(odd >> 1) % REGISTERS.len()], input.double()));
                self.set_up(features, odd);
            }
            4 => {
                let (queue, slot) = (u64::from(input.byte()), u64::from(input.byte()));
                self.descriptor(queue, slot, input, None);
            }
            5 => self.chain(input),
            6 => {
                let at = address(input);
                let _ = self.mem.write_slice(input.piece(), GuestAddress(at));
            }
            _ => return true,
        }
        false
    }

    /// The whole program. A reset works whatever went before.
    pub fn play(&mut self, input: &mut Input<'_>, mut turn: impl FnMut(&mut Input<'_>)) {
        let features = input.double();
        self.set_up(features, None);
        while !input.is_empty() {
            if self.step(input) {
                turn(input);
            }
        }
        turn(input);
        self.write(0x70, 0);
        assert!(self.slot.active().is_none(), "a device that was reset still has its queues");
        turn(input);
    }
}
