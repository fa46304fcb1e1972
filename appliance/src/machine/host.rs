//! What this computer can do: virtualisation, memory, disk space, free ports.

use crate::build::host::free_mib;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Why a zone here is fast or slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// The processor's virtualisation by /dev/kvm.
    Kvm,
    /// Emulation, and why.
    Tcg(String),
}

/// Looks for a usable KVM: the processor says that it has virtualisation **and** /dev/kvm opens. The device alone is not
/// enough: there are paravirtual ones that cannot boot an ordinary kernel.
#[must_use]
pub fn acceleration() -> Acceleration {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    decide(&cpuinfo, opened.map(drop))
}

fn decide(cpuinfo: &str, device: std::io::Result<()>) -> Acceleration {
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    let flag = flags.flat_map(str::split_whitespace).any(|word| word == "vmx" || word == "svm");
    match device {
        _ if !flag => Acceleration::Tcg(
            "the processor shows no vmx or svm: switch virtualisation on in the firmware, or nesting on in the machine below"
                .into(),
        ),
        Ok(()) => Acceleration::Kvm,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Acceleration::Tcg("this user may not open /dev/kvm: `sudo adduser $USER kvm`, and log in again".into())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Acceleration::Tcg("there is no /dev/kvm: `sudo modprobe -a kvm_intel kvm_amd`".into())
        }
        Err(e) => Acceleration::Tcg(format!("cannot open /dev/kvm: {e}")),
    }
}

/// Refuses a machine with more memory than there is.
///
/// # Errors
/// Says how much is free and how to ask for less.
pub fn check_memory(wanted_mib: u32) -> Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available_mib = available_mib(&meminfo).context("/proc/meminfo has no MemAvailable")?;
    if u64::from(wanted_mib) > available_mib {
        bail!(
            "the zone wants {wanted_mib} MiB of memory but only {available_mib} MiB are free: close something or give `--memory` a smaller number"
        );
    }
    Ok(())
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Refuses to start when a directory's file system is nearly full: the zone's disks grow while it runs.
///
/// # Errors
/// Says how much is free and what can be done.
pub fn check_space(dir: &Path, wanted_mib: u64) -> Result<()> {
    let free_mib = free_mib(dir).with_context(|| format!("cannot look at the space in {}", dir.display()))?;
    if free_mib < wanted_mib {
        bail!(
            "{} has {free_mib} MiB free, the zone's disks need at least {wanted_mib}: free some, run `cargo appliance cache gc`, or set XDG_STATE_HOME to another disk",
            dir.display()
        );
    }
    Ok(())
}

/// A port on 127.0.0.1: the one asked for, else `preferred` when it is free, else any free one.
///
/// # Errors
/// When the one asked for is taken; `what` and `flag` are named.
pub fn pick_port(what: &str, flag: &str, asked: Option<u16>, preferred: u16) -> Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|listener| listener.local_addr());
    if let Some(port) = asked {
        return match bind(port) {
            Ok(address) => Ok(address.port()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => bail!(
                "this user may not use port {port} on 127.0.0.1 for {what}: give {flag} one from 1024 on, or leave {flag} out"
            ),
            Err(e) if e.kind() == ErrorKind::AddrInUse => bail!(
                "port {port} on 127.0.0.1 is taken, {what} cannot have it: stop what uses it (`ss -ltnp`), give {flag} another one, or leave {flag} out"
            ),
            Err(e) => Err(e).with_context(|| format!("cannot use port {port} on 127.0.0.1 for {what}")),
        };
    }
    let address =
        bind(preferred).or_else(|_| bind(0)).with_context(|| format!("no free port on 127.0.0.1 for {what}"))?;
    Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_flag_and_the_device() {
        let amd = "processor\t: 0\nflags\t\t: fpu svm sse\n";
        assert_eq!(decide(amd, Ok(())), Acceleration::Kvm);
        assert_eq!(decide("flags : vmx\n", Ok(())), Acceleration::Kvm);
        assert!(matches!(decide("flags : fpu svmx\n", Ok(())), Acceleration::Tcg(why) if why.contains("no vmx")));
        assert!(matches!(decide("bugs : svm\n", Ok(())), Acceleration::Tcg(_)));
        let failed = |kind: ErrorKind| decide(amd, Err(kind.into()));
        assert!(matches!(failed(ErrorKind::PermissionDenied), Acceleration::Tcg(why) if why.contains("adduser")));
        assert!(matches!(failed(ErrorKind::NotFound), Acceleration::Tcg(why) if why.contains("modprobe")));
        assert!(matches!(failed(ErrorKind::OutOfMemory), Acceleration::Tcg(why) if why.contains("/dev/kvm")));
    }

    #[test]
    fn a_taken_port_is_replaced_unless_it_was_asked_for() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = pick_port("the web page", "--web-port", Some(port), 1).unwrap_err();
        assert!(error.to_string().contains(&format!("port {port}")) && error.to_string().contains("--web-port"));
        let other = pick_port("the web page", "--web-port", None, port).unwrap();
        assert_ne!(other, port);
        assert_eq!(pick_port("the web page", "--web-port", Some(other), port).unwrap(), other);
    }

    #[test]
    fn available_memory_is_read_in_mib() {
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:   2097152 kB\n"), Some(2048));
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
        assert!(check_memory(u32::MAX).unwrap_err().to_string().contains("--memory"));
    }

    #[test]
    fn a_disk_that_is_too_small_says_what_to_do() {
        let error = check_space(Path::new("/"), u64::MAX >> 20).unwrap_err();
        assert!(error.to_string().contains("XDG_STATE_HOME"));
    }
}
