//! A container's live output: the last megabyte, and those who read along.
//!
//! A reader that is slow makes the container wait, as Docker does, so that it loses nothing; one that has taken
//! nothing for [`STALL_LIMIT`] while the ring is full is cut off, so that a forgotten terminal does not stop a
//! container for ever. What it missed is in the log.

use crate::platform::Stream as Connection;
use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zone::log::Stream;

/// How much is kept.
const CAPACITY: usize = 1 << 20;
/// How long a reader may take nothing.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// The output of one container.
#[derive(Debug, Default)]
pub struct Output {
    ring: Mutex<Ring>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Ring {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// The place of the oldest piece; places count from 0.
    first: u64,
    closed: bool,
    readers: BTreeMap<u64, Cursor>,
    next_reader: u64,
}

#[derive(Clone, Debug)]
struct Piece {
    record: u64,
    stream: Stream,
    bytes: Arc<[u8]>,
}

#[derive(Debug)]
struct Cursor {
    place: u64,
    busy_since: Option<Instant>,
    connection: Arc<Connection>,
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    fn slowest(&self) -> Option<u64> {
        self.readers.iter().filter(|(_, c)| c.place <= self.first).map(|(id, _)| *id).next()
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what record `record` holds; waits for slow readers when the ring is full.
    pub fn push(&self, record: u64, stream: Stream, bytes: &[u8]) {
        let mut ring = self.lock();
        while ring.bytes + bytes.len() > CAPACITY && !ring.pieces.is_empty() {
            ring = self.make_room(ring);
        }
        ring.bytes += bytes.len();
        ring.pieces.push_back(Piece { record, stream, bytes: bytes.into() });
        drop(ring);
        self.changed.notify_all();
    }

    fn make_room<'a>(&self, mut ring: MutexGuard<'a, Ring>) -> MutexGuard<'a, Ring> {
        let Some(id) = ring.slowest() else {
            if let Some(piece) = ring.pieces.pop_front() {
                ring.bytes -= piece.bytes.len();
                ring.first += 1;
            }
            return ring;
        };
        let busy = ring.readers.get(&id).and_then(|c| c.busy_since).map_or(Duration::ZERO, |since| since.elapsed());
        if busy >= STALL_LIMIT {
            if let Some(cursor) = ring.readers.remove(&id) {
                cursor.connection.shutdown(Shutdown::Both);
            }
            return ring;
        }
        let (ring, _) = self.changed.wait_timeout(ring, STALL_LIMIT - busy).unwrap_or_else(PoisonError::into_inner);
        ring
    }

    /// Says that nothing more comes.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Reads along from now on, or from record `resume` on as far as it is held. `connection` is cut off when it stalls.
    pub fn reader(self: &Arc<Self>, resume: Option<u64>, connection: Arc<Connection>) -> Reader {
        let mut ring = self.lock();
        let held = |from: u64| ring.pieces.iter().position(|p| p.record >= from).map(|i| ring.first + i as u64);
        let place = resume.and_then(held).unwrap_or_else(|| ring.end());
        let id = ring.next_reader;
        ring.next_reader += 1;
        ring.readers.insert(id, Cursor { place, busy_since: None, connection });
        drop(ring);
        Reader { output: Arc::clone(self), id }
    }
}

/// Someone who reads along.
#[derive(Debug)]
pub struct Reader {
    output: Arc<Output>,
    id: u64,
}

impl Reader {
    /// The next piece; waits for it. None at the end, or when this reader was cut off.
    pub fn next(&self) -> Option<(Stream, Arc<[u8]>)> {
        let mut ring = self.output.lock();
        ring.readers.get_mut(&self.id)?.busy_since = None;
        loop {
            let (first, closed) = (ring.first, ring.closed);
            let place = ring.readers.get(&self.id)?.place;
            let index = usize::try_from(place.saturating_sub(first)).ok()?;
            if let Some(piece) = ring.pieces.get(index).cloned() {
                let cursor = ring.readers.get_mut(&self.id)?;
                cursor.place = place + 1;
                cursor.busy_since = Some(Instant::now());
                drop(ring);
                self.output.changed.notify_all();
                return Some((piece.stream, piece.bytes));
            }
            if closed {
                return None;
            }
            ring = self.output.changed.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.output.lock().readers.remove(&self.id);
        self.output.changed.notify_all();
    }
}

/// A piece in Docker's framing: one byte for the stream, three zeroes, the length.
pub fn frame(stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let kind = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    let mut framed = Vec::with_capacity(bytes.len() + 8);
    framed.extend([kind, 0, 0, 0]);
    framed.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(bytes);
    framed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Arc<Connection> {
        let (one, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Arc::new(Connection(one.into()))
    }

    #[test]
    fn a_reader_sees_what_comes_later_and_the_end() {
        let output = Arc::new(Output::default());
        output.push(0, Stream::Stdout, b"before");
        let reader = output.reader(None, connection());
        output.push(1, Stream::Stderr, b"after");
        output.close();
        assert_eq!(reader.next().map(|(s, b)| (s, b.to_vec())), Some((Stream::Stderr, b"after".to_vec())));
        assert_eq!(reader.next(), None);
    }

    #[test]
    fn a_reader_resumes_at_a_record_or_at_the_oldest_held() {
        let output = Arc::new(Output::default());
        for record in [3, 5, 9] {
            output.push(record, Stream::Stdout, record.to_string().as_bytes());
        }
        for (resume, first) in [(0, b"3"), (4, b"5"), (9, b"9")] {
            assert_eq!(&*output.reader(Some(resume), connection()).next().unwrap().1, first);
        }
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let output = Arc::new(Output::default());
        let reader = output.reader(None, connection());
        let writer = Arc::clone(&output);
        let thread = std::thread::spawn(move || {
            for record in 0..1000 {
                writer.push(record, Stream::Stdout, &[u8::try_from(record % 251).unwrap(); 16 * 1024]);
            }
            writer.close();
        });
        let mut count = 0u64;
        while let Some((_, bytes)) = reader.next() {
            assert_eq!(u64::from(bytes[0]), count % 251);
            count += 1;
        }
        assert_eq!(count, 1000);
        thread.join().unwrap();
    }

    #[test]
    fn without_readers_only_the_last_megabyte_is_held() {
        let output = Arc::new(Output::default());
        for record in 0..200 {
            output.push(record, Stream::Stdout, &[0; 16 * 1024]);
        }
        assert_eq!(output.lock().pieces.len(), 64);
        assert_eq!(output.lock().pieces.front().unwrap().record, 136);
    }
}
