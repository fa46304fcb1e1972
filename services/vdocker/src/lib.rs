//! The agent in a pod's guest: PID 1, starts the containers' processes, carries their output to the host, answers HTTP.
//!
//! Owns: the order of the boot and of the power-off. Everything that a container needs is done before its process
//! starts, everything else after.
//!
//! Must not: panic (the kernel would), wait without a bound on anything but the containers themselves, or give a
//! container a way to the host: whatever runs in the guest is already a stranger's.
//!
//! Invariants: `exited` or `failed` is the last record of a container; the log stream is closed by the monitor before
//! the guest powers off; no child process is ever reaped by anyone but the thread that owns it.

//!
//! Public is [`run`], and what takes a stranger's bytes: the fuzz targets are its only other user.

#![allow(unsafe_code)]

mod agent;
pub mod archive;
mod attach;
mod boot;
mod caps;
mod cgroup;
mod changes;
mod child;
mod console;
pub mod container;
pub mod detach;
mod devices;
pub mod exec;
mod health;
pub mod http;
pub mod inroot;
mod log;
mod net;
pub mod output;
pub mod platform;
mod power;
mod process;
mod program;
mod pump;
mod relay;
mod rootfs;
pub mod signals;
mod stats;
mod sys;
mod template;
mod top;
pub mod user;
mod volumes;

use platform::Platform;
use std::time::Duration;

/// How long a container runs before its guest begins to give free memory back.
const BALLOON_DELAY: Duration = Duration::from_secs(1);

/// Boots, waits for the containers, powers off. Returns only outside of a guest.
pub fn run() -> libc::c_int {
    // The arguments come from the C library's start code, which runs before this.
    let mut args = std::env::args_os().skip(1);
    let platform = match (args.next(), args.next()) {
        (Some(flag), Some(dir)) if flag == "--namespaces" => Platform::namespaces(dir.into()),
        _ => Platform::guest(),
    };
    sys::ignore_sigpipe();
    match boot::boot(platform) {
        Ok(agent) => {
            // A container that is over at once pays nothing for memory that it would give back.
            if agent.platform.is_guest() && agent.still_runs_after(BALLOON_DELAY) {
                devices::bind_balloon();
            }
            agent.wait_for_containers();
            power::finish(&agent)
        }
        Err(error) => {
            console::error(&error);
            power::off(&error.platform)
        }
    }
}
