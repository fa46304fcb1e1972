//! `kcradle doctor`: what this machine lacks to run microVMs, and what each lack costs.
//!
//! Looks only; what it tries, it tries in a child that ends.

use crate::jail;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;

/// How one thing stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Good(String),
    /// What is wrong, and what it costs.
    Poor(String, &'static str),
    /// Nothing runs without it.
    Missing(String, &'static str),
}

/// Writes what it finds; gives the exit code: 0 when guests can run, else 1.
///
/// # Errors
/// When it cannot write.
pub fn doctor(mut out: impl Write) -> Result<u8> {
    let findings = [processor(), kvm(), tun(), jail(), control_groups(), huge_pages(), descriptors()];
    for finding in &findings {
        let line = match finding {
            Finding::Good(what) => format!("ok       {what}"),
            Finding::Poor(what, cost) => format!("lacks    {what}: {cost}"),
            Finding::Missing(what, cost) => format!("MISSING  {what}: {cost}"),
        };
        writeln!(out, "{line}").context("cannot write")?;
    }
    Ok(u8::from(findings.iter().any(|finding| matches!(finding, Finding::Missing(..)))))
}

fn processor() -> Finding {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.lines().any(|line| line.starts_with("flags") && line.split(' ').any(|f| f == flag));
    match (has("vmx"), has("svm")) {
        (false, false) => Finding::Missing(
            "the processor's virtualization (vmx or svm)".into(),
            "turn it on in the firmware, or in the machine that this one is a guest of; a /dev/kvm without it does not run Linux",
        ),
        (vmx, _) => Finding::Good(format!("the processor has {}", if vmx { "vmx" } else { "svm" })),
    }
}

fn kvm() -> Finding {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Finding::Good("/dev/kvm opens".into()),
        Err(error) => Finding::Missing(
            format!("/dev/kvm ({error})"),
            "load kvm-amd or kvm-intel, and let this user open it (group kvm)",
        ),
    }
}

fn tun() -> Finding {
    match fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::Good("/dev/net/tun opens".into()),
        Err(error) => Finding::Poor(format!("/dev/net/tun ({error})"), "guests have no network"),
    }
}

/// Goes in with a child, which leaves what was missing as its exit code.
fn jail() -> Finding {
    // SAFETY: this process has one thread; the child makes system calls, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = jail::enter(false)
            .map_or(3, |lacks| i32::from(lacks.namespaces.is_some()) | i32::from(lacks.landlock.is_some()) << 1);
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `child` is the child just made, `status` is written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    let code = if child > 0 && waited == child && libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 3 };
    match code {
        0 => Finding::Good("the jail is complete: namespaces, Landlock, system call filters".into()),
        1 => Finding::Poor(
            "user namespaces for this user".into(),
            "a monitor keeps its view of the file system; filters and Landlock still refuse to open anything. \
             See kernel.unprivileged_userns_clone, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns",
        ),
        2 => Finding::Poor(
            "Landlock".into(),
            "one layer less; namespaces and filters still hold. Put landlock into the kernel's lsm= parameter",
        ),
        _ => Finding::Poor("user namespaces and Landlock".into(), "system call filters alone are the jail"),
    }
}

fn control_groups() -> Finding {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    match mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        None => Finding::Poor("control groups, version 2".into(), "nothing limits a monitor's memory and tasks"),
        Some(line) if !line.contains("favordynmods") => Finding::Poor(
            "favordynmods on /sys/fs/cgroup".into(),
            "where KVM makes a worker for each machine, its move into the control group can take 20 ms of a start; \
             mount -o remount,favordynmods /sys/fs/cgroup",
        ),
        Some(_) => Finding::Good("control groups, with favordynmods".into()),
    }
}

fn huge_pages() -> Finding {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if setting.contains("[madvise]") || setting.contains("[always]") {
        Finding::Good("huge pages for guests' memory".into())
    } else {
        Finding::Poor("transparent huge pages (madvise)".into(), "many more page faults at a guest's start")
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < 2048 => Finding::Poor(
            format!("descriptors: the limit is {limit}, not 2048"),
            "fewer connections to a guest's agent",
        ),
        _ => Finding::Good("enough descriptors".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_look_has_a_line_and_only_what_is_missing_fails() {
        let mut out = Vec::new();
        let code = doctor(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 7, "{text}");
        assert_eq!(code == 1, text.contains("MISSING"), "{text}");
    }
}
