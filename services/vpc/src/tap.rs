//! Makes taps (Linux: Documentation/networking/tuntap.rst): persistent, so that they outlive us, and owned by the user that
//! may open them.

#![allow(unsafe_code)]

use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// The device that holds the gateways' addresses; a tap that nobody opens.
pub const GATEWAYS: &str = "kraud0";

/// The name of an endpoint's tap: `t` and twelve hexadecimal digits.
#[must_use]
pub fn name(endpoint: &str) -> String {
    let hash = Sha256::digest(endpoint.as_bytes());
    hash[..6].iter().fold("t".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// Whether a device's name is one that [`name`] makes.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.len() == 13
        && name.starts_with('t')
        && name.bytes().skip(1).all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Opens a tap, which makes it when it is not there. It is gone when the file is closed, unless it is persistent.
///
/// # Errors
/// `EBUSY` when somebody has it open, `EPERM` without CAP_NET_ADMIN.
pub fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name {name} is too long for a device")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// Makes a persistent tap that `owner` may open.
///
/// # Errors
/// As [`open`].
pub fn create(name: &str, owner: u32) -> io::Result<()> {
    let file = open(name)?;
    set(&file, libc::TUNSETOWNER, owner.into())?;
    set(&file, libc::TUNSETPERSIST, 1)
}

fn set(file: &File, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests take a number, not a pointer; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_recognised() {
        let name = name(&format!("{}.{}", "a".repeat(64), "b".repeat(64)));
        assert!(name.len() <= 15 && is_ours(&name), "{name}");
        for other in ["tun0", "tap0", "tailscale0000", "t12345678901g", "kraud0", ""] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
