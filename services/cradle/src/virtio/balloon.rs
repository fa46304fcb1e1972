//! virtio-balloon, for its free page reporting alone: the guest tells which memory it does not use, and the host gets it back
//! (virtio 1.2, section 5.5).
//!
//! The balloon itself is never inflated: its target stays 0. What a guest reports is lost to it until it touches it again, so a
//! guest that lies harms itself only.

use super::chain::{Buffers, Chain};
use super::{F_INDIRECT, Identity, Slot, look_again, notify};
use crate::epoll::{Epoll, EventFlags};
use crate::memory::Mem;
use std::io;
use std::sync::Arc;
use virtio_queue::QueueT as _;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

const KIND: u32 = 5;
const QUEUE_SIZE: u16 = 32;
const F_REPORTING: u64 = 1 << 5;
/// Behind the queues to inflate and deflate; queues of features that are not offered have no number.
const REPORTING: usize = 2;
const PAGE: usize = 4096;

/// What the transport shows.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        kind: KIND,
        features: F_REPORTING | F_INDIRECT,
        queues: vec![QUEUE_SIZE; 3],
        // Reports are rare: an exit each costs less than their doorbells.
        doorbells: 0,
        config: vec![0; 8],
        interrupts_elsewhere: false,
    }
}

/// The backend.
pub struct Balloon {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
}

impl Balloon {
    /// For this slot.
    #[must_use]
    pub fn new(slot: Arc<Slot>, mem: Arc<Mem>) -> Self {
        Self { slot, mem }
    }

    /// Has the set tell of everything that [`Balloon::serve`] is to be called for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        self.slot.kicks.iter().try_for_each(|kick| epoll.add(kick, token, EventFlags::IN | EventFlags::ET))
    }

    /// Takes what the guest gives; what it puts into the other queues goes back to it.
    pub fn serve(&self) {
        let mut active = self.slot.active();
        let Some(active) = active.as_mut() else { return };
        let mem = &*self.mem;
        for (index, queue) in active.queues.iter_mut().enumerate().filter(|(_, queue)| queue.ready()) {
            let (mut any, mut idle) = (false, 0);
            loop {
                let _ = queue.disable_notification(mem);
                let mut took = false;
                while let Some(chain) = queue.pop_descriptor_chain(mem) {
                    (any, took) = (true, true);
                    let head = chain.head_index();
                    if index == REPORTING
                        && let Ok(chain) = Chain::collect(chain, mem, usize::MAX / 2)
                    {
                        give_back(mem, &chain.writable);
                    }
                    if queue.add_used(mem, head, 0).is_err() {
                        return;
                    }
                }
                if !look_again(queue, mem, took, &mut idle) {
                    break;
                }
            }
            if any {
                notify(&self.slot, queue, mem);
            }
        }
    }
}

/// Whole pages only; the guest reads zeroes there afterwards.
fn give_back(mem: &Mem, free: &Buffers<'_>) {
    for piece in free.iovecs(usize::MAX) {
        let start = (piece.iov_base as usize).next_multiple_of(PAGE);
        let Some(len) = (piece.iov_base as usize + piece.iov_len).checked_sub(start).map(|len| len / PAGE * PAGE)
        else {
            continue;
        };
        if len == 0 {
            continue;
        }
        // Memory of a file is in the file even when nobody maps it.
        let advice = if mem.iter().any(|region| region.file_offset().is_some()) {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        // SAFETY: the range lies in a checked slice of guest memory, which stays mapped; only the guest and its devices use it, through
        // volatile accesses that cope with any content.
        unsafe { libc::madvise(start as *mut libc::c_void, len, advice) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Active;
    use crate::virtio::chain::testing::queue_of;
    use vm_memory::{Bytes as _, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    fn resident(mem: &Mem, at: u64, len: usize) -> usize {
        let start = mem.get_host_address(GuestAddress(at)).unwrap();
        let mut pages = vec![0u8; len / PAGE];
        // SAFETY: the range is mapped guest memory, and `pages` has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(start.cast(), len, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| *page & 1 != 0).count()
    }

    #[test]
    fn what_the_guest_reports_is_the_hosts_again_and_what_it_puts_elsewhere_is_not_touched() {
        for shared in [false, true] {
            let mem = Arc::new(crate::memory::create(32 << 20, shared).unwrap());
            let slot = Slot::new(3, EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
            let balloon = Balloon::new(slot.clone(), mem.clone());
            let (at, len) = (8 << 20, 4 << 20);
            for (number, left) in [(0, len / PAGE), (REPORTING, 1)] {
                mem.write_slice(&vec![7; len], GuestAddress(at)).unwrap();
                let mut queues: Vec<_> = (0..3).map(|_| virtio_queue::Queue::new(QUEUE_SIZE).unwrap()).collect();
                // Half a page at the start stays.
                queues[number] = queue_of(&mem, &[&[(at + 2048, len as u32 - 2048, true)], &[(u64::MAX, 4096, true)]]);
                *slot.active() = Some(Active { queues, features: F_REPORTING, epoch: 1 });
                balloon.serve();
                assert_eq!(slot.active().as_ref().unwrap().queues[number].next_used(), 2);
                assert_eq!(resident(&mem, at, len), left, "shared {shared}, queue {number}");
            }
            assert_eq!(mem.read_obj::<u8>(GuestAddress(at)).unwrap(), 7);
            assert_eq!(mem.read_obj::<u8>(GuestAddress(at + 4096)).unwrap(), 0);
        }
    }
}
