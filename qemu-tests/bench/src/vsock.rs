//! vsock on the host: where a guest of the peer's sends its log, and how its agent is reached.
#![allow(unsafe_code)]

use anyhow::{Context as _, Result};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

fn socket() -> Result<OwnedFd> {
    // SAFETY: a plain system call; its result is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("make a vsock socket");
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = cid;
    (address, size_of::<libc::sockaddr_vm>() as libc::socklen_t)
}

/// Connects to a guest.
///
/// # Errors
/// When nobody listens there.
pub fn connect(cid: u32, port: u32) -> Result<File> {
    let socket = socket()?;
    let (address, length) = address(cid, port);
    // SAFETY: the pointer is to a sockaddr_vm of the length that is given.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("connect to vsock port {port} of {cid}"));
    }
    Ok(File::from(socket))
}

/// Listens on a port for guests of any kind.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens on `port` (vsock(7)).
    ///
    /// # Errors
    /// When the kernel has no vsock for guests (`vhost_vsock`), or the port is taken.
    pub fn bind(port: u32) -> Result<Self> {
        let socket = socket()?;
        let (address, length) = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the pointer is to a sockaddr_vm of the length that is given.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        // SAFETY: the descriptor is a socket that we own.
        if bound < 0 || unsafe { libc::listen(socket.as_raw_fd(), 64) } < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("listen on vsock port {port}"));
        }
        Ok(Self(socket))
    }

    /// The next connection, as a stream of bytes, and its guest's context id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn accept(&self) -> Result<(File, u32)> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        // SAFETY: the descriptor is a listening socket that we own; the address is a sockaddr_vm of the length that is given.
        let fd = unsafe {
            let address = (&raw mut address).cast();
            libc::accept4(self.0.as_raw_fd(), address, &raw mut length, libc::SOCK_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("accept a guest's connection");
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok((unsafe { File::from_raw_fd(fd) }, address.svm_cid))
    }
}
