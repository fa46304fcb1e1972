//! Waiting for descriptors: a thin epoll.
//!
//! Level-triggered unless the caller asks otherwise; a token is whatever the caller wants to see again.

use rustix::event::{Timespec, epoll};
use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

pub use rustix::event::epoll::EventFlags;

/// Nothing waits longer at once, so that the number fits everywhere.
const MAX_WAIT_MS: u128 = 3_600_000;

/// What is waited for.
pub struct Epoll {
    fd: OwnedFd,
    buffer: Vec<epoll::Event>,
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// When the process has no more descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(epoll::CreateFlags::CLOEXEC)?, buffer: Vec::with_capacity(32) })
    }

    /// Adds a descriptor. Closing its last copy removes it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, flags: EventFlags) -> io::Result<()> {
        // SAFETY: `fd` is borrowed across the call, so its owner keeps the descriptor open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        Ok(epoll::add(&self.fd, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits until something happens, however long it takes; what happened is appended to `out` as (token, flags).
    ///
    /// # Errors
    /// Never but for a broken set.
    pub fn wait(&mut self, out: &mut Vec<(u64, EventFlags)>) -> io::Result<()> {
        self.wait_until(None, out)
    }

    /// Waits until something happens or the time has come.
    ///
    /// # Errors
    /// Never but for a broken set.
    pub fn wait_until(&mut self, until: Option<Instant>, out: &mut Vec<(u64, EventFlags)>) -> io::Result<()> {
        loop {
            self.buffer.clear();
            // Rounded up: the kernel counts milliseconds, and too early would be a busy loop.
            let timeout = until.map(|until| {
                let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000).min(MAX_WAIT_MS);
                Timespec { tv_sec: (left / 1000) as i64, tv_nsec: (left % 1000) as i64 * 1_000_000 }
            });
            match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut self.buffer), timeout.as_ref()) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The struct is packed on x86: copy its fields out.
        out.extend(self.buffer.iter().map(|event| ({ event.data }.u64(), { event.flags })));
        Ok(())
    }
}
