//! A descriptor chain: whatever is taken from it is within memory, within its bounds, and each byte once.

use super::guest::{Guest, memory};
use crate::input::Input;
use cradle::virtio::Identity;
use cradle::virtio::chain::{Buffers, Chain};

fn uses_up(mut buffers: Buffers<'_>, input: &mut Input<'_>) {
    for _ in 0..8 {
        let (before, count) = (buffers.len(), usize::from(input.word()));
        let iovecs: usize = buffers.iovecs(count).iter().map(|iovec| iovec.iov_len).sum();
        assert_eq!(iovecs, before.min(count));
        let taken = match input.byte() % 5 {
            0 => buffers.split(count).len(),
            1 => buffers.split_end(count).map_or(0, |end| end.len()),
            2 => buffers.read(&mut vec![0; count]),
            3 => buffers.write(&vec![7; count]),
            _ => {
                let done = buffers.read_exact(&mut vec![0; count]).is_ok();
                assert_eq!(done, before >= count);
                if done { count } else { 0 }
            }
        };
        assert!(taken <= count && buffers.len() == before - taken, "{before} bytes, {taken} of {count} taken");
    }
    buffers.zero();
}

/// Takes chains of any shape apart.
pub fn run(data: &[u8]) {
    use virtio_queue::QueueT as _;
    let mut input = Input::new(data);
    let most = usize::from(input.word()) * 64;
    let identity = Identity {
        kind: 4,
        features: u64::MAX,
        queues: vec![8],
        doorbells: 1,
        config: Vec::new(),
        interrupts_elsewhere: false,
    };
    let mut guest = Guest::new(identity, memory());
    let (slot, mem) = (guest.slot.clone(), guest.mem.clone());
    guest.play(&mut input, |input| {
        let mut active = slot.active();
        let Some(queue) = active.as_mut().and_then(|active| active.queues.first_mut()) else { return };
        while let Some(chain) = queue.pop_descriptor_chain(&*mem) {
            let head = chain.head_index();
            if let Ok(chain) = Chain::collect(chain, &mem, most) {
                assert!(chain.readable.len() + chain.writable.len() <= most);
                uses_up(chain.readable, input);
                uses_up(chain.writable, input);
            }
            if queue.add_used(&*mem, head, 0).is_err() {
                break;
            }
        }
    });
}
