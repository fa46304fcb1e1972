//! Signals as values: blocked in every thread, taken by one thread that waits for them.

#![allow(unsafe_code)]

use anyhow::{Context, Result};
use std::sync::mpsc::Sender;

pub use libc::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGWINCH};

/// Blocks `signals` in this thread and all that it starts, and sends each that comes, made into `T`, to `to`. Programs that are
/// started afterwards get them unblocked (`std::process` sees to that).
///
/// Must be called before other threads are made.
///
/// # Errors
/// When the kernel refuses a signal or a thread.
pub fn forward<T: Send + 'static>(
    signals: &[i32],
    to: Sender<T>,
    make: impl Fn(i32) -> T + Send + 'static,
) -> Result<()> {
    // SAFETY: an all-zero sigset_t is a valid value to hand to sigemptyset.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live local of the right type.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: as above; a number that is no signal is answered with an error.
        let added = unsafe { libc::sigaddset(&raw mut set, *signal) };
        if added != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot wait for signal {signal}"));
        }
    }
    // SAFETY: the set is initialised, and the old mask is not asked for.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(std::io::Error::from_raw_os_error(blocked)).context("cannot block signals");
    }
    let wait = move || {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to live locals; the set was initialised above.
            let waited = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
            if waited == 0 && to.send(make(signal)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot make a thread")?;
    Ok(())
}
