//! What a disk consists of: pieces of files, shown as one flat range of bytes.
//!
//! Sizes are taken once, at the start; what a file grows to later is not seen. The tail of a file that does not fill its last
//! 4096 bytes reads as zeroes.

use crate::virtio::chain::Buffers;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// The kernel takes this many pieces at once.
const MAX_IOVECS: usize = 1024;

/// A disk's pieces.
#[derive(Debug)]
pub struct Extents {
    pieces: Vec<Piece>,
    len: u64,
    read_only: bool,
}

#[derive(Debug)]
struct Piece {
    file: File,
    /// Where on the disk.
    start: u64,
    /// Where in the file.
    offset: u64,
    len: u64,
    /// Bytes that the file really has here.
    filled: u64,
}

impl Extents {
    /// A disk without pieces.
    #[must_use]
    pub fn new(read_only: bool) -> Self {
        Self { pieces: Vec::new(), len: 0, read_only }
    }

    /// Adds a piece at the end; `len` 0 = to the file's end.
    ///
    /// # Errors
    /// When it does not lie in the file, or not on sectors.
    pub fn push(&mut self, mut file: File, offset: u64, len: u64) -> Result<()> {
        // Works for block devices too, whose metadata has no length.
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0)).context("cannot find out its size")?;
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            bail!("offset {offset} and length {len} must be multiples of {SECTOR}");
        }
        let there = size.checked_sub(offset).with_context(|| format!("offset {offset} is behind its end at {size}"))?;
        let (len, filled) = if len == 0 { (there.next_multiple_of(BLOCK), there) } else { (len, len) };
        if filled > there {
            bail!("{len} bytes from {offset} on are asked for, it ends at {size}");
        }
        let start = self.len;
        self.len = start.checked_add(len).context("the disk is too large")?;
        self.pieces.push(Piece { file, start, offset, len, filled });
        Ok(())
    }

    /// Its size.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.len / SECTOR
    }

    /// Nothing can be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    fn contains(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Fills the buffers from the disk.
    ///
    /// # Errors
    /// When they reach beyond the disk, or the file cannot be read.
    pub fn read(&self, mut at: u64, mut buffers: Buffers<'_>) -> io::Result<()> {
        if !self.contains(at, buffers.len() as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut index = self.pieces.partition_point(|piece| piece.start + piece.len <= at);
        while !buffers.is_empty() {
            let Some(piece) = self.pieces.get(index) else { return Err(io::ErrorKind::InvalidInput.into()) };
            let inside = at - piece.start;
            let mut part = buffers.split(usize::try_from(piece.len - inside).unwrap_or(usize::MAX));
            at += part.len() as u64;
            let filled = part.split(usize::try_from(piece.filled.saturating_sub(inside)).unwrap_or(usize::MAX));
            transfer(piece, inside, filled, libc::preadv)?;
            part.zero();
            index += 1;
        }
        Ok(())
    }

    /// Writes the buffers to the disk.
    ///
    /// # Errors
    /// When they reach beyond the disk, it is read-only, or the file cannot be written.
    pub fn write(&self, at: u64, buffers: Buffers<'_>) -> io::Result<()> {
        let piece = self.writable(at, buffers.len() as u64)?;
        transfer(piece, at, buffers, libc::pwritev)
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When the host cannot.
    pub fn flush(&self) -> io::Result<()> {
        match self.pieces.first() {
            Some(piece) if !self.read_only => piece.file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Makes a range read as zeroes, and gives its room back to the host when `release`.
    ///
    /// # Errors
    /// When it reaches beyond the disk, or the host's file cannot do it.
    pub fn zero(&self, at: u64, len: u64, release: bool) -> io::Result<()> {
        let piece = self.writable(at, len)?;
        let mode =
            if release { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE } | libc::FALLOC_FL_KEEP_SIZE;
        let (Ok(from), Ok(count)) = (i64::try_from(piece.offset + at), i64::try_from(len)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: fallocate takes a descriptor, which `piece.file` keeps open, and numbers.
        if unsafe { libc::fallocate(piece.file.as_raw_fd(), mode, from, count) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn writable(&self, at: u64, len: u64) -> io::Result<&Piece> {
        match self.pieces.first() {
            Some(_) if self.read_only || !self.contains(at, len) => Err(io::ErrorKind::InvalidInput.into()),
            Some(piece) => Ok(piece),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

type Vectored = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

/// Moves all bytes of the buffers between memory and `piece`, from `inside` on.
fn transfer(piece: &Piece, mut inside: u64, mut buffers: Buffers<'_>, how: Vectored) -> io::Result<()> {
    while !buffers.is_empty() {
        let iovecs = buffers.iovecs(usize::MAX);
        let count = iovecs.len().min(MAX_IOVECS);
        let offset = libc::off_t::try_from(piece.offset + inside).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: each iovec is a checked slice of guest memory, which stays mapped while `buffers` borrows it; `count` is at most
        // their number; the kernel copes with a guest that changes them meanwhile.
        let moved = unsafe { how(piece.file.as_raw_fd(), iovecs.as_ptr(), count as libc::c_int, offset) };
        match moved {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if n > 0 => {
                buffers.split(n as usize);
                inside += n as u64;
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mem;
    use crate::virtio::chain::{Chain, testing::queue_of};
    use proptest::prelude::*;
    use std::io::Write as _;
    use virtio_queue::QueueT as _;
    use vm_memory::{Bytes as _, GuestAddress};

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn buffers(mem: &Mem, len: u32) -> Buffers<'_> {
        let mut queue =
            queue_of(mem, &[&[(0x10000, len / 2, true), (0x10000 + u64::from(len / 2), len - len / 2, true)]]);
        Chain::collect(queue.pop_descriptor_chain(mem).unwrap(), mem, 1 << 20).unwrap().writable
    }

    fn read(disk: &Extents, at: u64, len: u32) -> io::Result<Vec<u8>> {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        mem.write_slice(&vec![0xee; len as usize], GuestAddress(0x10000)).unwrap();
        disk.read(at, buffers(&mem, len))?;
        let mut got = vec![0; len as usize];
        mem.read_slice(&mut got, GuestAddress(0x10000)).unwrap();
        Ok(got)
    }

    #[test]
    fn pieces_are_one_disk_and_the_tail_of_a_file_is_zero() {
        let mut disk = Extents::new(true);
        disk.push(file(&[1; 5000]), 0, 0).unwrap();
        disk.push(file(&[2; 4096]), 512, 1024).unwrap();
        assert_eq!(disk.sectors(), (8192 + 1024) / 512);
        let all = read(&disk, 0, 8192 + 1024).unwrap();
        assert!(all[..5000].iter().all(|b| *b == 1));
        assert!(all[5000..8192].iter().all(|b| *b == 0));
        assert!(all[8192..].iter().all(|b| *b == 2));
        let across = read(&disk, 7680, 1024).unwrap();
        assert_eq!((across[511], across[512]), (0, 2));
        assert_eq!(read(&disk, 8192, 1024).unwrap(), vec![2; 1024]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any table: what is read anywhere is what the pieces are, one after the other.
        #[test]
        fn a_table_reads_as_its_pieces_in_a_row(
            pieces in proptest::collection::vec((1usize..9000, 0u64..4, 0u64..6), 1..6),
            reads in proptest::collection::vec((0u64..80, 1u32..20), 1..8),
        ) {
            let (mut disk, mut model) = (Extents::new(true), Vec::new());
            for (number, (size, offset, len)) in pieces.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..size).map(|at| (at / 7 + number * 31) as u8).collect();
                let (from, count) = ((offset * SECTOR) as usize, (len * SECTOR) as usize);
                let fits = from + count <= size;
                prop_assert_eq!(disk.push(file(&bytes), offset * SECTOR, len * SECTOR).is_ok(), fits);
                if fits {
                    let end = if count == 0 { size } else { from + count };
                    model.extend_from_slice(&bytes[from..end]);
                    if count == 0 {
                        let tail = (size - from).next_multiple_of(BLOCK as usize) - (size - from);
                        model.resize(model.len() + tail, 0);
                    }
                }
            }
            prop_assert_eq!(disk.sectors() * SECTOR, model.len() as u64);
            for (sector, sectors) in reads {
                let (at, len) = (sector * SECTOR, sectors * SECTOR as u32);
                let wanted = model.get(at as usize..at as usize + len as usize);
                let got = read(&disk, at, len).ok();
                prop_assert_eq!(got.as_deref(), wanted);
            }
        }
    }

    #[test]
    fn nothing_beyond_the_disk_is_read_or_written() {
        let mut disk = Extents::new(false);
        disk.push(file(&[1; 4096]), 0, 0).unwrap();
        assert!(read(&disk, 4096 - 512, 1024).is_err());
        assert!(read(&disk, u64::MAX - 511, 1024).is_err());
        let mem = crate::memory::create(32 << 20, false).unwrap();
        assert!(disk.write(3584, buffers(&mem, 1024)).is_err());
        assert!(disk.zero(0, 8192, true).is_err());
        disk.write(3584, buffers(&mem, 512)).unwrap();
        assert_eq!(read(&disk, 3584, 512).unwrap(), vec![0; 512]);
        disk.zero(0, 512, true).unwrap();
        assert_eq!(read(&disk, 0, 1024).unwrap()[511..513], [0, 1]);
    }

    #[test]
    fn a_read_only_disk_cannot_be_written() {
        let mut disk = Extents::new(true);
        disk.push(file(&[1; 4096]), 0, 0).unwrap();
        let mem = crate::memory::create(32 << 20, false).unwrap();
        assert!(disk.write(0, buffers(&mem, 512)).is_err());
        assert!(disk.zero(0, 512, true).is_err());
    }

    #[test]
    fn a_piece_that_its_file_does_not_have_is_refused() {
        let mut disk = Extents::new(true);
        assert!(disk.push(file(&[1; 4096]), 100, 0).is_err());
        assert!(disk.push(file(&[1; 4096]), 8192, 0).is_err());
        assert!(disk.push(file(&[1; 4096]), 512, 4096).is_err());
    }
}
