//! What crosses the border between a guest and the host: documents, the log, the orders of a guest that goes on.

use crate::cradle::devices::file;
use crate::input::Input;
use ::zone::log::{LogReader, MAX_RECORD, Record};
use ::zone::template::{MAX_SPEC, Orders};
use cradle::virtio::vsock::log::LogFiles;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::AsRawFd as _;

/// What is taken can be written, and is then taken as the same.
fn document<T: Serialize + DeserializeOwned>(text: &[u8]) {
    let Ok(first) = serde_json::from_slice::<T>(text) else { return };
    let written = serde_json::to_value(&first).unwrap_or_default();
    let again = serde_json::from_value::<T>(written.clone());
    let again = again.map(|again| serde_json::to_value(&again).unwrap_or_default());
    assert_eq!(again.ok(), Some(written));
}

/// JSON of every kind that crosses: the first byte says which.
pub fn documents(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let text = input.rest();
    match kind % 6 {
        0 => document::<::zone::guest::GuestSpec>(text),
        1 => document::<::zone::control::Request>(text),
        2 => document::<::zone::control::Reply>(text),
        3 => document::<::zone::control::Appeared>(text),
        4 => document::<::zone::control::Found>(text),
        _ => document::<Record>(text),
    }
}

/// A guest's log stream, in pieces, through the monitor's files to a reader: what was written whole and fits is read, in order.
#[allow(clippy::expect_used)]
pub fn log(data: &[u8]) {
    let mut input = Input::new(data);
    let small = input.byte();
    let bound = if small & 1 == 0 { 1 << 20 } else { 64 + u64::from(small) * 8 };
    let files = [file(b""), file(b"")];
    let paths = [0, 1].map(|n: usize| format!("/proc/self/fd/{}", files[n].as_raw_fd()).into());
    let copies = [0, 1].map(|n: usize| files[n].try_clone().expect("the machine that fuzzes has descriptors"));
    let mut log = LogFiles::open(copies, bound).expect("two empty files are a log");
    let mut sent = Vec::new();
    while !input.is_empty() {
        let piece = input.piece();
        sent.extend_from_slice(piece);
        log.write(piece).expect("the machine that fuzzes has memory");
    }
    log.finish().expect("the machine that fuzzes has memory");
    let _ = log.exit_status();
    let wanted: Vec<Record> =
        sent.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let mut reader = LogReader::new(paths);
    let mut found = Vec::new();
    loop {
        let records = reader.read().expect("the files are there");
        if records.is_empty() {
            break;
        }
        found.extend(records);
    }
    assert!(wanted.ends_with(&found), "what is read is not what was written last");
    if bound >= (sent.len() + MAX_RECORD) as u64 {
        assert_eq!(found.len(), wanted.len());
    }
    let _ = found.iter().filter_map(|record| record.data.as_output()).count();
    // A new start of the monitor goes on behind what is there.
    let copies = [0, 1].map(|n: usize| files[n].try_clone().expect("the machine that fuzzes has descriptors"));
    LogFiles::open(copies, bound).expect("a log that was written can be gone on with");
}

/// The orders that a guest finds in its own memory.
pub fn orders(data: &[u8]) {
    if let Some(orders) = Orders::decode(data) {
        assert!(orders.spec.len() <= data.len().min(MAX_SPEC));
        assert_eq!(Orders::decode(&orders.encode()), Some(orders));
    }
}
