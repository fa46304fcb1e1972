//! virtio-vsock in user space (virtio 1.2, section 5.10): the guest's only way to talk with the host.
//!
//! ```text
//!  agent socket ──accept──> REQUEST to the guest's port 1      host port 2 <── log, to two files
//!                                                              host port 3 <── "ready", opens the agent socket
//! ```
//! [`packet`] is the wire, [`connection`] one connection's state and credit, [`log`] the files, [`device`] joins them to the
//! queues. Bytes are relayed and never looked at, but for the newlines of the log.

pub mod connection;
pub mod device;
pub mod log;
pub mod packet;

use super::{F_EVENT_IDX, Identity};

const KIND: u32 = 19;
const QUEUE_SIZE: u16 = 128;
/// The guest's address.
pub const GUEST_CID: u64 = 3;
/// Ours.
pub const HOST_CID: u64 = 2;

/// What the transport shows.
#[must_use]
pub fn identity() -> Identity {
    Identity {
        kind: KIND,
        features: F_EVENT_IDX,
        queues: vec![QUEUE_SIZE; 3],
        // Nothing is ever to be done for the queue of events.
        doorbells: 2,
        config: GUEST_CID.to_le_bytes().to_vec(),
        interrupts_elsewhere: false,
    }
}
