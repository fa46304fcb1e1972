//! The thread that serves all disks, and what is plugged while the guest runs.
//!
//! Waiting for one disk's host keeps the others waiting; a container's disks have the same host mostly.

use crate::epoll::{Epoll, EventFlags};
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::net::{Net, Turn};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

const TOKEN_ORDERS: u64 = u64::MAX;

/// A device's backend.
pub enum Backend {
    /// A disk.
    Disk(Block),
    /// An interface that came late.
    Net(Net),
    /// What takes back memory.
    Balloon(Balloon),
}

impl Backend {
    fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        match self {
            Self::Disk(disk) => disk.watch(epoll, token),
            Self::Net(net) => net.watch(epoll, token),
            Self::Balloon(balloon) => balloon.watch(epoll, token),
        }
    }

    /// Does what there is to do; gives when it wants to go on, if it may not now.
    fn serve(&mut self) -> Option<Instant> {
        match self {
            Self::Disk(disk) => disk.serve(),
            Self::Balloon(balloon) => {
                balloon.serve();
                None
            }
            // A batch at a time: the disks come in between.
            Self::Net(net) => match net.serve() {
                Turn::More => {
                    net.again();
                    None
                }
                Turn::Done => None,
                Turn::Blocked(until) => Some(until),
            },
        }
    }
}

/// What the main thread wants of the worker. Windows on the bus are the numbers.
enum Order {
    Take(u64, Box<Backend>),
    Drop(u64),
}

/// The worker's letter box.
pub struct Orders {
    waiting: Mutex<Vec<Order>>,
    event: EventFd,
}

impl Orders {
    /// An empty one.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { waiting: Mutex::default(), event }))
    }

    /// Serve this from now on, for this window.
    pub fn take(&self, window: usize, backend: Backend) {
        self.send(Order::Take(window as u64, Box::new(backend)));
    }

    /// Serve the window's device no more.
    pub fn leave(&self, window: usize) {
        self.send(Order::Drop(window as u64));
    }

    fn perform(&self, backends: &mut BTreeMap<u64, Backend>, epoll: &Epoll) -> io::Result<()> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for order in waiting {
            match order {
                Order::Take(window, backend) => {
                    backend.watch(epoll, window)?;
                    backends.insert(window, *backend);
                }
                Order::Drop(window) => drop(backends.remove(&window)),
            }
        }
        Ok(())
    }

    fn send(&self, order: Order) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        let _ = self.event.write(1);
    }
}

/// Serves the disks, whose places in the list are their tokens' complements, and what is ordered; forever.
///
/// # Errors
/// When the process has no more descriptors.
pub fn work(disks: Vec<Block>, orders: &Orders) -> io::Result<()> {
    let mut epoll = Epoll::new()?;
    let mut backends: BTreeMap<u64, Backend> = BTreeMap::new();
    // Windows are few: from the half on, tokens are the first disks'.
    let first = u64::MAX / 2;
    for (token, disk) in (first..).zip(disks) {
        disk.watch(&epoll, token)?;
        backends.insert(token, Backend::Disk(disk));
    }
    epoll.add(&orders.event, TOKEN_ORDERS, EventFlags::IN | EventFlags::ET)?;
    let mut events = Vec::new();
    // Who may not go on before when.
    let mut blocked: BTreeMap<u64, Instant> = BTreeMap::new();
    loop {
        epoll.wait_until(blocked.values().min().copied(), &mut events)?;
        if !blocked.is_empty() {
            let now = Instant::now();
            events
                .extend(blocked.iter().filter(|(_, until)| **until <= now).map(|(token, _)| (*token, EventFlags::IN)));
        }
        for (token, _) in events.drain(..) {
            if token == TOKEN_ORDERS {
                orders.perform(&mut backends, &epoll)?;
            } else if let Some(until) = backends.get_mut(&token).and_then(Backend::serve) {
                blocked.insert(token, until);
            } else if !blocked.is_empty() {
                blocked.remove(&token);
            }
        }
    }
}
