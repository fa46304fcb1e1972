//! A pod's log: what its containers wrote and what became of them, on two bounded files that outlive everything.
//!
//! The agent in the guest writes records on a vsock stream; the monitor appends the bytes to a file without looking at
//! them; any service reads the file. A record is one line of JSON:
//!
//! ```text
//! {"r":1,"n":0,"t":1754…,"c":"4f5c…","d":{"started":{"pid":2}}}
//! {"r":1,"n":1,"t":1754…,"c":"4f5c…","d":{"out":"hello\n"}}
//! {"r":1,"n":2,"t":1754…,"c":"4f5c…","d":{"err_b64":"/w=="}}
//! {"r":1,"n":3,"t":1754…,"c":"4f5c…","d":{"exited":{"code":0,"oom_killed":false}}}
//! ```
//! A piece of output is what one read gave, at most [`MAX_PIECE`] bytes, and may be part of a line: readers join pieces
//! of one stream up to the newline. `n` counts within a run without gaps, so that a reader sees what it missed.
//!
//! The two files take turns: each starts with a line `{"file":N}`; when one would exceed its bound, the monitor empties
//! the other, gives it the next number, and goes on there. The switch falls on a record's end.
//! Readers order the files by number and read on where the higher one begins.
//!
//! Within a run, `exited` or `failed` is a container's last record: all its output stands before it.

use crate::health::Health;
use crate::pod::StartError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The most bytes of output in one record.
pub const MAX_PIECE: usize = 16 * 1024;
/// The longest record that a reader takes; a longer line is skipped. Escaping can make six bytes of one.
pub const MAX_RECORD: usize = 6 * MAX_PIECE + 1024;
/// How large each of the two files may become when nobody says otherwise, bytes.
pub const DEFAULT_MAX_BYTES: u64 = 32 << 20;

/// The first line of each of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHeader {
    /// Counts the turns, from 1.
    pub file: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The run: which boot of the pod.
    #[serde(rename = "r")]
    pub run: u32,
    /// Counts the run's records, from 0.
    #[serde(rename = "n")]
    pub number: u64,
    /// When, nanoseconds since the Unix epoch.
    #[serde(rename = "t")]
    pub time_ns: u64,
    /// The container's id.
    #[serde(rename = "c")]
    pub container: String,
    /// What happened.
    #[serde(rename = "d")]
    pub data: Data,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Standard output (or the terminal), valid UTF-8.
    Out(String),
    /// Standard error, valid UTF-8.
    Err(String),
    /// Standard output that is not UTF-8, base64.
    OutB64(String),
    /// Standard error that is not UTF-8, base64.
    ErrB64(String),
    /// The process runs.
    Started {
        /// Its id in the guest.
        pid: u32,
    },
    /// The process has exited and all its output is in the log.
    Exited {
        /// The exit code; 128 + signal number after a signal.
        code: i32,
        /// Killed for want of memory.
        oom_killed: bool,
    },
    /// The process could not be started.
    Failed(StartError),
    /// The state of the container's health has changed.
    Health(Health),
}

/// Which of a container's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Data {
    /// A piece of output.
    #[must_use]
    pub fn output(stream: Stream, bytes: &[u8]) -> Self {
        match (stream, std::str::from_utf8(bytes)) {
            (Stream::Stdout, Ok(text)) => Self::Out(text.to_owned()),
            (Stream::Stderr, Ok(text)) => Self::Err(text.to_owned()),
            (Stream::Stdout, Err(_)) => Self::OutB64(STANDARD.encode(bytes)),
            (Stream::Stderr, Err(_)) => Self::ErrB64(STANDARD.encode(bytes)),
        }
    }

    /// The bytes of a piece of output; none for the other records. Base64 that is broken gives no bytes.
    #[must_use]
    pub fn as_output(&self) -> Option<(Stream, Vec<u8>)> {
        match self {
            Self::Out(text) => Some((Stream::Stdout, text.clone().into_bytes())),
            Self::Err(text) => Some((Stream::Stderr, text.clone().into_bytes())),
            Self::OutB64(text) => Some((Stream::Stdout, STANDARD.decode(text).unwrap_or_default())),
            Self::ErrB64(text) => Some((Stream::Stderr, STANDARD.decode(text).unwrap_or_default())),
            Self::Started { .. } | Self::Exited { .. } | Self::Failed(_) | Self::Health(_) => None,
        }
    }
}

impl Record {
    /// The record as one line, newline included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        // Strings and integers always serialize.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// Reads a pod's log from the two files, in order, as far as it is written; call again when a file has changed.
///
/// Holds its files open, so a file that takes its next turn meanwhile is read as its new self: what was lost by then
/// shows as a gap in [`Record::number`].
#[derive(Debug)]
pub struct LogReader {
    paths: [PathBuf; 2],
    /// Opened once: they are emptied, never replaced.
    files: [Option<File>; 2],
    current: Option<Current>,
    partial: Vec<u8>,
    skipping: bool,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    index: usize,
    number: u64,
    offset: u64,
}

impl LogReader {
    /// A reader that starts with the oldest record there is.
    #[must_use]
    pub fn new(paths: [PathBuf; 2]) -> Self {
        Self { paths, files: [None, None], current: None, partial: Vec::new(), skipping: false }
    }

    /// A reader that starts after the newest record that is there now.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn at_end(paths: [PathBuf; 2]) -> io::Result<Self> {
        let mut reader = Self::new(paths);
        while !reader.read()?.is_empty() {}
        Ok(reader)
    }

    /// The next records, at most about a megabyte of them; empty when there are no more for now.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<Record>> {
        self.read_about(1 << 20)
    }

    /// The next records, about so many bytes of them and at least one piece of the file; empty when there are no more for now.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read_about(&mut self, bytes: usize) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut budget = bytes;
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            if self.current.is_none() && !self.open_next(0)? {
                return Ok(records);
            }
            let Some(Current { index, number, offset }) = self.current else {
                return Ok(records);
            };
            let got = self.file(index)?.map_or(Ok(0), |file| file.read_at(&mut buffer, offset))?;
            if got == 0 {
                // Read to the end: has the other file begun a higher number, or this one been emptied under us?
                if self.header(index)? != Some(number) || self.has_successor(number)? {
                    self.partial.clear();
                    self.skipping = false;
                    if self.open_next(number)? {
                        continue;
                    }
                }
                return Ok(records);
            }
            self.current = Some(Current { index, number, offset: offset + got as u64 });
            self.take(&buffer[..got], &mut records);
            budget = budget.saturating_sub(got);
            if budget == 0 {
                return Ok(records);
            }
        }
    }

    fn take(&mut self, bytes: &[u8], records: &mut Vec<Record>) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let ends = part.ends_with(b"\n");
            if ends && !self.skipping && self.partial.is_empty() {
                records.extend(record(part));
                continue;
            }
            if !self.skipping {
                self.partial.extend_from_slice(part);
                if self.partial.len() > MAX_RECORD {
                    self.partial.clear();
                    self.skipping = true;
                }
            }
            if ends {
                if !self.skipping {
                    records.extend(record(&self.partial));
                }
                self.partial.clear();
                self.skipping = false;
            }
        }
    }

    fn file(&mut self, index: usize) -> io::Result<Option<&File>> {
        if self.files[index].is_none() {
            self.files[index] = match File::open(&self.paths[index]) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
        }
        Ok(self.files[index].as_ref())
    }

    fn header(&mut self, index: usize) -> io::Result<Option<u64>> {
        self.file(index)?.map_or(Ok(None), read_header)
    }

    fn has_successor(&mut self, number: u64) -> io::Result<bool> {
        Ok((0..2).map(|i| self.header(i)).collect::<io::Result<Vec<_>>>()?.into_iter().flatten().any(|n| n > number))
    }

    /// Opens the file with the lowest number above `after`.
    fn open_next(&mut self, after: u64) -> io::Result<bool> {
        let mut best: Option<(u64, usize)> = None;
        for index in 0..2 {
            if let Some(number) = self.header(index)?
                && number > after
                && best.is_none_or(|(n, _)| number < n)
            {
                best = Some((number, index));
            }
        }
        let Some((number, index)) = best else {
            return Ok(false);
        };
        self.current = Some(Current { index, number, offset: 0 });
        Ok(true)
    }
}

/// A line's record; the header and lines that a cut of the power left half written are none.
fn record(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(line).ok()
}

fn read_header(file: &File) -> io::Result<Option<u64>> {
    let mut buffer = [0u8; 64];
    let got = file.read_at(&mut buffer, 0)?;
    let Some(end) = buffer[..got].iter().position(|b| *b == b'\n') else {
        return Ok(None);
    };
    Ok(serde_json::from_slice::<FileHeader>(&buffer[..end]).ok().map(|h| h.file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn line(number: u64, text: &str) -> Vec<u8> {
        Record {
            run: 1,
            number,
            time_ns: 5,
            container: "c".into(),
            data: Data::output(Stream::Stdout, text.as_bytes()),
        }
        .to_line()
    }

    fn files(name: &str) -> [PathBuf; 2] {
        let dir = std::env::temp_dir().join(format!("zone-log-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        [dir.join("log.0"), dir.join("log.1")]
    }

    fn numbers(records: &[Record]) -> Vec<u64> {
        records.iter().map(|r| r.number).collect()
    }

    #[test]
    fn output_that_is_not_text_comes_back_byte_for_byte() {
        let data = Data::output(Stream::Stderr, b"\xff\x00x");
        let record = Record { run: 1, number: 0, time_ns: 0, container: String::new(), data };
        let back: Record = serde_json::from_slice(&record.to_line()).unwrap();
        assert_eq!(back.data.as_output(), Some((Stream::Stderr, b"\xff\x00x".to_vec())));
    }

    #[test]
    fn a_reader_follows_the_switch_to_the_other_file() {
        let paths = files("switch");
        let mut first = b"{\"file\":1}\n".to_vec();
        first.extend(line(0, "a"));
        fs::write(&paths[0], &first).unwrap();
        let mut reader = LogReader::new(paths.clone());
        assert_eq!(numbers(&reader.read().unwrap()), [0]);
        assert_eq!(numbers(&reader.read().unwrap()), [0u64; 0]);
        first.extend(line(1, "b"));
        fs::write(&paths[0], &first).unwrap();
        let mut second = b"{\"file\":2}\n".to_vec();
        second.extend(line(2, "c"));
        fs::write(&paths[1], &second).unwrap();
        assert_eq!(numbers(&reader.read().unwrap()), [1, 2]);
        assert_eq!(numbers(&LogReader::new(paths).read().unwrap()), [0, 1, 2]);
    }

    #[test]
    fn a_half_written_line_waits_for_its_end() {
        let paths = files("half");
        let full = [b"{\"file\":1}\n".to_vec(), line(0, "a")].concat();
        fs::write(&paths[0], &full[..full.len() - 4]).unwrap();
        let mut reader = LogReader::new(paths.clone());
        assert!(reader.read().unwrap().is_empty());
        fs::write(&paths[0], &full).unwrap();
        assert_eq!(numbers(&reader.read().unwrap()), [0]);
    }

    #[test]
    fn a_line_without_end_is_skipped_and_takes_no_memory() {
        let paths = files("endless");
        let mut bytes = b"{\"file\":1}\n".to_vec();
        bytes.extend(vec![b'x'; 3 * MAX_RECORD]);
        bytes.push(b'\n');
        bytes.extend(line(7, "after"));
        fs::write(&paths[0], &bytes).unwrap();
        let mut reader = LogReader::new(paths);
        assert_eq!(numbers(&reader.read().unwrap()), [7]);
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty() {
        assert!(LogReader::new(files("absent")).read().unwrap().is_empty());
    }
}
