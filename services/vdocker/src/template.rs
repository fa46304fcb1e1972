//! A guest that was made ready beforehand: asks the monitor for its orders, and becomes what they say ([`zone::template`]).
//!
//! All guests of a template go on from the same instruction with the same memory. So nothing of a container, and nothing
//! random that counts, may come before [`orders`]; and what the monitor could not know then is made good here: the random
//! number generator gets a seed of its own, the devices are bound to their drivers.

use crate::{console, devices};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use zone::template::{MARK, Orders, PAGE, PAGES, SEED, SLOTS, WORD, mark};

/// `RNDADDENTROPY`, `_IOW('R', 0x03, int[2])`, and `RNDRESEEDCRNG`, `_IO('R', 0x07)` (random(4)).
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

/// Whether this boot makes a template.
pub fn is_wanted() -> bool {
    std::env::var_os(WORD).is_some()
}

/// Stops here for the template; goes on in each of its guests, with the guest's orders.
///
/// # Errors
/// When there is no memory for them, or nobody has written any.
pub fn orders() -> io::Result<Orders> {
    let mut pages = Pages::map()?;
    for (number, page) in (0..).zip(pages.bytes().chunks_mut(PAGE)) {
        page[..MARK].copy_from_slice(&mark(number));
    }
    // The driver finds the slot empty once more; before that, the monitor has seen it look.
    let _ = devices::bind(SLOTS as u8 - 1);
    Orders::decode(pages.bytes()).ok_or_else(|| io::Error::other("the monitor has written no orders"))
}

/// Pages of memory of this process alone, each with content of its own.
struct Pages(*mut libc::c_void);

impl Pages {
    const LENGTH: usize = PAGES * PAGE;

    fn map() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping, nothing is replaced.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), Self::LENGTH, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(start)) }
    }

    /// Also the monitor writes here, but only during the system call that asks for it.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has this length, can be read and written, lives as long as `self`, and the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), Self::LENGTH) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's and nobody borrows from it any more.
        unsafe { libc::munmap(self.0, Self::LENGTH) };
    }
}

/// Makes this guest another than its template's other guests.
///
/// # Errors
/// When the random number generator takes no seed: then nothing may run that believes in it.
pub fn become_one(orders: &Orders) -> io::Result<()> {
    reseed(&orders.seed)?;
    for slot in 0..orders.devices {
        if let Err(error) = devices::bind(slot) {
            console::say(&format!("cannot bind the device in slot {slot}: {error}"));
        }
    }
    Ok(())
}

#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; SEED],
}

fn reseed(seed: &[u8; SEED]) -> io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/urandom")?;
    let (bytes, bits) = (SEED as libc::c_int, SEED as libc::c_int * 8);
    let entropy = Entropy { bits, bytes, seed: *seed };
    // SAFETY: the structure is rand_pool_info with as many bytes as it says, and lives.
    crate::sys::check(unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const entropy) })?;
    // SAFETY: takes no argument.
    crate::sys::check(unsafe { libc::ioctl(device.as_raw_fd(), RESEED) })?;
    Ok(())
}
