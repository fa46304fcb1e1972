//! The MP table: how the kernel learns of processors and interrupt lines without ACPI.
//!
//! Source: Intel MultiProcessor Specification 1.4, chapter 4. One ISA bus; each line of the I/O APIC is the ISA line of the
//! same number, edge triggered.

use crate::memory::Mem;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

/// Lines of the I/O APIC.
pub const LINES: u8 = 24;
/// The kernel looks for the pointer from here on.
const POINTER: u64 = 0xf_0000;
const TABLE: u64 = POINTER + 16;
const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

/// Writes pointer and table.
///
/// # Errors
/// When the memory is smaller than a megabyte.
pub fn write(mem: &Mem, vcpus: u8) -> Result<(), GuestMemoryError> {
    mem.write_slice(&table(vcpus), GuestAddress(TABLE))?;
    mem.write_slice(&pointer(), GuestAddress(POINTER))
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn pointer() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&(TABLE as u32).to_le_bytes());
    bytes[8] = 1; // length in paragraphs
    bytes[9] = 4; // revision
    bytes[10] = checksum(&bytes);
    bytes
}

fn table(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries: Vec<u8> = Vec::new();
    let mut count: u16 = 0;
    for id in 0..vcpus {
        let flags = 1 | if id == 0 { 2 } else { 0 }; // enabled, boot processor
        entries.extend([0, id, LOCAL_APIC_VERSION, flags]);
        entries.extend([0x00, 0x06, 0, 0]); // signature
        entries.extend(0x201u32.to_le_bytes()); // features: FPU, APIC
        entries.extend([0; 8]);
        count += 1;
    }
    entries.extend([1, 0]);
    entries.extend(b"ISA   ");
    entries.extend([2, io_apic_id, IO_APIC_VERSION, 1]);
    entries.extend(IO_APIC.to_le_bytes());
    count += 2;
    for line in 0..LINES {
        // interrupt, vectored; polarity and trigger as the bus has them
        entries.extend([3, 0, 0, 0, 0, line, io_apic_id, line]);
        count += 1;
    }
    entries.extend([4, 3, 0, 0, 0, 0, 0, 0]); // external interrupts at LINT0 of the first
    entries.extend([4, 1, 0, 0, 0, 0, 0xff, 1]); // NMI at LINT1 of all
    count += 2;

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend(b"PCMP");
    table.extend((44 + entries.len() as u16).to_le_bytes());
    table.extend([4, 0]); // revision, checksum
    table.extend(b"KRAUD   ");
    table.extend(b"CRADLE      ");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointer_and_table_sum_to_zero_and_the_table_has_its_length() {
        for vcpus in [1, 2, 64] {
            let table = table(vcpus);
            assert_eq!(table.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        }
        assert_eq!(pointer().iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    }

    #[test]
    fn walking_the_entries_finds_each_processor_and_line_once() {
        let table = table(3);
        let (mut at, mut kinds) = (44, [0; 5]);
        while at < table.len() {
            let kind = usize::from(table[at]);
            kinds[kind] += 1;
            at += if kind == 0 { 20 } else { 8 };
        }
        assert_eq!(at, table.len());
        assert_eq!(kinds, [3, 1, 1, usize::from(LINES), 2]);
        assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), kinds.iter().sum::<usize>());
    }
}
