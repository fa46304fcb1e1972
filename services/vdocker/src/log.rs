//! The log stream to the host: numbers records and sends each at once.
//!
//! Owns: the connection to the host's log port. A stream that blocks makes its writer wait; nothing is dropped. When
//! the host is gone records are dropped: nobody is left to read them.

use crate::platform::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use zone::log::{Data, Record};

/// How long the host may take to write what it has got.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// The log stream.
#[derive(Debug)]
pub struct Log {
    run: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: Option<Stream>,
    next: u64,
}

impl Log {
    /// A log for one boot; without a stream, records are numbered and dropped.
    pub fn new(run: u32, stream: Option<Stream>) -> Self {
        Self { run, inner: Mutex::new(Inner { stream, next: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a record; waits while the stream is full. Returns the record's number.
    pub fn send(&self, container: &str, data: Data) -> u64 {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let record = Record { run: self.run, number, time_ns: now_ns(), container: container.to_owned(), data };
        if let Some(stream) = &inner.stream {
            let mut stream: &Stream = stream;
            if stream.write_all(&record.to_line()).is_err() {
                inner.stream = None;
            }
        }
        number
    }

    /// Says that no more comes, and waits until the host has closed its side: then everything is written.
    pub fn close(&self) {
        let Some(stream) = self.lock().stream.take() else { return };
        stream.shutdown(Shutdown::Write);
        let limit = Timespec { tv_sec: CLOSE_LIMIT.as_secs() as i64, tv_nsec: 0 };
        let mut byte = [0u8; 64];
        while matches!(poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&limit)), Ok(1..)) {
            if !matches!((&stream).read(&mut byte), Ok(1..)) {
                return;
            }
        }
    }
}

/// Nanoseconds since the Unix epoch.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
