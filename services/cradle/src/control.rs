//! The control socket: devices that are plugged and unplugged while the guest runs ([`zone::control`]).
//!
//! Runs on the main thread. Who can connect is the host's; the guest never speaks here. A device's descriptor comes with the
//! request, so nothing is opened.

use crate::bus::{Bus, MMIO_BASE, MMIO_WINDOW};
use crate::epoll::{Epoll, EventFlags};
use crate::memory::Mem;
use crate::run::line_of;
use crate::slots::SpareSlot;
use crate::virtio::block::{self, Block, extents::Extents};
use crate::virtio::mmio::{MmioDevice, QUEUE_NOTIFY};
use crate::virtio::net::{self, Net};
use crate::virtio::{Identity, Slot};
use crate::vm::Vm;
use crate::worker::{Backend, Orders};
use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with, recvmsg, send,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use zone::control::{MAX_PACKET, Plug, Reply, Request};

/// More clients wait for their turn.
const MAX_CLIENTS: usize = 8;
/// A packet brings at most this many descriptors; others are closed by the kernel.
const MAX_DESCRIPTORS: usize = 4;
const NAME: &str = "virtio-mmio.";

/// The socket, and what is plugged.
pub struct Control {
    listener: OwnedFd,
    clients: BTreeMap<u64, OwnedFd>,
    first_token: u64,
    vm: Vm,
    mem: Arc<Mem>,
    bus: Arc<Bus>,
    orders: Arc<Orders>,
    /// By window.
    plugged: BTreeMap<usize, Arc<Slot>>,
}

impl Control {
    /// Has `epoll` tell of clients with `first_token`, and of their requests with the [`Control::TOKENS`] that follow it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(
        listener: OwnedFd,
        first_token: u64,
        epoll: &Epoll,
        (vm, mem, bus): (Vm, Arc<Mem>, Arc<Bus>),
        orders: Arc<Orders>,
    ) -> Result<Self> {
        epoll.add(&listener, first_token, EventFlags::IN).context("cannot watch the control socket")?;
        let (clients, plugged) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { listener, clients, first_token, vm, mem, bus, orders, plugged })
    }

    /// How many tokens are its own.
    pub const TOKENS: u64 = 1 + MAX_CLIENTS as u64;

    /// Something happened to what has this token.
    pub fn event(&mut self, token: u64, epoll: &Epoll) {
        if token == self.first_token {
            self.accept(epoll);
            return;
        }
        let Some(client) = self.clients.get(&token) else { return };
        let answer = match receive(client) {
            Ok(None) => None,
            Ok(Some((request, descriptors))) => Some(self.perform(request, descriptors)),
            Err(error) => Some(Err(error)),
        };
        let Some(answer) = answer else {
            self.clients.remove(&token);
            return;
        };
        let reply = answer.unwrap_or_else(|error| Reply::Error { message: format!("{error:#}") });
        let sent = serde_json::to_vec(&reply).ok().and_then(|bytes| {
            let client = self.clients.get(&token)?;
            send(client, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).ok()
        });
        if sent.is_none() {
            self.clients.remove(&token);
        }
    }

    fn accept(&mut self, epoll: &Epoll) {
        let Ok(client) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else { return };
        let free = (self.first_token + 1..self.first_token + Self::TOKENS).find(|t| !self.clients.contains_key(t));
        // One too many is closed again, and sees it.
        if let Some(token) = free
            && epoll.add(&client, token, EventFlags::IN).is_ok()
        {
            self.clients.insert(token, client);
        }
    }

    fn perform(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply> {
        match request {
            Request::State {} => {
                Ok(Reply::State { empty_slots: self.bus.spare.iter().filter(|slot| slot.is_empty()).count() })
            }
            Request::Plug(plug) => {
                let mut descriptors = descriptors.into_iter();
                let (Some(descriptor), None) = (descriptors.next(), descriptors.next()) else {
                    bail!("a device comes with one descriptor");
                };
                self.plug(plug, descriptor.into())
            }
            Request::Unplug { device } => self.unplug(&device),
        }
    }

    fn plug(&mut self, plug: Plug, file: File) -> Result<Reply> {
        let spare = self.bus.spare.iter().position(SpareSlot::is_empty).context("no slot is empty")?;
        let window = self.bus.devices.len() + spare;
        let (identity, slot, backend) = match plug {
            Plug::Net { tap, mac } => {
                let identity = net::identity(net::parse_mac(&mac)?);
                rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::NONBLOCK).context("cannot set up the tap")?;
                let tap = if tap.is_empty() {
                    net::set_header(&file).context("the descriptor is no tap with virtio headers")?;
                    file
                } else {
                    net::attach(file, &tap)?
                };
                let slot = self.wire(window, &identity)?;
                (identity, slot.clone(), Backend::Net(Net::new(slot, self.mem.clone(), tap)))
            }
            Plug::Disk { read_only } => {
                let mut disk = Extents::new(read_only);
                disk.push(file, 0, 0).context("the descriptor is no disk")?;
                let identity = block::identity(&disk);
                let slot = self.wire(window, &identity)?;
                (identity, slot.clone(), Backend::Disk(Block::new(slot, self.mem.clone(), disk)))
            }
        };
        self.orders.take(window, backend);
        let device = MmioDevice::new(identity, slot.clone(), self.mem.clone());
        self.bus.spare.get(spare).and_then(|place| place.set(Some(device)));
        self.plugged.insert(window, slot);
        Ok(Reply::Plugged { device: format!("{NAME}{window}") })
    }

    /// Interrupt line and doorbells.
    fn wire(&self, window: usize, identity: &Identity) -> Result<Arc<Slot>> {
        let slot = Slot::new(identity.queues.len(), self.vm.line(line_of(window))?);
        let slot = slot.context("cannot make event descriptors")?;
        for (queue, kick) in slot.kicks.iter().take(identity.doorbells).enumerate() {
            self.vm.doorbell(kick, doorbell(window), queue as u32)?;
        }
        Ok(slot)
    }

    fn unplug(&mut self, device: &str) -> Result<Reply> {
        let window = device.strip_prefix(NAME).and_then(|number| number.parse().ok());
        let slot = window.and_then(|window: usize| Some((window, self.plugged.remove(&window)?)));
        let (window, slot) = slot.with_context(|| format!("no device {device:?} has been plugged"))?;
        for (queue, kick) in slot.kicks.iter().enumerate() {
            self.vm.no_doorbell(kick, doorbell(window), queue as u32);
        }
        self.vm.no_line(slot.line(), line_of(window));
        // A guest that still has the driver bound finds nothing there.
        slot.active().take();
        self.bus.spare.get(window - self.bus.devices.len()).and_then(|place| place.set(None));
        self.orders.leave(window);
        Ok(Reply::Unplugged {})
    }
}

fn doorbell(window: usize) -> u64 {
    MMIO_BASE + window as u64 * MMIO_WINDOW + QUEUE_NOTIFY
}

/// The next request of a client, none when it has left.
fn receive(client: &impl AsFd) -> Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; MAX_PACKET];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    // One that fails has gone in between.
    let Ok(message) = recvmsg(client, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) else {
        return Ok(None);
    };
    let descriptors = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        bail!("a request has at most {MAX_PACKET} bytes");
    }
    let request = serde_json::from_slice(&bytes[..message.bytes]).context("this is no request")?;
    Ok(Some((request, descriptors)))
}
