//! A guest that means harm: rings, descriptors and registers full of nonsense, at every device.
//!
//! What is claimed: no panic, no endless loop, nothing outside of guest memory (the slices are checked), and a reset always works.

use super::balloon::{self, Balloon};
use super::block::{self, Block, extents::Extents};
use super::mmio::MmioDevice;
use super::net::{self, Net};
use super::rng::{self, Rng};
use super::vsock::{self, device::Vsock};
use super::{Identity, Slot};
use crate::epoll::Epoll;
use crate::memory::Mem;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Each run has rounds enough to see every stroke; a long one by hand: `CRADLE_FUZZ_ROUNDS=1000000`, with `CRADLE_FUZZ_SEED` for another path.
const ROUNDS: u64 = 400;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const MEMORY: u64 = 32 << 20;

/// Numbers that repeat from run to run (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of(&mut self, sides: u64) -> u64 {
        self.roll() % sides
    }

    /// Addresses near everything that matters.
    fn address(&mut self) -> u64 {
        match self.of(6) {
            0 => self.roll(),
            1 => MEMORY - self.of(64),
            2 => u64::MAX - self.of(64),
            _ => self.of(0x8000),
        }
    }

    fn length(&mut self) -> u32 {
        match self.of(5) {
            0 => self.roll() as u32,
            1 => 0,
            _ => self.of(5000) as u32,
        }
    }
}

struct Victim {
    mem: Arc<Mem>,
    slot: Arc<Slot>,
    device: MmioDevice,
    queues: usize,
}

impl Victim {
    fn new(identity: Identity) -> Self {
        let mem = Arc::new(crate::memory::create(MEMORY, false).unwrap());
        let slot = Slot::new(identity.queues.len(), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
        let queues = identity.queues.len();
        let device = MmioDevice::new(identity, slot.clone(), mem.clone());
        Self { mem, slot, device, queues }
    }

    fn write(&self, offset: u64, value: u64) {
        self.device.write(offset, &(value as u32).to_le_bytes());
    }

    /// Brings the device up, mostly as it should be.
    fn set_up(&self, dice: &mut Dice, tidy: bool) {
        self.write(0x70, 0);
        self.write(0x70, 3);
        let mut features = [0u8; 4];
        self.write(0x14, 0);
        self.device.read(0x10, &mut features);
        self.write(0x24, 0);
        let offered = u64::from(u32::from_le_bytes(features));
        self.write(0x20, if tidy { 0 } else { offered & (dice.roll() | 0xffff) });
        self.write(0x24, 1);
        self.write(0x20, 1);
        self.write(0x70, 11);
        for queue in 0..self.queues as u64 {
            self.write(0x30, queue);
            self.write(0x38, 8);
            let base = 0x1000 * (queue + 1);
            for (register, address) in [(0x80, base), (0x90, base + 0x400), (0xa0, base + 0x800)] {
                self.write(register, if !tidy && dice.of(30) == 0 { dice.address() } else { address });
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
    }

    /// Writes rings whose parts are each plausible by themselves.
    fn scribble(&self, dice: &mut Dice) {
        for queue in 0..self.queues as u64 {
            let base = 0x1000 * (queue + 1);
            for index in 0..8 {
                let at = GuestAddress(base + index * 16);
                self.mem.write_obj(dice.address(), at).unwrap();
                self.mem.write_obj(dice.length(), GuestAddress(at.0 + 8)).unwrap();
                self.mem.write_obj(dice.of(8) as u16, GuestAddress(at.0 + 12)).unwrap();
                self.mem.write_obj(dice.of(9) as u16, GuestAddress(at.0 + 14)).unwrap();
                self.mem.write_obj(dice.of(9) as u16, GuestAddress(base + 0x400 + 4 + index * 2)).unwrap();
            }
            let idx: u16 = self.mem.read_obj(GuestAddress(base + 0x402)).unwrap();
            let more = if dice.of(10) == 0 { dice.roll() as u16 } else { dice.of(9) as u16 };
            self.mem.write_obj(idx.wrapping_add(more), GuestAddress(base + 0x402)).unwrap();
        }
        // Headers that make sense here and there, where descriptors like to point.
        for _ in 0..64 {
            let value = if dice.of(2) == 0 { dice.of(8) } else { dice.roll() };
            self.mem.write_obj(value, GuestAddress(0x4000 + dice.of(0x800) * 8)).unwrap();
        }
    }

    fn torment(&self, mut serve: impl FnMut()) {
        let wanted = |name: &str, default| std::env::var(name).map_or(default, |number| number.parse().unwrap());
        let mut dice = Dice(wanted("CRADLE_FUZZ_SEED", SEED).max(1));
        for round in 0..wanted("CRADLE_FUZZ_ROUNDS", ROUNDS) {
            if round % 8 == 0 {
                self.set_up(&mut dice, false);
            }
            self.scribble(&mut dice);
            for _ in 0..dice.of(4) {
                self.write(dice.of(0x200), dice.0);
            }
            serve();
        }
        self.write(0x70, 0);
        assert!(self.slot.active().is_none());
    }
}

#[test]
fn the_disk_survives() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 65536]).unwrap();
    let mut disk = Extents::new(false);
    disk.push(file, 0, 0).unwrap();
    let victim = Victim::new(block::identity(&disk));
    let mut block = Block::new(victim.slot.clone(), victim.mem.clone(), disk);
    victim.torment(|| {
        block.serve();
    });
}

#[test]
fn the_random_bytes_survive() {
    let victim = Victim::new(rng::identity());
    let rng = Rng::new(victim.slot.clone(), victim.mem.clone());
    victim.torment(|| rng.serve());
}

#[test]
fn the_balloon_survives() {
    let victim = Victim::new(balloon::identity());
    let balloon = Balloon::new(victim.slot.clone(), victim.mem.clone());
    victim.torment(|| balloon.serve());
}

#[test]
fn the_interface_survives() {
    let (tap, mut wire) = UnixStream::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let victim = Victim::new(net::identity([2, 0, 0, 0, 0, 1]));
    let mut net = Net::new(victim.slot.clone(), victim.mem.clone(), File::from(OwnedFd::from(tap)));
    victim.torment(|| {
        let _ = wire.write(&[7; 200]);
        let _ = std::io::Read::read(&mut wire, &mut [0; 65536]);
        net.serve();
    });
}

#[test]
fn the_sockets_survive() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("agent")).unwrap();
    let victim = Victim::new(vsock::identity());
    let mut vsock = Vsock::new(victim.slot.clone(), victim.mem.clone(), listener, 1, None).unwrap();
    let epoll = Epoll::new().unwrap();
    victim.torment(|| vsock.serve(&epoll).unwrap());

    // And then it is a device as before: a packet is taken and answered by a reset that waits for room.
    victim.set_up(&mut Dice(SEED), true);
    let (header, base) = (0x5000, 0x2000);
    let words: [u32; 11] = [3, 0, 2, 0, 1000, 9, 0, 1 | 1 << 16, 0, 4096, 0];
    for (word, at) in words.iter().zip((header..).step_by(4)) {
        victim.mem.write_obj(*word, GuestAddress(at)).unwrap();
    }
    victim.mem.write_obj(header, GuestAddress(base)).unwrap();
    victim.mem.write_obj(44u32, GuestAddress(base + 8)).unwrap();
    victim.mem.write_obj(0u32, GuestAddress(base + 12)).unwrap();
    victim.mem.write_obj(0u16, GuestAddress(base + 0x404)).unwrap();
    for ring in [base, base - 0x1000] {
        victim.mem.write_obj(0u32, GuestAddress(ring + 0x800)).unwrap();
        victim.mem.write_obj(0u32, GuestAddress(ring + 0x400)).unwrap();
    }
    victim.mem.write_obj(1u16, GuestAddress(base + 0x402)).unwrap();
    vsock.serve(&epoll).unwrap();
    assert_eq!(victim.mem.read_obj::<u16>(GuestAddress(base + 0x802)).unwrap(), 1);
}
