//! What the machine reads of its own disks before anything runs: a stranger may have written them.

use crate::input::Input;
use ::boot::bundle::{About, Machine};
use ::boot::gpt::Table;
use ::boot::luks::{Content, look};
use ::boot::verity::{SUPERBLOCK_BYTES, Superblock};
use ::boot::version::Version;
use sha2::{Digest as _, Sha256};
use std::io::{Cursor, Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};

/// A disk that ends: what lies behind cannot be read or written.
struct Disk(Cursor<Vec<u8>>);

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.0.seek(to)
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let room = (self.0.get_ref().len() as u64).saturating_sub(self.0.position());
        if room < bytes.len() as u64 {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A partition table whose checksums hold: it grows to the disk's end or not at all, and what is written is read again.
pub fn gpt(data: &[u8]) {
    let mut input = Input::new(data);
    let (odd, number) = (input.byte(), u32::from(input.byte() % 5));
    let sectors = 4200 + u64::from(input.word() & 0x1fff);
    let disk_bytes = if odd & 1 == 0 { sectors * 512 } else { input.quad() };
    let mut disk = vec![0; sectors as usize * 512];
    let (count, bytes) = if odd & 2 == 0 { (4, 128) } else { (input.double() & 0x3ff, input.double() & 0x3ff) };
    let last_usable = if odd & 4 == 0 { 2100 } else { input.quad() };
    let at = if odd & 8 == 0 { 2 } else { input.quad() };
    let total = count as usize * bytes as usize;
    let entries: Vec<u8> = (0..count)
        .flat_map(|_| {
            let mut entry = vec![0; bytes as usize];
            let used = input.byte();
            let (first, last) =
                if used & 2 == 0 { (input.word().into(), input.word().into()) } else { (input.quad(), input.quad()) };
            for (at, value) in [(0, u64::from(used & 1)), (32, first), (40, last)] {
                if let Some(place) = entry.get_mut(at..at + 8) {
                    place.copy_from_slice(&u64::to_le_bytes(value));
                }
            }
            entry
        })
        .collect();
    let mut header = [0u8; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&if odd & 16 == 0 { 92 } else { u32::from(input.word()) }.to_le_bytes());
    header[48..56].copy_from_slice(&last_usable.to_le_bytes());
    header[72..80].copy_from_slice(&at.to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&bytes.to_le_bytes());
    header[88..92].copy_from_slice(&crc(&entries).to_le_bytes());
    let size = usize::from(u16::from_le_bytes([header[12], header[13]])).min(512);
    let sum = crc(&header[..size.max(20)]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk[512..1024].copy_from_slice(&header);
    if let Some(place) =
        usize::try_from(at.saturating_mul(512)).ok().and_then(|at| disk.get_mut(at..at.checked_add(total)?))
    {
        place.copy_from_slice(&entries);
    }
    let mut disk = Disk(Cursor::new(disk));
    let Ok(mut table) = Table::read(&mut disk) else { return };
    if let Ok(Some(grown)) = table.grow(number, disk_bytes) {
        assert!(grown <= disk_bytes);
        if table.write(&mut disk, |_| Ok(())).is_ok() {
            let again = Table::read(&mut disk);
            assert!(again.is_ok(), "a table that was written does not hold");
        }
    }
}

/// The header of an encrypted device: what is ours and has no key gets one, and has it then.
pub fn luks(data: &[u8]) {
    let mut input = Input::new(data);
    let odd = input.byte();
    let size: usize = if odd & 1 == 0 { 16384 } else { usize::from(input.word()) * 64 };
    let mut header = vec![0; size.max(4096)];
    header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    header[8..16].copy_from_slice(&(size as u64).to_be_bytes());
    header[16..24].copy_from_slice(&input.quad().to_be_bytes());
    header[208..213].copy_from_slice(b"kraud");
    let text = input.rest();
    let room = header.len() - 4096;
    header[4096..4096 + text.len().min(room)].copy_from_slice(&text[..text.len().min(room)]);
    let mut hash = Sha256::new();
    hash.update(&header[..448]);
    hash.update([0; 64]);
    hash.update(&header[512..]);
    header[448..480].copy_from_slice(&hash.finalize());
    header.resize(header.len() * 2, 0);
    let mut disk = Disk(Cursor::new(header));
    if let Ok(Content::Unfinished(found)) = look(&mut disk)
        && found.finish(b"key", &mut disk, |_| Ok(())).is_ok()
    {
        assert!(matches!(look(&mut disk), Ok(Content::Open(key)) if key == b"key"));
    }
}

/// What an update says of itself, versions, and the superblock of a hash tree.
pub fn texts(data: &[u8]) {
    let machine = |version| Machine { version, channel: "stable".into(), now: 1000 };
    let text = String::from_utf8_lossy(data);
    if let Ok(version) = Version::parse(&text) {
        assert_eq!(Version::parse(&version.to_string()).ok(), Some(version));
    }
    if let (Ok(about), Ok(none)) = (serde_json::from_slice::<About>(data), Version::parse("0"))
        && let Ok(version) = about.check(&machine(none.clone()))
    {
        assert!(version > none);
    }
    let mut block = [0; SUPERBLOCK_BYTES];
    let length = data.len().min(SUPERBLOCK_BYTES);
    block[..length].copy_from_slice(&data[..length]);
    if let Ok(superblock) = Superblock::parse(&block) {
        assert!(superblock.sectors().is_some());
    }
}
