//! virtio-net: an interface on a tap (virtio 1.2, section 5.1).
//!
//! The tap exists already, with its address and its limits; we attach to it by name and move packets with their offload headers,
//! which the kernel on both sides checks. One thread an interface.

use super::chain::Chain;
use super::{F_EVENT_IDX, F_INDIRECT, Identity, Slot, look_again, notify};
use crate::bucket::Limiter;
use crate::epoll::{Epoll, EventFlags};
use crate::memory::Mem;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::Bytes as _;
use zone::bundle::Rate;

const KIND: u32 = 1;
const QUEUE_SIZE: u16 = 256;
const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MERGE_BUFFERS: u64 = 1 << 15;
const HEADER: usize = 12;
/// The largest packet with offloads, and its header.
const MAX_PACKET: usize = 65550 + HEADER;
/// The most packets before the other direction has its turn.
const BATCH: usize = 128;
const RX: usize = 0;
const TX: usize = 1;

/// Attaches to a tap.
pub const TUNSETIFF: u64 = 0x4004_54ca;
/// Says which offloads the guest takes.
pub const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// Says how long the header is.
pub const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// Opens the device that taps are attached through.
///
/// # Errors
/// When there is none, or it is not for us.
pub fn open_tun() -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open("/dev/net/tun").context("cannot open /dev/net/tun")
}

/// Attaches an open /dev/net/tun to the tap of this name.
///
/// # Errors
/// When there is none, or it belongs to somebody else.
pub fn attach(tap: File, name: &str) -> Result<File> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        bail!("a tap cannot be named {name:?}");
    }
    // SAFETY: ifreq is plain data; all zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads and writes an ifreq here, which lives across the call; the descriptor is open.
    if unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot attach to the tap {name}, which must exist and be ours"));
    }
    set_header(&tap).with_context(|| format!("the tap {name} does not take our header"))?;
    Ok(tap)
}

/// Tells an attached tap how long the header before each packet is.
///
/// # Errors
/// When it is no tap with such headers.
pub fn set_header(tap: &File) -> io::Result<()> {
    let size = HEADER as libc::c_int;
    // SAFETY: the kernel reads an int here, which lives across the call; the descriptor is open.
    match unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads a MAC address.
///
/// # Errors
/// When it is none.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .with_context(|| format!("{text:?} is no MAC address"))?;
    }
    if parts.next().is_some() {
        bail!("{text:?} is no MAC address");
    }
    Ok(mac)
}

/// What the transport shows.
#[must_use]
pub fn identity(mac: [u8; 6]) -> Identity {
    let offloads = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
    Identity {
        kind: KIND,
        features: offloads | F_MAC | F_MERGE_BUFFERS | F_INDIRECT | F_EVENT_IDX,
        queues: vec![QUEUE_SIZE; 2],
        doorbells: 2,
        config: mac.to_vec(),
        interrupts_elsewhere: false,
    }
}

/// The backend.
pub struct Net {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
    tap: File,
    /// A packet from the tap that waits for buffers.
    packet: Vec<u8>,
    waiting: usize,
    epoch: u32,
    /// To the guest, from the guest.
    limits: [Limiter; 2],
}

impl Net {
    /// For this slot.
    #[must_use]
    pub fn new(slot: Arc<Slot>, mem: Arc<Mem>, tap: File) -> Self {
        let limits = [Limiter::new(Rate::default()), Limiter::new(Rate::default())];
        Self { slot, mem, tap, packet: vec![0; MAX_PACKET], waiting: 0, epoch: 0, limits }
    }

    /// With these limits.
    #[must_use]
    pub fn limited(self, receive: Rate, send: Rate) -> Self {
        Self { limits: [Limiter::new(receive), Limiter::new(send)], ..self }
    }

    /// Moves packets, forever.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn work(mut self) -> io::Result<()> {
        let mut epoll = Epoll::new()?;
        self.watch(&epoll, 0)?;
        let (mut events, mut until) = (Vec::new(), None);
        loop {
            epoll.wait_until(until, &mut events)?;
            events.clear();
            until = loop {
                match self.serve() {
                    Turn::More => {}
                    Turn::Done => break None,
                    Turn::Blocked(until) => break Some(until),
                }
            };
        }
    }

    /// Has the set tell of everything that [`Net::serve`] is to be called for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        for event in [&self.slot.changed, &self.slot.kicks[RX], &self.slot.kicks[TX]] {
            epoll.add(event, token, EventFlags::IN | EventFlags::ET)?;
        }
        // Told once for each change, so that a guest without buffers leaves us asleep.
        epoll.add(&self.tap, token, EventFlags::IN | EventFlags::ET)
    }

    /// Has the set tell of it once more, when others are to have their turn in between.
    pub fn again(&self) {
        let _ = self.slot.changed.write(1);
    }

    /// A turn of both directions.
    pub fn serve(&mut self) -> Turn {
        let slot = self.slot.clone();
        let mem = self.mem.clone();
        let mut active = slot.active();
        let Some(active) = active.as_mut() else { return Turn::Done };
        if active.epoch != self.epoch {
            self.epoch = active.epoch;
            self.waiting = 0;
            self.set_offloads(active.features);
        }
        let merge = active.features & F_MERGE_BUFFERS != 0;
        let [rx, tx] = active.queues.as_mut_slice() else { return Turn::Done };
        let sent = self.transmit(tx, &mem);
        let received = self.receive(rx, &mem, merge);
        match (sent, received) {
            (Turn::More, _) | (_, Turn::More) => Turn::More,
            (Turn::Blocked(a), Turn::Blocked(b)) => Turn::Blocked(a.min(b)),
            (Turn::Blocked(until), Turn::Done) | (Turn::Done, Turn::Blocked(until)) => Turn::Blocked(until),
            (Turn::Done, Turn::Done) => Turn::Done,
        }
    }

    fn set_offloads(&self, features: u64) {
        let mut offloads = 0;
        for (feature, offload) in [(F_GUEST_CSUM, TUN_F_CSUM), (F_GUEST_TSO4, TUN_F_TSO4), (F_GUEST_TSO6, TUN_F_TSO6)] {
            if features & feature != 0 {
                offloads |= offload;
            }
        }
        // SAFETY: this ioctl takes a number, the descriptor is open.
        unsafe { libc::ioctl(self.tap.as_raw_fd(), TUNSETOFFLOAD, offloads) };
    }

    /// Guest to tap.
    fn transmit(&mut self, queue: &mut Queue, mem: &Mem) -> Turn {
        let (mut count, mut idle) = (0, 0);
        let turn = loop {
            let _ = queue.disable_notification(mem);
            let before = count;
            let mut blocked = None;
            while count < BATCH {
                blocked = self.limits[TX].blocked_until();
                if blocked.is_some() {
                    break;
                }
                let Some(chain) = queue.pop_descriptor_chain(mem) else { break };
                count += 1;
                let head = chain.head_index();
                if let Ok(chain) = Chain::collect(chain, mem, MAX_PACKET) {
                    let iovecs = chain.readable.iovecs(usize::MAX);
                    self.limits[TX].done(chain.readable.len().saturating_sub(HEADER) as u64);
                    // SAFETY: each iovec is a checked slice of guest memory that stays mapped while `chain` borrows it. What the
                    // tap cannot take is lost, as on any wire.
                    unsafe {
                        libc::writev(self.tap.as_raw_fd(), iovecs.as_ptr(), iovecs.len().min(1024) as libc::c_int)
                    };
                }
                if queue.add_used(mem, head, 0).is_err() {
                    return Turn::Done;
                }
            }
            if let Some(until) = blocked {
                break Turn::Blocked(until);
            }
            if count >= BATCH {
                break Turn::More;
            }
            if !look_again(queue, mem, count > before, &mut idle) {
                break Turn::Done;
            }
        };
        if count > 0 {
            notify(&self.slot, queue, mem);
        }
        turn
    }

    /// Tap to guest.
    fn receive(&mut self, queue: &mut Queue, mem: &Mem, merge: bool) -> Turn {
        let (mut count, mut idle) = (0, 0);
        let _ = queue.disable_notification(mem);
        let mut turn = Turn::More;
        while count < BATCH {
            if let Some(until) = self.limits[RX].blocked_until() {
                turn = Turn::Blocked(until);
                break;
            }
            if self.waiting == 0 {
                match self.tap.read(&mut self.packet) {
                    Ok(len) => self.waiting = len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => {
                        turn = Turn::Done;
                        break;
                    }
                }
            }
            if !deliver(queue, mem, &self.packet[..self.waiting], merge) {
                // No room: the driver's next doorbell wakes us.
                if !look_again(queue, mem, false, &mut idle) {
                    turn = Turn::Done;
                    break;
                }
                continue;
            }
            self.limits[RX].done(self.waiting.saturating_sub(HEADER) as u64);
            idle = 0;
            self.waiting = 0;
            count += 1;
        }
        if count > 0 {
            notify(&self.slot, queue, mem);
        }
        turn
    }
}

/// How a turn of the device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do.
    More,
    /// An event brings more.
    Done,
    /// There is more, which may be done then.
    Blocked(Instant),
}

/// Puts a packet into buffers; false, and nothing is used, when there are not enough. A packet that can never fit is dropped.
fn deliver(queue: &mut Queue, mem: &Mem, packet: &[u8], merge: bool) -> bool {
    let first = queue.next_avail();
    let mut used: Vec<(u16, usize)> = Vec::new();
    let mut done = 0;
    let mut count_at = None;
    while done < packet.len() || used.is_empty() {
        let Some(chain) = queue.pop_descriptor_chain(mem) else {
            queue.set_next_avail(first);
            return false;
        };
        let head = chain.head_index();
        if used.is_empty() {
            // Where the header's count of buffers goes, when the first buffer is in one piece there.
            count_at = chain.clone().next().filter(|d| d.len() as usize >= HEADER).map(|d| d.addr());
        }
        let len =
            Chain::collect(chain, mem, 4 * MAX_PACKET).map_or(0, |mut chain| chain.writable.write(&packet[done..]));
        used.push((head, len));
        done += len;
        if len == 0 || !merge || used.len() > usize::from(QUEUE_SIZE) {
            break;
        }
    }
    if let Some(count_at) = count_at.and_then(|at| vm_memory::Address::checked_add(&at, 10)) {
        let _ = mem.write_obj((used.len() as u16).to_le(), count_at);
    }
    for (head, len) in used {
        let _ = queue.add_used(mem, head, len as u32);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::chain::testing::queue_of;
    use vm_memory::GuestAddress;

    #[test]
    fn a_packet_spreads_over_buffers_and_says_over_how_many() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let mut queue = queue_of(&mem, &[&[(0x10000, 100, true)], &[(0x20000, 100, true)], &[(0x30000, 100, true)]]);
        let packet: Vec<u8> = (0..150).collect();
        assert!(deliver(&mut queue, &mem, &packet, true));
        assert_eq!(mem.read_obj::<u16>(GuestAddress(0x1000a)).unwrap(), 2);
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0x20000)).unwrap(), 100);
        assert_eq!((queue.next_avail(), queue.next_used()), (2, 2));
        assert!(!deliver(&mut queue, &mem, &packet, true));
        assert_eq!((queue.next_avail(), queue.next_used()), (2, 2));
    }

    #[test]
    fn a_buffer_that_is_none_costs_the_packet_and_not_the_device() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let mut queue = queue_of(&mem, &[&[(u64::MAX, 100, true)], &[(0x20000, 2000, true)]]);
        assert!(deliver(&mut queue, &mem, &[1; 60], true));
        assert!(deliver(&mut queue, &mem, &[1; 60], true));
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0x20000 + 59)).unwrap(), 1);
    }

    #[test]
    fn mac_addresses_are_read_strictly() {
        assert_eq!(parse_mac("02:00:0a:ff:00:01").unwrap(), [2, 0, 10, 255, 0, 1]);
        for bad in
            ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "2:0:a:f:0:1", "02-00-0a-ff-00-01", "0g:00:0a:ff:00:01"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
