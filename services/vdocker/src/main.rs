//! The agent's program; all of it is in the library.

#![allow(unsafe_code)]
// Rust's own start-up opens /dev/null when a standard descriptor is closed, and aborts when there is no /dev yet.
#![cfg_attr(not(test), no_main)]

/// The C library's entry.
#[cfg(not(test))]
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    vdocker::run()
}
