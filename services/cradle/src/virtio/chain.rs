//! A descriptor chain as buffers: bounded, checked, its two parts apart.
//!
//! Everything here is a stranger's: a chain may loop, overlap, point outside of memory, change under our hands. Lengths are
//! read once; memory is only reached through checked slices.

use crate::memory::Mem;
use std::collections::VecDeque;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions, VolatileSlice};

/// The most descriptors in a chain.
pub const MAX_DESCRIPTORS: usize = 1024;

/// A chain is not what the device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// More descriptors than allowed.
    #[error("a chain has too many descriptors")]
    TooLong,
    /// More bytes than allowed.
    #[error("a chain has too many bytes")]
    TooLarge,
    /// A part lies outside of memory.
    #[error("a chain points outside of memory")]
    Outside,
    /// A buffer to read stands behind one to write.
    #[error("a chain has its buffers in the wrong order")]
    Order,
    /// Fewer bytes than the device needs.
    #[error("a chain is too short")]
    TooShort,
}

/// A chain's buffers.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    /// What the device reads.
    pub readable: Buffers<'m>,
    /// What the device writes.
    pub writable: Buffers<'m>,
}

/// A list of pieces of guest memory, used up from the front.
#[derive(Debug, Default)]
pub struct Buffers<'m> {
    pieces: VecDeque<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Chain<'m> {
    /// Walks a chain.
    ///
    /// # Errors
    /// When it is not to be used; the device still has to give it back.
    pub fn collect(chain: DescriptorChain<&'m Mem>, mem: &'m Mem, max_bytes: usize) -> Result<Self, ChainError> {
        let mut out = Self::default();
        for (count, descriptor) in chain.enumerate() {
            if count >= MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            let write = descriptor.is_write_only();
            if !write && out.writable.len > 0 {
                return Err(ChainError::Order);
            }
            let len = descriptor.len() as usize;
            if len > max_bytes || out.readable.len + out.writable.len + len > max_bytes {
                return Err(ChainError::TooLarge);
            }
            let (part, access) =
                if write { (&mut out.writable, Permissions::Write) } else { (&mut out.readable, Permissions::Read) };
            for slice in mem.get_slices(descriptor.addr(), len, access).map_err(|_| ChainError::Outside)? {
                part.push(slice.map_err(|_| ChainError::Outside)?);
            }
        }
        Ok(out)
    }
}

impl<'m> Buffers<'m> {
    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.pieces.push_back(slice);
        }
    }

    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `count` bytes away as buffers of their own, fewer when there are no more.
    pub fn split(&mut self, count: usize) -> Self {
        let mut out = Self::default();
        while out.len < count {
            let Some(piece) = self.pieces.pop_front() else { break };
            self.len -= piece.len();
            let room = count - out.len;
            if piece.len() <= room {
                out.push(piece);
                continue;
            }
            // Both halves lie within the piece, so neither can fail.
            if let (Ok(first), Ok(rest)) = (piece.subslice(0, room), piece.offset(room)) {
                out.push(first);
                self.len += rest.len();
                self.pieces.push_front(rest);
            }
        }
        out
    }

    /// Takes the last `count` bytes away.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn split_end(&mut self, count: usize) -> Result<Self, ChainError> {
        let front = self.len.checked_sub(count).ok_or(ChainError::TooShort)?;
        let front = self.split(front);
        Ok(std::mem::replace(self, front))
    }

    /// Copies out as many bytes as fit, and uses them up.
    pub fn read(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.split(data.len()).pieces {
            done += piece.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies out exactly this many bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn read_exact(&mut self, data: &mut [u8]) -> Result<(), ChainError> {
        if self.len < data.len() {
            return Err(ChainError::TooShort);
        }
        self.read(data);
        Ok(())
    }

    /// Copies in as many bytes as fit, and uses the room up.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.split(data.len()).pieces {
            piece.copy_from(&data[done..done + piece.len()]);
            done += piece.len();
        }
        done
    }

    /// Sets all bytes to zero.
    pub fn zero(self) {
        let zeroes = [0u8; 4096];
        for piece in self.pieces {
            let mut at = 0;
            while let Ok(rest) = piece.offset(at).and_then(|rest| rest.subslice(0, rest.len().min(zeroes.len()))) {
                if rest.is_empty() {
                    break;
                }
                rest.copy_from(&zeroes[..rest.len()]);
                at += rest.len();
            }
        }
    }

    /// The first `limit` bytes' pieces as the kernel wants them; valid as long as the guest's memory.
    #[must_use]
    pub fn iovecs(&self, mut limit: usize) -> Vec<libc::iovec> {
        let mut iovecs = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let len = piece.len().min(limit);
            if len == 0 {
                break;
            }
            limit -= len;
            iovecs.push(libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: len });
        }
        iovecs
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A driver's side of a queue, for the devices' tests.
    use crate::memory::Mem;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueT as _};
    use vm_memory::Bytes as _;

    /// Makes a queue at the start of memory whose available chains are the given lists of (address, length, device writes).
    pub fn queue_of(mem: &Mem, chains: &[&[(u64, u32, bool)]]) -> Queue {
        let mock = MockSplitQueue::new(mem, 64);
        let mut index = 0u16;
        for (n, chain) in chains.iter().enumerate() {
            mem.write_obj(index.to_le(), mock.avail_addr().checked_add_u(4 + 2 * n as u64)).unwrap();
            for (i, (address, len, write)) in chain.iter().enumerate() {
                let more = i + 1 < chain.len();
                let flags = u16::from(more) | if *write { 2 } else { 0 };
                mock.desc_table()
                    .store(index, RawDescriptor::from(Descriptor::new(*address, *len, flags, index + 1)))
                    .unwrap();
                index += 1;
            }
        }
        mem.write_obj((chains.len() as u16).to_le(), mock.avail_addr().checked_add_u(2)).unwrap();
        let queue: Queue = mock.create_queue().unwrap();
        assert!(queue.is_valid(mem));
        queue
    }

    trait Add {
        fn checked_add_u(self, by: u64) -> Self;
    }

    impl Add for vm_memory::GuestAddress {
        fn checked_add_u(self, by: u64) -> Self {
            Self(self.0 + by)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::queue_of;
    use super::*;
    use virtio_queue::QueueT as _;
    use vm_memory::{Bytes as _, GuestAddress};

    fn mem() -> Mem {
        crate::memory::create(32 << 20, false).unwrap()
    }

    fn collect<'m>(mem: &'m Mem, chain: &[(u64, u32, bool)], max: usize) -> Result<Chain<'m>, ChainError> {
        let mut queue = queue_of(mem, &[chain]);
        Chain::collect(queue.pop_descriptor_chain(mem).unwrap(), mem, max)
    }

    #[test]
    fn the_two_parts_come_apart_and_are_used_up_from_the_front() {
        let mem = mem();
        mem.write_slice(b"abcdef", GuestAddress(0x10000)).unwrap();
        let mut chain = collect(&mem, &[(0x10000, 3, false), (0x10003, 3, false), (0x20000, 8, true)], 100).unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (6, 8));
        let mut four = [0; 4];
        chain.readable.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"abcd");
        assert_eq!(chain.readable.read_exact(&mut four), Err(ChainError::TooShort));
        let mut status = chain.writable.split_end(1).unwrap();
        assert_eq!(status.write(b"!"), 1);
        assert_eq!(chain.writable.write(b"0123456789"), 7);
        let mut got = [0; 8];
        mem.read_slice(&mut got, GuestAddress(0x20000)).unwrap();
        assert_eq!(&got, b"0123456!");
    }

    #[test]
    fn chains_that_lie_are_refused() {
        let mem = mem();
        assert_eq!(collect(&mem, &[(0x10000, 101, false)], 100).unwrap_err(), ChainError::TooLarge);
        assert_eq!(collect(&mem, &[(0x10000, 60, false), (0x10000, 60, true)], 100).unwrap_err(), ChainError::TooLarge);
        assert_eq!(collect(&mem, &[(0x10000, 1, true), (0x10000, 1, false)], 100).unwrap_err(), ChainError::Order);
        assert_eq!(collect(&mem, &[((32 << 20) - 1, 2, false)], 100).unwrap_err(), ChainError::Outside);
        assert_eq!(collect(&mem, &[(u64::MAX, 2, false)], 100).unwrap_err(), ChainError::Outside);
    }

    #[test]
    fn zeroing_stops_at_the_end_of_the_buffers() {
        let mem = mem();
        mem.write_slice(&[7; 9000], GuestAddress(0x10000)).unwrap();
        collect(&mem, &[(0x10001, 8998, true)], 10000).unwrap().writable.zero();
        let mut got = vec![1; 9000];
        mem.read_slice(&mut got, GuestAddress(0x10000)).unwrap();
        assert_eq!((got[0], got[8999]), (7, 7));
        assert!(got[1..8999].iter().all(|b| *b == 0));
    }
}
