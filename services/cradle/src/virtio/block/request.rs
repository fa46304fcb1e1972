//! What a guest may ask of a disk, and the answer's status byte.

use super::MAX_DISCARD_SECTORS;
use super::extents::{Extents, SECTOR};
use crate::virtio::chain::{Buffers, Chain, ChainError};
use std::io;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const UNMAP: u32 = 1;

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

enum Failure {
    Error,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            _ => Self::Error,
        }
    }
}

impl From<ChainError> for Failure {
    fn from(_: ChainError) -> Self {
        Self::Error
    }
}

/// A request's header, read once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    /// Takes it from the chain.
    ///
    /// # Errors
    /// When the chain is too short for one.
    pub fn take(chain: &mut Chain<'_>) -> Result<Self, ChainError> {
        let mut header = [0; 16];
        chain.readable.read_exact(&mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        Ok(Self { kind: u32::from_le_bytes([k0, k1, k2, k3]), sector: u64::from_le_bytes(sector) })
    }

    /// Whether it counts as reading, else as writing.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self.kind, IN | GET_ID)
    }
}

/// Does what the chain asks, whose header was taken; gives the number of bytes written to it.
pub fn serve(disk: &Extents, header: Result<Header, ChainError>, mut chain: Chain<'_>) -> u32 {
    let Ok(mut status) = chain.writable.split_end(1) else { return 0 };
    let done = header.map_err(Failure::from).and_then(|h| perform(disk, h, &mut chain.readable, chain.writable));
    let (code, written) = match done {
        Ok(written) => (STATUS_OK, written),
        Err(Failure::Error) => (STATUS_ERROR, 0),
        Err(Failure::Unsupported) => (STATUS_UNSUPPORTED, 0),
    };
    status.write(&[code]);
    written as u32 + 1
}

fn perform(disk: &Extents, header: Header, input: &mut Buffers<'_>, mut output: Buffers<'_>) -> Result<usize, Failure> {
    let at = header.sector.checked_mul(SECTOR).ok_or(Failure::Error)?;
    let len = output.len();
    match header.kind {
        IN => {
            disk.read(at, output)?;
            Ok(len)
        }
        OUT => {
            let data = input.split(usize::MAX);
            if !(data.len() as u64).is_multiple_of(SECTOR) {
                return Err(Failure::Error);
            }
            disk.write(at, data)?;
            Ok(0)
        }
        FLUSH => {
            disk.flush()?;
            Ok(0)
        }
        GET_ID => Ok(output.write(b"kraud\0")),
        kind @ (DISCARD | WRITE_ZEROES) => {
            zero(disk, input, kind == DISCARD)?;
            Ok(0)
        }
        _ => Err(Failure::Unsupported),
    }
}

fn zero(disk: &Extents, input: &mut Buffers<'_>, discard: bool) -> Result<(), Failure> {
    let mut segment = [0; 16];
    input.read_exact(&mut segment)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = segment;
    let at = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).checked_mul(SECTOR).ok_or(Failure::Error)?;
    let sectors = u32::from_le_bytes([c0, c1, c2, c3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    if sectors > MAX_DISCARD_SECTORS || flags & !UNMAP != 0 {
        return Err(Failure::Unsupported);
    }
    if sectors == 0 {
        return Ok(());
    }
    match disk.zero(at, u64::from(sectors) * SECTOR, discard || flags & UNMAP != 0) {
        // A hint only: a host that cannot give the room back has done nothing wrong.
        Err(error) if discard && error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mem;
    use crate::virtio::chain::testing::queue_of;
    use std::io::Write as _;
    use virtio_queue::QueueT as _;
    use vm_memory::{Bytes as _, GuestAddress};

    const HEADER: u64 = 0x10000;
    const DATA: u64 = 0x20000;
    const STATUS: u64 = 0x30000;

    fn disk(read_only: bool) -> Extents {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mut disk = Extents::new(read_only);
        disk.push(file, 0, 0).unwrap();
        disk
    }

    fn serve_all(disk: &Extents, mut chain: Chain<'_>) -> u32 {
        serve(disk, Header::take(&mut chain), chain)
    }

    fn ask(mem: &Mem, disk: &Extents, kind: u32, sector: u64, data: (u32, bool)) -> (u8, u32) {
        mem.write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
        mem.write_obj(sector.to_le(), GuestAddress(HEADER + 8)).unwrap();
        mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        let mut queue = queue_of(mem, &[&[(HEADER, 16, false), (DATA, data.0, data.1), (STATUS, 1, true)]]);
        let len = serve_all(disk, Chain::collect(queue.pop_descriptor_chain(mem).unwrap(), mem, 1 << 20).unwrap());
        (mem.read_obj(GuestAddress(STATUS)).unwrap(), len)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let disk = disk(false);
        mem.write_slice(&[9; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(ask(&mem, &disk, OUT, 3, (512, false)), (STATUS_OK, 1));
        assert_eq!(ask(&mem, &disk, FLUSH, 0, (0, false)), (STATUS_OK, 1));
        assert_eq!(ask(&mem, &disk, IN, 2, (1536, true)), (STATUS_OK, 1537));
        let mut got = [0; 1536];
        mem.read_slice(&mut got, GuestAddress(DATA)).unwrap();
        assert_eq!((got[511], got[512], got[1023], got[1024]), (7, 9, 9, 7));
    }

    #[test]
    fn what_cannot_be_is_an_error_and_what_is_unknown_is_unsupported() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let disk = disk(false);
        assert_eq!(ask(&mem, &disk, IN, 16, (512, true)).0, STATUS_ERROR);
        assert_eq!(ask(&mem, &disk, IN, u64::MAX, (512, true)).0, STATUS_ERROR);
        assert_eq!(ask(&mem, &disk, OUT, 0, (100, false)).0, STATUS_ERROR);
        assert_eq!(ask(&mem, &disk, 99, 0, (512, true)).0, STATUS_UNSUPPORTED);
        assert_eq!(ask(&mem, &disk, DISCARD, 0, (8, false)).0, STATUS_ERROR);
    }

    #[test]
    fn a_chain_without_room_for_the_status_is_given_back_untouched() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let mut queue = queue_of(&mem, &[&[(HEADER, 16, false)]]);
        assert_eq!(
            serve_all(&disk(true), Chain::collect(queue.pop_descriptor_chain(&mem).unwrap(), &mem, 1 << 20).unwrap()),
            0
        );
    }

    use proptest::prelude::*;

    /// A disk in memory that does the same.
    fn expected(model: &mut [u8], kind: u32, at: u64, data: &[u8], segment: (u64, u32, u32)) -> u8 {
        let inside =
            |at: u64, len: u64| at.checked_add(len).filter(|end| *end <= 8192).map(|end| at as usize..end as usize);
        match kind {
            IN => at.checked_mul(512).and_then(|at| inside(at, data.len() as u64)).map_or(STATUS_ERROR, |_| STATUS_OK),
            OUT => match at.checked_mul(512).and_then(|at| inside(at, data.len() as u64)) {
                Some(range) if data.len().is_multiple_of(512) => {
                    model[range].copy_from_slice(data);
                    STATUS_OK
                }
                _ => STATUS_ERROR,
            },
            FLUSH => at.checked_mul(512).map_or(STATUS_ERROR, |_| STATUS_OK),
            DISCARD | WRITE_ZEROES => {
                let (first, sectors, flags) = segment;
                if at.checked_mul(512).is_none() || first.checked_mul(512).is_none() {
                    STATUS_ERROR
                } else if sectors > MAX_DISCARD_SECTORS || flags & !UNMAP != 0 {
                    STATUS_UNSUPPORTED
                } else if sectors == 0 {
                    STATUS_OK
                } else if let Some(range) = inside(first * 512, u64::from(sectors) * 512) {
                    model[range].fill(0);
                    STATUS_OK
                } else {
                    STATUS_ERROR
                }
            }
            _ if at.checked_mul(512).is_none() => STATUS_ERROR,
            _ => STATUS_UNSUPPORTED,
        }
    }

    fn request() -> impl Strategy<Value = (u32, u64, usize, u8, (u64, u32, u32))> {
        let kind =
            prop_oneof![Just(IN), Just(OUT), Just(OUT), Just(FLUSH), Just(DISCARD), Just(WRITE_ZEROES), 14..99_u32];
        let sector = || prop_oneof![8 => 0..18_u64, 1 => any::<u64>()];
        let len = prop_oneof![3 => (0..20_usize).prop_map(|n| n * 512), 1 => 0..9000_usize];
        let sectors = prop_oneof![8 => 0..18_u32, 1 => any::<u32>()];
        let segment = (sector(), sectors, prop_oneof![8 => 0..2_u32, 1 => any::<u32>()]);
        (kind, sector(), len, any::<u8>(), segment)
    }

    fn contents(disk: &Extents, mem: &Mem) -> Vec<u8> {
        assert_eq!(ask(mem, disk, IN, 0, (8192, true)).0, STATUS_OK);
        let mut got = vec![0; 8192];
        mem.read_slice(&mut got, GuestAddress(DATA)).unwrap();
        got
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_requests_leave_what_a_disk_in_memory_would_hold(requests in proptest::collection::vec(request(), 1..30)) {
            let mem = crate::memory::create(32 << 20, false).unwrap();
            let disk = disk(false);
            let mut model = vec![7; 8192];
            for (kind, sector, len, byte, segment) in requests {
                let zeroes = matches!(kind, DISCARD | WRITE_ZEROES);
                let mut data = vec![byte; len];
                if zeroes {
                    data = [&segment.0.to_le_bytes()[..], &segment.1.to_le_bytes(), &segment.2.to_le_bytes()].concat();
                }
                mem.write_slice(&data, GuestAddress(DATA)).unwrap();
                let before = model.clone();
                let expected = expected(&mut model, kind, sector, &data, segment);
                let (status, written) = ask(&mem, &disk, kind, sector, (data.len() as u32, kind == IN));
                if zeroes && expected == STATUS_OK && status == STATUS_UNSUPPORTED {
                    // Not every file system can.
                    model.clone_from(&before);
                } else {
                    prop_assert_eq!(status, expected, "kind {} sector {} len {}", kind, sector, data.len());
                }
                prop_assert_eq!(written, if kind == IN && status == STATUS_OK { data.len() as u32 + 1 } else { 1 });
                let now = contents(&disk, &mem);
                if zeroes && status == STATUS_OK && now == before {
                    // A hint that the host's file system did not take.
                    model = before;
                }
                prop_assert!(now == model, "kind {} sector {} len {}", kind, sector, data.len());
            }
        }
    }
}
