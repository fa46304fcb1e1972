//! Lets the last partition of a GUID partition table take the rest of its disk (UEFI 2.10, chapter 5.3).
//!
//! An image is smaller than the disk that it is written to: its second table does not lie at the disk's end, and its last
//! partition ends where the image ended. Order of writes: the new second table first, then the first one, so that at any cut one
//! whole table is there (the firmware and the kernel's `gpt` option take the second when the first is torn).

use anyhow::{Result, bail, ensure};
use std::io::{Read, Seek, SeekFrom, Write};

const SECTOR: u64 = 512;
/// Partitions begin and end at multiples of this many sectors: 1 MiB.
const ALIGN: u64 = 2048;
/// More than any table has; the header's own numbers are not trusted.
const ENTRIES_MAX_BYTES: usize = 64 << 10;
const SIGNATURE: &[u8; 8] = b"EFI PART";

/// A partition table, as on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    header: [u8; SECTOR as usize],
    entries: Vec<u8>,
    entry_bytes: usize,
}

impl Table {
    /// Reads and checks the table at a disk's start.
    ///
    /// # Errors
    /// When there is none, or its checksums do not hold.
    pub fn read(disk: &mut (impl Read + Seek)) -> Result<Self> {
        let mut header = [0; SECTOR as usize];
        disk.seek(SeekFrom::Start(SECTOR))?;
        disk.read_exact(&mut header)?;
        ensure!(header.starts_with(SIGNATURE), "there is no GUID partition table");
        let mut table = Self { header, entries: Vec::new(), entry_bytes: 0 };
        let size = table.u32_at(12) as usize;
        ensure!((92..=SECTOR as usize).contains(&size), "its header says that it has {size} bytes");
        ensure!(table.header_crc() == table.u32_at(16), "the checksum of its header does not hold");
        let (count, bytes) = (table.u32_at(80) as usize, table.u32_at(84) as usize);
        let total = count.saturating_mul(bytes);
        ensure!(bytes >= 128 && total <= ENTRIES_MAX_BYTES, "it says that it has {count} entries of {bytes} bytes");
        table.entries = vec![0; total];
        table.entry_bytes = bytes;
        disk.seek(SeekFrom::Start(table.u64_at(72).saturating_mul(SECTOR)))?;
        disk.read_exact(&mut table.entries)?;
        ensure!(crc32(&table.entries) == table.u32_at(88), "the checksum of its entries does not hold");
        Ok(table)
    }

    /// Lets partition `number` end at the end of a disk of `disk_bytes`; returns its new length in bytes, or nothing when it
    /// ends there already.
    ///
    /// # Errors
    /// When the partition is not there or is not the last, or the disk is smaller than the table.
    pub fn grow(&mut self, number: u32, disk_bytes: u64) -> Result<Option<u64>> {
        let disk_sectors = disk_bytes / SECTOR;
        let table_sectors = (self.entries.len() as u64).div_ceil(SECTOR) + 1;
        ensure!(disk_sectors > ALIGN + table_sectors, "the disk is too small");
        let backup = disk_sectors - 1;
        let last_usable = backup - table_sectors;
        ensure!(last_usable >= self.u64_at(48), "the table is for a larger disk");
        let end = (last_usable + 1) / ALIGN * ALIGN - 1;
        let at = (number as usize).saturating_sub(1) * self.entry_bytes;
        let used = |e: &[u8]| e[..16].iter().any(|b| *b != 0);
        let Some(entry) = self.entries.get(at..at + self.entry_bytes).filter(|e| used(e)) else {
            bail!("it has no partition {number}");
        };
        let (first, last) = (u64_of(entry, 32), u64_of(entry, 40));
        ensure!(first <= last, "partition {number} ends before it begins");
        let later = self.entries.chunks(self.entry_bytes).any(|e| used(e) && u64_of(e, 32) > last);
        ensure!(!later, "partition {number} is not the last");
        if end <= last {
            return Ok(None);
        }
        self.entries[at + 40..at + 48].copy_from_slice(&end.to_le_bytes());
        self.header[32..40].copy_from_slice(&backup.to_le_bytes());
        self.header[48..56].copy_from_slice(&last_usable.to_le_bytes());
        Ok(Some((end - first + 1) * SECTOR))
    }

    /// Writes both tables; `flush` makes what was written durable.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub fn write<D: Write + Seek>(
        &self,
        disk: &mut D,
        mut flush: impl FnMut(&mut D) -> std::io::Result<()>,
    ) -> Result<()> {
        let backup = self.u64_at(32);
        let entries_sectors = (self.entries.len() as u64).div_ceil(SECTOR);
        for (own, other, entries) in [(backup, 1, backup - entries_sectors), (1, backup, self.u64_at(72))] {
            let mut table = self.clone();
            table.header[24..32].copy_from_slice(&own.to_le_bytes());
            table.header[32..40].copy_from_slice(&other.to_le_bytes());
            table.header[72..80].copy_from_slice(&entries.to_le_bytes());
            table.header[88..92].copy_from_slice(&crc32(&self.entries).to_le_bytes());
            let crc = table.header_crc();
            table.header[16..20].copy_from_slice(&crc.to_le_bytes());
            disk.seek(SeekFrom::Start(entries * SECTOR))?;
            disk.write_all(&table.entries)?;
            disk.seek(SeekFrom::Start(own * SECTOR))?;
            disk.write_all(&table.header)?;
            flush(disk)?;
        }
        Ok(())
    }

    fn header_crc(&self) -> u32 {
        let mut header = self.header;
        header[16..20].fill(0);
        crc32(&header[..(self.u32_at(12) as usize).min(header.len())])
    }

    fn u32_at(&self, at: usize) -> u32 {
        self.header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64_of(&self.header, at)
    }
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The checksum of the table (CRC-32 of IEEE 802.3); a few kilobytes once in a machine's life, so no table is made for it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A disk with two partitions, made by hand: from sector 2048 and from 4096, each 1 MiB.
    fn disk(bytes: u64) -> Cursor<Vec<u8>> {
        let mut entries = vec![0; 128 * 128];
        for (n, first) in [2048_u64, 4096].into_iter().enumerate() {
            let entry = &mut entries[n * 128..][..128];
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&(first + 2047).to_le_bytes());
        }
        let mut header = [0; 512];
        header[..8].copy_from_slice(SIGNATURE);
        for (at, value) in [(12, 92_u32), (80, 128), (84, 128)] {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let image_end = 8192_u64;
        for (at, value) in [(24, 1_u64), (32, image_end - 1), (40, 34), (48, image_end - 34), (72, 2)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let mut disk = Cursor::new(vec![0; usize::try_from(bytes).unwrap()]);
        Table { header, entries, entry_bytes: 128 }.write(&mut disk, |_| Ok(())).unwrap();
        disk
    }

    #[test]
    fn the_last_partition_takes_the_rest_and_both_tables_hold() {
        let mut disk = disk(16 << 20);
        let mut table = Table::read(&mut disk).unwrap();
        let length = table.grow(2, 16 << 20).unwrap().unwrap();
        assert_eq!(length, (16 << 20) - (2 << 20) - (1 << 20), "to the last whole mebibyte before the second table");
        let mut flushes = 0;
        table
            .write(&mut disk, |_| {
                flushes += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(flushes, 2);
        let mut again = Table::read(&mut disk).unwrap();
        assert_eq!(again.grow(2, 16 << 20).unwrap(), None, "it ends there already");
        let second = &disk.get_ref()[(16 << 20) - 512..];
        assert_eq!(&second[..8], SIGNATURE);
        assert_eq!(u64_of(second, 24), (16 << 20) / 512 - 1);
        assert_eq!(u64_of(second, 72), (16 << 20) / 512 - 33);
    }

    #[test]
    fn only_the_last_partition_grows_and_never_past_the_disk() {
        let mut table = Table::read(&mut disk(16 << 20)).unwrap();
        assert!(table.grow(1, 16 << 20).unwrap_err().to_string().contains("not the last"));
        assert!(table.grow(3, 16 << 20).unwrap_err().to_string().contains("no partition 3"));
        assert!(table.grow(2, 2 << 20).unwrap_err().to_string().contains("larger disk"));
        assert!(table.grow(2, 0).is_err());
    }

    #[test]
    fn a_partition_that_ends_before_it_begins_does_not_grow() {
        let mut table = Table::read(&mut disk(16 << 20)).unwrap();
        let second = 128 + 32;
        table.entries[second..second + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(table.grow(2, 16 << 20).unwrap_err().to_string().contains("ends before it begins"));
    }

    #[test]
    fn a_torn_table_is_not_taken() {
        let whole = disk(16 << 20);
        for at in [512 + 40, 1024 + 130] {
            let mut torn = whole.clone();
            torn.get_mut()[at] ^= 1;
            assert!(Table::read(&mut torn).is_err(), "byte {at}");
        }
        assert!(Table::read(&mut Cursor::new(vec![0; 4096])).is_err());
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
