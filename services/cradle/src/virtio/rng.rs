//! virtio-rng: random bytes from the host's kernel.

use super::chain::Chain;
use super::{F_EVENT_IDX, Identity, Slot, look_again, notify};
use crate::memory::Mem;
use std::sync::Arc;
use virtio_queue::QueueT as _;

const KIND: u32 = 4;
const QUEUE_SIZE: u16 = 8;
/// The most bytes given at once; a driver asks again.
const MAX_BYTES: usize = 4096;
const MAX_CHAIN: usize = 1 << 20;

/// What the transport shows.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        kind: KIND,
        features: F_EVENT_IDX,
        queues: vec![QUEUE_SIZE],
        doorbells: 1,
        config: Vec::new(),
        interrupts_elsewhere: false,
    }
}

/// The backend.
pub struct Rng {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
}

impl Rng {
    /// For this slot.
    #[must_use]
    pub fn new(slot: Arc<Slot>, mem: Arc<Mem>) -> Self {
        Self { slot, mem }
    }

    /// Answers what the guest has asked for.
    pub fn serve(&self) {
        let mut active = self.slot.active();
        let Some(queue) = active.as_mut().and_then(|a| a.queues.first_mut()) else { return };
        let mem = &*self.mem;
        let mut idle = 0;
        loop {
            let _ = queue.disable_notification(mem);
            let mut took = false;
            while let Some(chain) = queue.pop_descriptor_chain(mem) {
                took = true;
                let head = chain.head_index();
                let len = Chain::collect(chain, mem, MAX_CHAIN).map_or(0, |mut chain| {
                    let mut bytes = vec![0u8; chain.writable.len().min(MAX_BYTES)];
                    let got =
                        rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
                    chain.writable.write(&bytes[..got])
                });
                if queue.add_used(mem, head, len as u32).is_err() {
                    return;
                }
            }
            if !look_again(queue, mem, took, &mut idle) {
                break;
            }
        }
        notify(&self.slot, queue, mem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Active;
    use crate::virtio::chain::testing::queue_of;
    use vm_memory::{Bytes as _, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn it_fills_what_it_is_given_up_to_its_bound_and_gives_every_chain_back() {
        let mem = Arc::new(crate::memory::create(32 << 20, false).unwrap());
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let slot = Slot::new(1, line.try_clone().unwrap()).unwrap();
        let queue = queue_of(&mem, &[&[(0x10000, 64, true)], &[(0x20000, 9000, true)], &[(u64::MAX, 4, true)]]);
        *slot.active() = Some(Active { queues: vec![queue], features: 0, epoch: 1 });
        Rng::new(slot.clone(), mem.clone()).serve();
        let mut bytes = [0; 64];
        mem.read_slice(&mut bytes, GuestAddress(0x10000)).unwrap();
        assert_ne!(bytes, [0; 64]);
        let mut after = [1; 4];
        mem.read_slice(&mut after, GuestAddress(0x20000 + 4096)).unwrap();
        assert_eq!(after, [0; 4]);
        assert_eq!(slot.active().as_ref().unwrap().queues[0].next_used(), 3);
        assert_eq!(line.read().unwrap(), 1);
    }
}
