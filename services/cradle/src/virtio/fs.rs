//! virtio-fs: a directory that another process serves (virtio 1.2, section 5.11; vhost-user protocol).
//!
//! The daemon reads and writes the queues itself, in shared guest memory; here is only the introduction: when the driver is
//! ready, the daemon gets the memory, the queues, doorbells and the interrupt line.

use super::{Active, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Identity, Slot};
use crate::memory::Mem;
use crate::say;
use anyhow::{Context, Result, bail};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT as _;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

const KIND: u32 = 26;
const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 256;
const MAX_TAG: usize = 36;
/// The daemon speaks of its protocol's features.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// The backend: the frontend's side of the daemon's socket.
pub struct Fs {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
    daemon: Frontend,
    tag: String,
    running: bool,
}

/// What the transport shows, and the conversation begun.
///
/// # Errors
/// When the tag cannot be one, or the daemon does not speak as it should.
pub fn connect(tag: &str, socket: UnixStream) -> Result<(Identity, Frontend)> {
    if tag.is_empty() || tag.len() > MAX_TAG {
        bail!("a share's tag has 1 to {MAX_TAG} bytes, {tag:?} does not");
    }
    let mut daemon = Frontend::from_stream(socket, QUEUES as u64);
    let what = || format!("the daemon of the share {tag} does not answer as a vhost-user daemon");
    daemon.set_owner().with_context(what)?;
    let offered = daemon.get_features().with_context(what)?;
    if offered & F_PROTOCOL_FEATURES != 0 {
        let known = daemon.get_protocol_features().with_context(what)?;
        daemon.set_protocol_features(known & VhostUserProtocolFeatures::REPLY_ACK).with_context(what)?;
    }
    let mut config = vec![0u8; MAX_TAG + 4];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    config[MAX_TAG] = 1; // one queue for requests, beside the one for what must not wait
    let identity = Identity {
        kind: KIND,
        features: offered & (F_VERSION_1 | F_INDIRECT | F_EVENT_IDX),
        queues: vec![QUEUE_SIZE; QUEUES],
        doorbells: QUEUES,
        config,
        interrupts_elsewhere: true,
    };
    Ok((identity, daemon))
}

impl Fs {
    /// For this slot.
    #[must_use]
    pub fn new(slot: Arc<Slot>, mem: Arc<Mem>, daemon: Frontend, tag: &str) -> Self {
        Self { slot, mem, daemon, tag: tag.to_owned(), running: false }
    }

    /// The slot it serves.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The driver has set the device up, or reset it.
    pub fn changed(&mut self) {
        let slot = self.slot.clone();
        let active = slot.active();
        let result = match active.as_ref() {
            Some(active) if !self.running => self.start(active),
            None if self.running => self.stop(),
            _ => Ok(()),
        };
        match result {
            Ok(()) => self.running = active.is_some(),
            Err(error) => say(&format!("the share {} does not work: {error:#}", self.tag)),
        }
    }

    fn start(&mut self, active: &Active) -> Result<()> {
        self.daemon.set_features(active.features | F_PROTOCOL_FEATURES).context("the daemon refuses the features")?;
        let mut regions = Vec::new();
        for region in self.mem.iter() {
            let (Some(file), Ok(host)) =
                (region.file_offset(), region.get_host_address(vm_memory::MemoryRegionAddress(0)))
            else {
                bail!("guest memory is not shared");
            };
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host as u64,
                mmap_offset: file.start(),
                mmap_handle: file.file().as_raw_fd(),
            });
        }
        self.daemon.set_mem_table(&regions).context("the daemon refuses the memory")?;
        for (index, queue) in active.queues.iter().enumerate() {
            if !queue.ready() {
                continue;
            }
            let host = |address| {
                let at = self.mem.get_host_address(vm_memory::GuestAddress(address));
                at.map(|pointer| pointer as u64).context("a queue lies outside of memory")
            };
            let data = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: host(queue.desc_table())?,
                used_ring_addr: host(queue.used_ring())?,
                avail_ring_addr: host(queue.avail_ring())?,
                log_addr: None,
            };
            self.daemon.set_vring_num(index, queue.size()).context("the daemon refuses a queue's size")?;
            self.daemon.set_vring_addr(index, &data).context("the daemon refuses a queue's address")?;
            self.daemon.set_vring_base(index, 0).context("the daemon refuses a queue's position")?;
            self.daemon.set_vring_call(index, self.slot.line()).context("the daemon refuses the interrupt")?;
            self.daemon.set_vring_kick(index, &self.slot.kicks[index]).context("the daemon refuses the doorbell")?;
            self.daemon.set_vring_enable(index, true).context("the daemon refuses to start a queue")?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        for index in 0..QUEUES {
            self.daemon.set_vring_enable(index, false).context("the daemon refuses to stop a queue")?;
            self.daemon.get_vring_base(index).context("the daemon refuses to stop a queue")?;
        }
        Ok(())
    }
}
