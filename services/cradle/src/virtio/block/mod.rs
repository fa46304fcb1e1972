//! virtio-blk: disks (virtio 1.2, section 5.2).
//!
//! [`extents`] is what a disk consists of, [`request`] what the guest may ask. All disks of a guest share one thread ([`crate::worker`]).

pub mod extents;
pub mod request;

use self::extents::Extents;
use self::request::Header;
use super::chain::Chain;
use super::{F_EVENT_IDX, F_INDIRECT, Identity, Slot, look_again, notify};
use crate::bucket::Limiter;
use crate::epoll::{Epoll, EventFlags};
use crate::memory::Mem;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::QueueT as _;
use zone::bundle::Rate;

const KIND: u32 = 2;
const QUEUE_SIZE: u16 = 128;
const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
/// The most data pieces of a request, told to the driver.
const MAX_SEGMENTS: u32 = 254;
/// The most sectors of one discard.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The most bytes of a request; the driver makes none that large.
const MAX_BYTES: usize = 8 << 20;

/// What the transport shows of a disk.
#[must_use]
pub fn identity(disk: &Extents) -> Identity {
    let mut config = vec![0u8; 60];
    config[..8].copy_from_slice(&disk.sectors().to_le_bytes());
    config[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
    let mut features = F_SEG_MAX | F_INDIRECT | F_EVENT_IDX;
    if disk.read_only() {
        features |= F_READ_ONLY;
    } else {
        features |= F_FLUSH | F_DISCARD | F_WRITE_ZEROES;
        for (at, value) in [(36, MAX_DISCARD_SECTORS), (40, 1), (44, 8), (48, MAX_DISCARD_SECTORS), (52, 1)] {
            config[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        config[56] = 1; // zeroes may be written by making a hole
    }
    Identity { kind: KIND, features, queues: vec![QUEUE_SIZE], doorbells: 1, config, interrupts_elsewhere: false }
}

/// One disk's backend.
pub struct Block {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
    disk: Extents,
    read: Limiter,
    write: Limiter,
}

impl Block {
    /// For this slot, without limits.
    #[must_use]
    pub fn new(slot: Arc<Slot>, mem: Arc<Mem>, disk: Extents) -> Self {
        Self { slot, mem, disk, read: Limiter::new(Rate::default()), write: Limiter::new(Rate::default()) }
    }

    /// With these limits.
    #[must_use]
    pub fn limited(self, read: Rate, write: Rate) -> Self {
        Self { read: Limiter::new(read), write: Limiter::new(write), ..self }
    }

    /// Has the set tell of everything that [`Block::serve`] is to be called for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        epoll.add(&self.slot.changed, token, EventFlags::IN | EventFlags::ET)?;
        epoll.add(&self.slot.kicks[0], token, EventFlags::IN | EventFlags::ET)
    }

    /// Does what the guest has asked for; gives when it wants to go on, if it may not now.
    pub fn serve(&mut self) -> Option<Instant> {
        let slot = self.slot.clone();
        let mem = self.mem.clone();
        let mem = &*mem;
        let mut active = slot.active();
        let queue = active.as_mut().and_then(|a| a.queues.first_mut())?;
        let mut idle = 0;
        loop {
            let _ = queue.disable_notification(mem);
            let mut took = false;
            loop {
                let before = queue.next_avail();
                let Some(chain) = queue.pop_descriptor_chain(mem) else { break };
                took = true;
                let head = chain.head_index();
                let mut len = 0;
                if let Ok(mut chain) = Chain::collect(chain, mem, MAX_BYTES) {
                    let header = Header::take(&mut chain);
                    let limiter = if header.is_ok_and(Header::reads) { &mut self.read } else { &mut self.write };
                    if let Some(until) = limiter.blocked_until() {
                        queue.set_next_avail(before);
                        return Some(until);
                    }
                    limiter.done((chain.readable.len() + chain.writable.len().saturating_sub(1)) as u64);
                    len = request::serve(&self.disk, header, chain);
                }
                if queue.add_used(mem, head, len).is_err() {
                    return None;
                }
                notify(&slot, queue, mem);
            }
            if !look_again(queue, mem, took, &mut idle) {
                return None;
            }
        }
    }
}
