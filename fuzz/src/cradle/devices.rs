//! The devices that need no client: disk, interface, random bytes, balloon. Rings and registers both.

use super::guest::{Guest, memory};
use crate::input::Input;
use cradle::virtio::balloon::{self, Balloon};
use cradle::virtio::block::{self, Block, extents::Extents};
use cradle::virtio::net::{self, Net};
use cradle::virtio::rng::{self, Rng};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

/// A file without a name.
#[allow(clippy::expect_used)]
pub fn file(content: &[u8]) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("the machine that fuzzes has memory"));
    file.write_all_at(content, 0).expect("the machine that fuzzes has memory");
    file
}

/// Disks of several pieces or of one that can be written.
pub fn blk(data: &[u8]) {
    let mut input = Input::new(data);
    let (pieces, content) = (input.byte(), [1; 8192]);
    let mut disk = Extents::new(pieces & 1 != 0);
    for _ in 0..if pieces & 1 != 0 { pieces >> 1 & 3 } else { 1 } {
        let (size, offset, len) = (usize::from(input.word()) % content.len(), input.double(), input.double());
        // Refused, or a piece.
        let _ = disk.push(file(&content[..size]), u64::from(offset & 0xffff), u64::from(len & 0xffff));
    }
    let mut guest = Guest::new(block::identity(&disk), memory());
    let mut block = Block::new(guest.slot.clone(), guest.mem.clone(), disk);
    guest.play(&mut input, |_| assert!(block.serve().is_none()));
}

/// An interface, with packets that come in.
#[allow(clippy::expect_used)]
pub fn net(data: &[u8]) {
    let mut input = Input::new(data);
    let (tap, mut wire) = UnixStream::pair().expect("the machine that fuzzes has descriptors");
    let _ = (tap.set_nonblocking(true), wire.set_nonblocking(true));
    let mut guest = Guest::new(net::identity([2, 0, 0, 0, 0, 1]), memory());
    let mut net = Net::new(guest.slot.clone(), guest.mem.clone(), File::from(OwnedFd::from(tap)));
    guest.play(&mut input, |input| {
        let _ = wire.write(input.piece());
        net.serve();
        let _ = wire.read(&mut [0; 4096]);
    });
}

/// Random bytes.
pub fn rng(data: &[u8]) {
    let mut guest = Guest::new(rng::identity(), memory());
    let rng = Rng::new(guest.slot.clone(), guest.mem.clone());
    guest.play(&mut Input::new(data), |_| rng.serve());
}

/// The balloon.
pub fn balloon(data: &[u8]) {
    let mut guest = Guest::new(balloon::identity(), memory());
    let balloon = Balloon::new(guest.slot.clone(), guest.mem.clone());
    guest.play(&mut Input::new(data), |_| balloon.serve());
}
