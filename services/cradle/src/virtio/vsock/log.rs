//! The guest's log on two files that take turns ([`zone::log`]).
//!
//! Bytes are appended as they come, whole records at a time, so that a turn falls between two. Writes go to the page cache and
//! are done when they return; nothing is synced.

use anyhow::{Context, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use zone::log::{Data, FileHeader, MAX_RECORD, Record};

/// A record of an end is shorter.
const TAIL: u64 = 64 * 1024;

/// The two files.
#[derive(Debug)]
pub struct LogFiles {
    files: [File; 2],
    max_bytes: u64,
    current: usize,
    number: u64,
    size: u64,
    partial: Vec<u8>,
}

impl LogFiles {
    /// Goes on with what the files hold.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn open(files: [File; 2], max_bytes: u64) -> Result<Self> {
        let numbers =
            [header(&files[0]).context("cannot read the log")?, header(&files[1]).context("cannot read the log")?];
        let current = usize::from(numbers[1] > numbers[0]);
        let mut log = Self { files, max_bytes, current, number: 0, size: 0, partial: Vec::new() };
        match numbers[current] {
            None => {
                log.current = 1;
                log.switch().context("cannot begin the log")?;
            }
            Some(number) => {
                log.number = number;
                log.size = log.files[current].metadata().context("cannot read the log")?.len();
                log.end_line().context("cannot write the log")?;
            }
        }
        Ok(log)
    }

    /// A line that was cut off gets its end, so that the next one has its beginning.
    fn end_line(&mut self) -> io::Result<()> {
        let mut last = [b'\n'];
        self.files[self.current].read_exact_at(&mut last, self.size.saturating_sub(1))?;
        if last != [b'\n'] { self.append(b"\n") } else { Ok(()) }
    }

    /// Appends bytes of the stream.
    ///
    /// # Errors
    /// When the host cannot write; the bytes may be lost.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(end) = bytes.iter().rposition(|b| *b == b'\n').map(|at| at + 1) else {
            self.partial.extend_from_slice(bytes);
            // No record is that long: whatever this is, it is not kept in memory.
            return if self.partial.len() > MAX_RECORD { self.flush_partial() } else { Ok(()) };
        };
        let mut records = std::mem::take(&mut self.partial);
        records.extend_from_slice(&bytes[..end]);
        self.partial.extend_from_slice(&bytes[end..]);
        let mut rest = &records[..];
        while !rest.is_empty() {
            let fits = self.whole_records(rest);
            if fits == 0 {
                self.switch()?;
                // A record larger than a file is written nonetheless.
                let one = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
                let fits = self.whole_records(rest).max(one);
                self.append(&rest[..fits])?;
                rest = &rest[fits..];
            } else {
                self.append(&rest[..fits])?;
                rest = &rest[fits..];
            }
        }
        Ok(())
    }

    /// How many bytes of whole records still fit.
    fn whole_records(&self, records: &[u8]) -> usize {
        let room = usize::try_from(self.max_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if records.len() <= room {
            return records.len();
        }
        records[..room].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1)
    }

    fn flush_partial(&mut self) -> io::Result<()> {
        let partial = std::mem::take(&mut self.partial);
        // A stream without an end of line must not grow the file for ever.
        if self.size + partial.len() as u64 > self.max_bytes {
            self.switch()?;
        }
        self.append(&partial)
    }

    /// The stream has ended: what there is of a record is written too.
    ///
    /// # Errors
    /// When the host cannot write.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        self.partial.push(b'\n');
        self.flush_partial()
    }

    /// The status in the newest record, if it says that a container has exited. One that did not even start counts as 125.
    #[must_use]
    pub fn exit_status(&self) -> Option<u8> {
        let from = self.size.saturating_sub(TAIL);
        let mut tail = vec![0; usize::try_from(self.size - from).ok()?];
        self.files[self.current].read_exact_at(&mut tail, from).ok()?;
        let last = tail.trim_ascii_end().rsplit(|b| *b == b'\n').next()?;
        match serde_json::from_slice::<Record>(last).ok()?.data {
            Data::Exited { code, .. } => Some(code.to_le_bytes()[0]),
            Data::Failed(_) => Some(125),
            _ => None,
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.files[self.current].write_all_at(bytes, self.size)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn switch(&mut self) -> io::Result<()> {
        let other = 1 - self.current;
        self.files[other].set_len(0)?;
        self.current = other;
        self.number += 1;
        self.size = 0;
        let mut line = serde_json::to_vec(&FileHeader { file: self.number })?;
        line.push(b'\n');
        self.append(&line)
    }
}

fn header(file: &File) -> io::Result<Option<u64>> {
    let mut buffer = [0u8; 64];
    let got = file.read_at(&mut buffer, 0)?;
    let line = buffer[..got].split(|b| *b == b'\n').next().unwrap_or_default();
    if line.len() == got {
        return Ok(None);
    }
    Ok(serde_json::from_slice::<FileHeader>(line).ok().map(|header| header.file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use zone::log::{Data, LogReader, Record, Stream};

    struct Place {
        _dir: tempfile::TempDir,
        paths: [PathBuf; 2],
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let paths = [dir.path().join("0"), dir.path().join("1")];
            for path in &paths {
                std::fs::write(path, b"").unwrap();
            }
            Self { _dir: dir, paths }
        }

        fn open(&self, max_bytes: u64) -> LogFiles {
            let open = |path| File::options().read(true).write(true).open(path).unwrap();
            LogFiles::open([open(&self.paths[0]), open(&self.paths[1])], max_bytes).unwrap()
        }

        fn numbers(&self) -> Vec<u64> {
            let mut reader = LogReader::new(self.paths.clone());
            let mut numbers = Vec::new();
            loop {
                let records = reader.read().unwrap();
                if records.is_empty() {
                    return numbers;
                }
                numbers.extend(records.iter().map(|r| r.number));
            }
        }
    }

    fn line(number: u64) -> Vec<u8> {
        let data = Data::output(Stream::Stdout, &[b'x'; 100]);
        Record { run: 1, number, time_ns: 5, container: "c".into(), data }.to_line()
    }

    #[test]
    fn records_in_pieces_of_any_size_come_back_whole() {
        let stream: Vec<u8> = (0..50).flat_map(line).collect();
        for piece in [1, 7, 149, 4096, stream.len()] {
            let place = Place::new();
            let mut log = place.open(1 << 20);
            for bytes in stream.chunks(piece) {
                log.write(bytes).unwrap();
            }
            assert_eq!(place.numbers(), (0..50).collect::<Vec<_>>(), "{piece}");
        }
    }

    #[test]
    fn the_files_take_turns_within_their_bound_and_the_newest_records_stay() {
        let place = Place::new();
        let mut log = place.open(4096);
        let stream: Vec<u8> = (0..500).flat_map(line).collect();
        for bytes in stream.chunks(1000) {
            log.write(bytes).unwrap();
        }
        for path in &place.paths {
            assert!(std::fs::metadata(path).unwrap().len() <= 4096);
        }
        let numbers = place.numbers();
        assert_eq!(*numbers.last().unwrap(), 499);
        assert!(numbers.len() > 25);
        assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1));
    }

    #[test]
    fn a_new_start_goes_on_behind_what_is_there_even_behind_half_a_line() {
        let place = Place::new();
        let mut log = place.open(1 << 20);
        log.write(&line(0)).unwrap();
        log.write(b"{\"r\":1,").unwrap();
        log.finish().unwrap();
        drop(log);
        let half = [std::fs::read(&place.paths[0]).unwrap(), b"{\"r\":1,\"n\"".to_vec()].concat();
        std::fs::write(&place.paths[0], half).unwrap();
        let mut log = place.open(1 << 20);
        log.write(&line(1)).unwrap();
        assert_eq!(place.numbers(), [0, 1]);
    }

    #[test]
    fn the_last_containers_exit_is_known_and_nothing_else_is_taken_for_one() {
        let place = Place::new();
        let mut log = place.open(1 << 20);
        assert_eq!(log.exit_status(), None);
        log.write(&line(0)).unwrap();
        assert_eq!(log.exit_status(), None);
        let data = Data::Exited { code: 7, oom_killed: false };
        log.write(&Record { run: 1, number: 1, time_ns: 5, container: "c".into(), data }.to_line()).unwrap();
        assert_eq!(log.exit_status(), Some(7));
    }

    #[test]
    fn a_record_larger_than_a_file_is_not_the_end() {
        let place = Place::new();
        let mut log = place.open(4096);
        log.write(&line(0)).unwrap();
        log.write(&[vec![b'y'; 9000], b"\n".to_vec()].concat()).unwrap();
        log.write(&line(1)).unwrap();
        assert_eq!(place.numbers(), [1]);
    }
}
