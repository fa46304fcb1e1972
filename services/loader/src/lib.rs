//! The first program of the image that the firmware starts. It starts the boot loader beside it, and restarts the machine when that comes
//! back: the loader returns when the kernel image that it chose is refused (Secure Boot, a damaged file), and firmware then waits for a
//! person. A restart takes one of the entry's tries, until the loader chooses the entry before.
//!
//! ```text
//! firmware ──> this ──> systemd-boot ──> kernel image
//!   ^           │ ^───────refused──────────────┘
//!   └──restart──┘ (a key within ten seconds: back to the firmware, which shows its menu)
//! ```
//!
//! No more than that: no file system, no decision. It is compiled to an object and linked to a PE file by the builder, without relocations
//! and without `core`'s code: nothing here may panic, and what the compiler would make a call of `memcpy` of is written byte by byte.
//! Tables and calls are those of the UEFI Specification 2.10.

#![no_std]
#![allow(unsafe_code)]

mod tables;

use core::ffi::c_void;
use core::ptr::{null, null_mut};
use tables::{Guid, Handle, InputKey, LoadedImage, Status, SystemTable};

const LOADED_IMAGE: Guid = Guid(0x5b1b_31a1, 0x9562, 0x11d2, [0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b]);
const DEVICE_PATH: Guid = Guid(0x0957_6e91, 0x6d3f, 0x11d2, [0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b]);
/// The boot loader, on the partition that this program was loaded from.
static LOADER: [u16; 36] = utf16("\\EFI\\systemd\\systemd-bootx64.efi");
static SAID: [u16; 96] =
    utf16("\r\nkraudbox: nothing was started. Restarting in ten seconds; a key goes to the firmware.\r\n");
/// The longest path of a partition that is taken on, bytes.
const PATH_MAX: usize = 1024;
/// `EfiLoaderData`.
const LOADER_DATA: u32 = 2;
const LOOKS: u32 = 100;
const LOOK_US: usize = 100_000;
const RESET_COLD: u32 = 0;
/// `EFI_NOT_FOUND`.
const NOT_FOUND: Status = (1 << 63) | 14;

/// ASCII as the firmware reads it, with zeroes to the end.
const fn utf16<const N: usize>(text: &str) -> [u16; N] {
    let (bytes, mut out, mut at) = (text.as_bytes(), [0; N], 0);
    while at < bytes.len() {
        out[at] = bytes[at] as u16;
        at += 1;
    }
    // The compiler refuses what has no room for the end.
    assert!(at < N);
    out
}

/// Where the firmware begins.
///
/// # Safety
/// Only the firmware calls it: `system` is its table, valid until boot services end.
#[unsafe(no_mangle)]
pub unsafe extern "efiapi" fn efi_main(image: Handle, system: *const SystemTable) -> Status {
    // SAFETY: as the caller has it.
    let status = unsafe { start(image, system) };
    // SAFETY: as before; the loader came back, so boot services go on.
    if unsafe { key_is_pressed(system) } {
        return if status == 0 { NOT_FOUND } else { status };
    }
    // SAFETY: the firmware's own table and function.
    unsafe { ((*(*system).runtime).reset)(RESET_COLD, 0, 0, null()) };
    status
}

/// Loads and starts the boot loader; comes back only when it does.
unsafe fn start(image: Handle, system: *const SystemTable) -> Status {
    // SAFETY: the firmware's table outlives this program.
    let boot = unsafe { &*(*system).boot };
    let (mut loaded, mut device): (*const c_void, *const c_void) = (null(), null());
    let mut status = (boot.handle_protocol)(image, &raw const LOADED_IMAGE_ID, &raw mut loaded);
    if status != 0 {
        return status;
    }
    // SAFETY: the firmware says that it is the protocol of that name.
    let from = unsafe { (*loaded.cast::<LoadedImage>()).device };
    status = (boot.handle_protocol)(from, &raw const DEVICE_PATH_ID, &raw mut device);
    if status != 0 {
        return status;
    }
    // SAFETY: a device path ends with an end node.
    let length = unsafe { length_before_end(device.cast()) };
    if length > PATH_MAX {
        return NOT_FOUND;
    }
    let mut path: *mut u8 = null_mut();
    status = (boot.allocate)(LOADER_DATA, length + size_of_val(&LOADER) + 8, &raw mut path);
    if status != 0 {
        return status;
    }
    // SAFETY: there is room for exactly that.
    unsafe { write_path(device.cast(), length, path) };
    let mut child: Handle = null_mut();
    status = (boot.load_image)(0, image, path, null(), 0, &raw mut child);
    if status == 0 {
        status = (boot.start_image)(child, null_mut(), null_mut());
    }
    status
}

static LOADED_IMAGE_ID: Guid = LOADED_IMAGE;
static DEVICE_PATH_ID: Guid = DEVICE_PATH;

/// The bytes of a device path (10.2) without its end node; more than [`PATH_MAX`] when it has no end up to there.
unsafe fn length_before_end(path: *const u8) -> usize {
    let mut at = 0;
    while at <= PATH_MAX {
        // SAFETY: nodes follow each other up to the end node, and each has four bytes at least.
        let (kind, low, high) = unsafe { (*path.add(at), *path.add(at + 2), *path.add(at + 3)) };
        let length = usize::from(low) | (usize::from(high) << 8);
        if kind == 0x7f {
            return at;
        }
        if length < 4 {
            break;
        }
        at += length;
    }
    PATH_MAX + 1
}

/// The device's path, the loader's file in it, the end: what the firmware loads an image by.
unsafe fn write_path(device: *const u8, length: usize, to: *mut u8) {
    let mut at = 0;
    let mut put = |byte: u8| {
        // SAFETY: the caller has room for as many bytes as are put. Volatile, so that this does not become a call of memcpy.
        unsafe { to.add(at).write_volatile(byte) };
        at += 1;
    };
    for offset in 0..length {
        // SAFETY: within the device's path.
        put(unsafe { device.add(offset).read_volatile() });
    }
    // A file's name (10.3.5.4), with these four bytes.
    let node = size_of_val(&LOADER) + 4;
    put(4);
    put(4);
    put((node & 0xff) as u8);
    put((node >> 8) as u8);
    for unit in &LOADER {
        put((*unit & 0xff) as u8);
        put((*unit >> 8) as u8);
    }
    put(0x7f);
    put(0xff);
    put(4);
    put(0);
}

/// Says what happens, and whether somebody wants it otherwise.
unsafe fn key_is_pressed(system: *const SystemTable) -> bool {
    // SAFETY: the firmware's tables; a machine may have neither screen nor keyboard.
    let (boot, input, output) = unsafe { (&*(*system).boot, (*system).input, (*system).output) };
    if !output.is_null() {
        // SAFETY: it is not null, so it is the protocol.
        unsafe { ((*output).write)(output, (&raw const SAID).cast()) };
    }
    let mut key = InputKey { scan_code: 0, unicode: 0 };
    let mut looks = 0;
    while looks < LOOKS {
        (boot.stall)(LOOK_US);
        // SAFETY: as above.
        if !input.is_null() && unsafe { ((*input).read_key)(input, &raw mut key) } == 0 {
            return true;
        }
        looks += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PCI node of six bytes, a partition node of 42, the end.
    fn device() -> [u8; 52] {
        let mut path = [0; 52];
        path[..4].copy_from_slice(&[1, 1, 6, 0]);
        path[6..10].copy_from_slice(&[4, 1, 42, 0]);
        path[48..].copy_from_slice(&[0x7f, 0xff, 4, 0]);
        path
    }

    #[test]
    fn the_loaders_path_is_the_devices_with_its_file() {
        let device = device();
        // SAFETY: it has an end node.
        let length = unsafe { length_before_end(device.as_ptr()) };
        assert_eq!(length, 48);
        let mut path = [0xaa; 48 + 72 + 8];
        // SAFETY: there is room for the path, a node and the end.
        unsafe { write_path(device.as_ptr(), length, path.as_mut_ptr()) };
        assert_eq!((&path[..48], &path[48..52]), (&device[..48], &[4, 4, 76, 0][..]));
        assert_eq!((&path[52..60], &path[124..]), (&b"\\\0E\0F\0I\0"[..], &[0x7f, 0xff, 4, 0][..]));
    }

    #[test]
    fn a_path_without_an_end_is_not_followed() {
        let endless = [1u8, 1, 2, 0, 0, 0, 0, 0];
        // SAFETY: a node shorter than its own four bytes ends the walk.
        assert!(unsafe { length_before_end(endless.as_ptr()) } > PATH_MAX);
    }
}
