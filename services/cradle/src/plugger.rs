//! Makes devices of empty slots while the guest runs, and empties them again.
//!
//! On the main thread; the backends are the worker's. A device's descriptor is given, nothing is opened. The last slot is the
//! balloon's: it is filled when the agent answers, so that the start does not wait for it.

use crate::bus::{Bus, MMIO_BASE, MMIO_WINDOW};
use crate::memory::Mem;
use crate::run::line_of;
use crate::slots::SpareSlot;
use crate::virtio::balloon::{self, Balloon};
use crate::virtio::block::{self, Block, extents::Extents};
use crate::virtio::mmio::{MmioDevice, QUEUE_NOTIFY};
use crate::virtio::net::{self, Net};
use crate::virtio::{Identity, Slot};
use crate::vm::Vm;
use crate::worker::{Backend, Orders};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use zone::control::Plug;

const NAME: &str = "virtio-mmio.";

/// The machine, as far as devices need it.
pub struct Plugger {
    /// KVM's side of it.
    pub vm: Vm,
    /// Its memory.
    pub mem: Arc<Mem>,
    /// Its bus.
    pub bus: Arc<Bus>,
    /// Who serves what is plugged.
    pub orders: Arc<Orders>,
    /// What can be unplugged, by window.
    pub plugged: BTreeMap<usize, Arc<Slot>>,
}

impl Plugger {
    /// How many slots can be filled.
    pub fn empty_slots(&self) -> usize {
        self.for_plugging().filter(|slot| self.is_empty(*slot)).count()
    }

    /// All but the last.
    fn for_plugging(&self) -> std::ops::Range<usize> {
        0..self.bus.spare.len().saturating_sub(1)
    }

    fn is_empty(&self, slot: usize) -> bool {
        self.bus.spare.get(slot).is_some_and(SpareSlot::is_empty)
    }

    /// Has the last slot be the balloon; the agent binds it when its guest has time.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn plug_balloon(&self) -> Result<()> {
        let Some(last) = self.bus.spare.len().checked_sub(1).filter(|last| self.is_empty(*last)) else {
            return Ok(());
        };
        let identity = balloon::identity();
        let slot = self.wire(self.bus.devices.len() + last, &identity)?;
        let backend = Backend::Balloon(Balloon::new(slot.clone(), self.mem.clone()));
        self.fill(last, identity, slot, backend);
        Ok(())
    }

    /// Plugs a device that has this descriptor; gives its name in the guest.
    ///
    /// # Errors
    /// When no slot is empty, or the descriptor is no such device.
    pub fn plug(&mut self, plug: Plug, file: File) -> Result<String> {
        let spare = self.for_plugging().find(|slot| self.is_empty(*slot)).context("no slot is empty")?;
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
        self.plugged.insert(window, slot.clone());
        self.fill(spare, identity, slot, backend);
        Ok(format!("{NAME}{window}"))
    }

    fn fill(&self, spare: usize, identity: Identity, slot: Arc<Slot>, backend: Backend) {
        self.orders.take(self.bus.devices.len() + spare, backend);
        let device = MmioDevice::new(identity, slot, self.mem.clone());
        self.bus.spare.get(spare).and_then(|place| place.set(Some(device)));
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

    /// Empties a slot, whatever the guest thinks of it.
    ///
    /// # Errors
    /// When nothing has been plugged there.
    pub fn unplug(&mut self, device: &str) -> Result<()> {
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
        Ok(())
    }
}

fn doorbell(window: usize) -> u64 {
    MMIO_BASE + window as u64 * MMIO_WINDOW + QUEUE_NOTIFY
}
