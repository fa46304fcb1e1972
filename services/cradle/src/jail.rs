//! The jail that the process goes into when it has everything it needs, before it has threads.
//!
//! ```text
//!  user namespace of its own, nobody mapped ─> mount namespace: an empty read-only root ─> no capabilities, none to gain
//!  Landlock without a rule: no file, no TCP, no abstract socket, no signal to others ─> not dumpable ─> seccomp, by thread
//! ```
//! What stays are open descriptors. Namespaces and Landlock are what a host may lack: then the caller says so, or, when it was
//! asked to be strict, does not start. System call filters are the threads' own ([`crate::seccomp`]).

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::process::{chdir, chroot, pivot_root};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::io;

/// Where the empty root is mounted first; one of them is there on any host.
const PLACES: [&str; 4] = ["/tmp", "/proc", "/sys", "/dev"];

/// All that Landlock knows of files up to version 6, and of versions before: as many of the bits as the kernel takes.
const FILE_RIGHTS: [u64; 4] = [(1 << 16) - 1, (1 << 15) - 1, (1 << 14) - 1, (1 << 13) - 1];
/// Binding and connecting TCP sockets.
const NET_RIGHTS: u64 = 3;
/// Abstract unix sockets and signals to processes outside.
const SCOPES: u64 = 3;

/// What of the jail this host does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Why there are no namespaces.
    pub namespaces: Option<String>,
    /// Why there is no Landlock.
    pub landlock: Option<String>,
}

/// Goes in. `strict`: fails where the host lacks something.
///
/// # Errors
/// When it cannot, and must.
pub fn enter(strict: bool) -> Result<Lacks> {
    let namespaces = leave_all_paths().err().map(|error| format!("{error:#}"));
    no_new_privileges().context("cannot give up new privileges")?;
    let landlock = landlock().err().map(|error| error.to_string());
    // Last: a change of credentials sets it anew.
    hide_memory();
    let lacks = Lacks { namespaces, landlock };
    if strict && let Some(why) = lacks.namespaces.as_ref().or(lacks.landlock.as_ref()) {
        bail!("this host has no complete jail, and an incomplete one is refused: {why}");
    }
    Ok(lacks)
}

/// An empty root in namespaces of our own.
fn leave_all_paths() -> Result<()> {
    // SAFETY: no descriptor table is unshared, so nothing that others rely on is closed; the process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .context("no user namespace")?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let place = PLACES.iter().find(|place| mount("none", **place, "tmpfs", flags, Some(c"size=4k,mode=0555")).is_ok());
    let place = place.context("no place for an empty root")?;
    chdir(*place).context("cannot enter the empty root")?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?,
        // A host that runs from its initramfs cannot pivot: the empty root goes on top.
        Err(rustix::io::Errno::INVAL) => {
            mount_move(".", "/").context("cannot change the root")?;
            chroot(".").context("cannot change the root")?;
        }
        Err(error) => return Err(error).context("cannot change the root"),
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).context("cannot give up capabilities")
}

fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    files: u64,
    net: u64,
    scopes: u64,
}

/// A ruleset without rules, for all that this kernel's Landlock can take away.
fn landlock() -> io::Result<()> {
    let newest = FILE_RIGHTS[0];
    let attempts = [(newest, 24, NET_RIGHTS, SCOPES), (newest, 16, NET_RIGHTS, 0)]
        .into_iter()
        .chain(FILE_RIGHTS.into_iter().map(|files| (files, 8, 0, 0)));
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for (files, size, net, scopes) in attempts {
        let rules = Ruleset { files, net, scopes };
        // SAFETY: the kernel reads `size` bytes of `rules`, which has at least as many and lives across the call.
        let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size, 0) };
        if fd < 0 {
            last = io::Error::last_os_error();
            if matches!(last.raw_os_error(), Some(libc::E2BIG | libc::EINVAL)) {
                continue;
            }
            return Err(last);
        }
        // SAFETY: the call takes a descriptor that was just made, and numbers.
        let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, 0) };
        let result = if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: the descriptor was just made and nobody else has it.
        unsafe { libc::close(fd as libc::c_int) };
        return result;
    }
    Err(last)
}

/// No core dumps of the guest's memory, no tracing by others of the same user.
fn hide_memory() {
    // SAFETY: this prctl takes a number and changes a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a child that has gone into the jail; its result, or none when there is no such jail here.
    fn inside(body: fn() -> i32) -> Option<i32> {
        // SAFETY: the child has one thread, so that it may make namespaces; it takes no lock that the parent's threads may hold
        // but the allocator's, which the C library takes care of, and ends with _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = if enter(true).is_ok() { body() } else { 99 };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `pid` is the child just made, `status` is written.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "killed by {}", libc::WTERMSIG(status));
        let code = libc::WEXITSTATUS(status);
        if code == 99 {
            eprintln!("SKIPPED: needs user namespaces and Landlock");
        }
        (code != 99).then_some(code)
    }

    fn refused<T>(result: &io::Result<T>) -> i32 {
        i32::from(result.is_ok())
    }

    #[test]
    fn nothing_of_the_host_can_be_opened_made_or_run() {
        let code = inside(|| {
            let files = ["/etc/passwd", "/proc/self/mem", "/dev/null", "/..", "."];
            let opened: i32 = files.iter().map(|path| refused(&std::fs::File::open(path))).sum();
            let made = refused(&std::fs::write("/new", "x")) + refused(&std::fs::create_dir("/dir"));
            let run = refused(&std::process::Command::new("/bin/true").status());
            opened + made + run
        });
        assert!(matches!(code, None | Some(0)), "{code:?} of these were allowed");
    }

    #[test]
    fn nobody_can_be_reached_and_no_privilege_is_left() {
        let code = inside(|| {
            let tcp = std::net::TcpStream::connect("127.0.0.1:1");
            let tcp = tcp.err().map(|error| error.kind()) != Some(io::ErrorKind::PermissionDenied);
            // SAFETY: numbers only.
            let (parent, mounted) = unsafe {
                let parent = libc::kill(libc::getppid(), 0) == 0;
                let mounted = libc::mount(std::ptr::null(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()) == 0;
                (parent, mounted)
            };
            // SAFETY: numbers only.
            let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
            // SAFETY: numbers only.
            let gains = unsafe { 1 - libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) };
            i32::from(tcp) * 32 + i32::from(mounted) * 2 + dumpable * 4 + gains * 8 + i32::from(parent) * 16
        });
        // TCP is closed by Landlock's version 4, signals to outside by 6; below, the system call filter is what holds.
        assert!(matches!(code.map(|code| code & !48), None | Some(0)), "{code:?}");
    }
}
