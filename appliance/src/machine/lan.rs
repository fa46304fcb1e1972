//! A network for one zone that this computer is not part of: a namespace with a bridge, the zone's tap on it, and a DHCP server.
//!
//! The supervisor moves into the namespace before it makes any thread, and so do QEMU and all else that it starts; the namespace
//! ends with it. Clients of the zone step into it first ([`join`]). Further machines for a test are interfaces on the bridge.
//!
//! ```text
//! namespace of the supervisor:   lan0 (bridge, ROUTER, DHCP) ── zone0 (tap) ── the zone, ZONE
//! ```
//! Nothing is routed from here to any other network. Only root can make such a network.

#![allow(unsafe_code)]

use super::state::{StateDir, Zone};
use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The bridge's own address.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 251, 1);
/// The zone's address: its card always gets this one.
pub const ZONE: Ipv4Addr = Ipv4Addr::new(192, 168, 251, 10);
/// The zone's card.
pub const MAC: &str = "52:54:00:6b:72:61";
/// The zone's end of the cable.
pub const TAP: &str = "zone0";
const BRIDGE: &str = "lan0";

/// Refuses early what would fail later.
///
/// # Errors
/// When this user cannot make networks.
pub fn check() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can make a network for `--lan`: run this as root, or leave `--lan` out");
    }
    Ok(())
}

/// Moves this process into a new network and makes what belongs to it; gives the DHCP server, which ends with this thread.
///
/// Must be called before other threads are made.
///
/// # Errors
/// When the kernel or one of the programs refuses.
pub fn make(dir: &StateDir, tools: &Path) -> Result<Child> {
    // SAFETY: a network namespace has no part in memory or file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("cannot make a network namespace")?;
    // It is static: it needs nothing else of the tree.
    let busybox = tools.join("usr/bin/busybox");
    let address = format!("{ROUTER}/24");
    let steps: [&[&str]; 7] = [
        &["ip", "link", "set", "lo", "up"],
        &["brctl", "addbr", BRIDGE],
        &["ip", "address", "add", &address, "dev", BRIDGE],
        &["ip", "link", "set", BRIDGE, "up"],
        &["tunctl", "-t", TAP],
        &["brctl", "addif", BRIDGE, TAP],
        &["ip", "link", "set", TAP, "up"],
    ];
    for step in steps {
        let output = Command::new(&busybox).args(step).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", busybox.display()))?;
        if !output.status.success() {
            bail!("`{}` failed: {}", step.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    serve_dhcp(dir, &busybox)
}

fn serve_dhcp(dir: &StateDir, busybox: &Path) -> Result<Child> {
    let (config, leases) = (dir.file("dhcp.conf"), dir.file("dhcp.leases"));
    dir.write_secret("dhcp.conf", configuration(&leases).as_bytes())?;
    dir.write_secret("dhcp.leases", b"")?;
    let log = dir.file("dhcp.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(busybox);
    command.args(["udhcpd", "-f"]).arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: one system call between fork and exec; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().context("cannot start the DHCP server")
}

/// udhcpd's file. Cards other than the zone's get addresses from 100 on.
fn configuration(leases: &Path) -> String {
    let [a, b, c, _] = ROUTER.octets();
    format!(
        "interface {BRIDGE}\nstart {a}.{b}.{c}.100\nend {a}.{b}.{c}.199\nmax_leases 100\nlease_file {}\npidfile /dev/null\n\
         static_lease {MAC} {ZONE}\noption subnet 255.255.255.0\noption router {ROUTER}\noption lease 86400\n",
        leases.display()
    )
}

/// Where the network of a zone is; none when it is on this computer's loopback.
#[must_use]
pub fn namespace(zone: &Zone) -> Option<PathBuf> {
    zone.plan.lan.then(|| PathBuf::from(format!("/proc/{}/ns/net", zone.pid)))
}

/// Moves this thread, and all that it makes afterwards, to where the zone can be reached.
///
/// # Errors
/// When this user may not.
pub fn join(zone: &Zone) -> Result<()> {
    let Some(path) = namespace(zone) else { return Ok(()) };
    let enter = || -> std::io::Result<()> {
        let namespace = File::open(&path)?;
        Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
    };
    enter().with_context(|| format!("cannot enter the zone's network {}: only root can", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_always_gets_its_own_address() {
        let text = configuration(Path::new("/state/dhcp.leases"));
        assert!(text.contains("static_lease 52:54:00:6b:72:61 192.168.251.10\n"));
        assert!(text.contains("start 192.168.251.100\n") && text.contains("lease_file /state/dhcp.leases\n"));
    }
}
