//! Device-mapper devices by the kernel's own interface (Linux: `include/uapi/linux/dm-ioctl.h`): no program and no udev.
//!
//! A device that is made here is `/dev/dm-MINOR`, which devtmpfs makes; nothing makes `/dev/mapper/NAME`.

#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl};
use std::fs::File;
use std::path::PathBuf;

const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`.
const HEADER_BYTES: usize = 312;
/// `struct dm_target_spec`.
const TARGET_BYTES: usize = 40;
const REQUEST_BYTES: usize = 4096;
/// Room for the parameters and the zero that ends them.
const PARAMETERS_MAX: usize = REQUEST_BYTES - HEADER_BYTES - TARGET_BYTES - 1;
const READ_ONLY: u32 = 1;

/// `_IOWR(0xfd, number, struct dm_ioctl)`.
const fn opcode(number: u32) -> u32 {
    (3 << 30) | ((HEADER_BYTES as u32) << 16) | (0xfd << 8) | number
}
const CREATE: u32 = opcode(3);
const REMOVE: u32 = opcode(4);
/// Without a flag it resumes: the loaded table becomes the device's.
const RESUME: u32 = opcode(6);
const LOAD: u32 = opcode(9);

/// One request and the kernel's answer to it.
#[repr(C, align(8))]
struct Request([u8; REQUEST_BYTES]);

impl Request {
    fn new(name: &str, flags: u32) -> Result<Self> {
        ensure!(name.len() < 128, "the name {name} is too long for a device");
        let mut request = Self([0; REQUEST_BYTES]);
        for (at, value) in [(0, 4), (12, REQUEST_BYTES as u32), (16, HEADER_BYTES as u32), (28, flags)] {
            request.put(at, &value.to_ne_bytes());
        }
        request.put(48, name.as_bytes());
        Ok(request)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The table of one target that fills the whole device.
    fn table(mut self, sectors: u64, target: &str, parameters: &str) -> Result<Self> {
        ensure!(target.len() < 16 && parameters.len() <= PARAMETERS_MAX, "a table of {target} is too long");
        self.put(20, &1_u32.to_ne_bytes());
        self.put(HEADER_BYTES + 8, &sectors.to_ne_bytes());
        self.put(HEADER_BYTES + 24, target.as_bytes());
        self.put(HEADER_BYTES + TARGET_BYTES, parameters.as_bytes());
        Ok(self)
    }

    fn send<const OPCODE: u32>(&mut self, control: &File) -> rustix::io::Result<()> {
        // SAFETY: the opcode is one of this file's, all of which take a `struct dm_ioctl` at the beginning of a buffer whose length
        // stands in its `data_size`; the kernel reads and writes no more than that, which is the length of this array.
        unsafe { ioctl(control, Updater::<OPCODE, Request>::new(self)) }
    }

    /// The minor number in the answer, as the kernel packs it (`huge_encode_dev`).
    fn minor(&self) -> u32 {
        let dev = self.0[40..44].try_into().map_or(0, u32::from_ne_bytes);
        (dev & 0xff) | ((dev >> 12) & 0xf_ff00)
    }
}

/// Makes a read-only device of one target; gives its node.
///
/// # Errors
/// When the kernel refuses the table, or has a device of that name. Nothing is left behind then.
pub fn create_read_only(name: &str, sectors: u64, target: &str, parameters: &str) -> Result<PathBuf> {
    let control = open()?;
    let mut table = Request::new(name, READ_ONLY)?.table(sectors, target, parameters)?;
    let mut create = Request::new(name, READ_ONLY)?;
    create.send::<CREATE>(&control).with_context(|| format!("cannot make the device {name}"))?;
    let node = PathBuf::from(format!("/dev/dm-{}", create.minor()));
    let loaded = table
        .send::<LOAD>(&control)
        .and_then(|()| Request::new(name, 0).map_or(Err(Errno::INVAL), |mut request| request.send::<RESUME>(&control)));
    if let Err(error) = loaded {
        let _ = remove(name);
        return Err(error).with_context(|| format!("the kernel refuses the table of {name}: {target} {parameters}"));
    }
    Ok(node)
}

/// Removes a device that nothing uses.
///
/// # Errors
/// When it is in use or not there.
pub fn remove(name: &str) -> Result<()> {
    Request::new(name, 0)?.send::<REMOVE>(&open()?).with_context(|| format!("cannot remove the device {name}"))
}

fn open() -> Result<File> {
    File::options().read(true).write(true).open(CONTROL).with_context(|| format!("cannot open {CONTROL}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lies_where_the_kernel_looks_for_it() {
        let request = Request::new("root", READ_ONLY).unwrap().table(80, "verity", "1 a b").unwrap();
        let number = |at: usize| u32::from_ne_bytes(request.0[at..at + 4].try_into().unwrap());
        assert_eq!((number(0), number(12), number(16), number(20), number(28)), (4, 4096, 312, 1, 1));
        assert_eq!(&request.0[48..53], b"root\0");
        assert_eq!(request.0[320..328], 80_u64.to_ne_bytes());
        assert_eq!(&request.0[336..343], b"verity\0");
        assert_eq!(&request.0[352..358], b"1 a b\0");
        assert_eq!(LOAD, 0xc138_fd09);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Request::new(&"n".repeat(128), 0).is_err());
        let table = |length: usize| Request::new("n", 0).unwrap().table(1, "verity", &"p".repeat(length));
        assert!(table(PARAMETERS_MAX).is_ok());
        assert!(table(PARAMETERS_MAX + 1).is_err());
    }

    #[test]
    fn large_minor_numbers_are_unpacked() {
        let mut request = Request::new("n", 0).unwrap();
        // Major 254, minor 0x12345.
        request.put(40, &((0x45_u32) | (254 << 8) | (0x123 << 20)).to_ne_bytes());
        assert_eq!(request.minor(), 0x1_2345);
    }
}
