//! The end: log closed, file systems clean, machine off.
//!
//! Must not: wait without a bound, or return in a guest.

use crate::agent::Agent;
use crate::console;
use crate::platform::Platform;
use rustix::mount::{UnmountFlags, unmount};
use rustix::system::{RebootCommand, reboot};

/// Closes the log, takes the file systems off, powers off.
pub fn finish(agent: &Agent) -> libc::c_int {
    agent.wait_for_streams();
    agent.log.close();
    for container in agent.containers.values() {
        container.rootfs.unmount();
    }
    off(&agent.platform)
}

/// Powers off; outside of a guest, the process's exit code.
pub fn off(platform: &Platform) -> libc::c_int {
    rustix::fs::sync();
    if !platform.is_guest() {
        // The namespaces' mounts go with them.
        let _ = unmount(platform.base(), UnmountFlags::DETACH);
        return 0;
    }
    if let Err(error) = reboot(RebootCommand::Restart) {
        console::say(&format!("cannot reboot: {error}"));
    }
    loop {
        // A returning PID 1 is a kernel panic; the monitor sees a guest that does nothing and can be stopped.
        std::thread::park();
    }
}
