//! What runs between clone(2) and execve(2).
//!
//! The child is a copy of one thread of a process that may have others: locks of the C library may be held for ever in
//! it. So everything here is system calls on memory that was prepared before: no allocation, no formatting, no libc
//! function that keeps state (setuid(3) signals the other threads, which are not there).
//!
//! Invariant: a step that fails is reported by its number on the report pipe; success closes the pipe by execve(2).

use crate::caps::{self, Caps};
use crate::program::Program;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

/// Something to do in the child.
#[derive(Debug)]
pub enum Step {
    /// mount(2).
    Mount {
        /// Source.
        source: CString,
        /// Target.
        target: CString,
        /// File system.
        kind: CString,
        /// Flags.
        flags: libc::c_ulong,
        /// Options.
        data: CString,
        /// Go on when it fails.
        optional: bool,
    },
    /// Hide a file or folder, if it is there.
    Mask(CString),
    /// Make a part of the tree read-only, if it is there.
    ReadOnly(CString),
    /// Make this folder the root; the old one goes away.
    Pivot(CString),
    /// Write a value into a file.
    Write(CString, CString),
    /// Host name and domain name.
    Names(CString, CString),
    /// Make the working directory when absent.
    MakeDir(CString),
}

/// Everything about a child.
#[derive(Debug)]
pub struct Plan {
    /// Joined before anything else (`cgroup.procs`).
    pub cgroup: Option<RawFd>,
    /// A process whose namespaces are joined (a pidfd); the process is then a second child.
    pub join: Option<RawFd>,
    /// In order, with all rights.
    pub steps: Vec<Step>,
    /// Standard input, output, error; one and the same for a terminal.
    pub stdio: [RawFd; 3],
    /// The three are a terminal, which becomes the controlling one.
    pub tty: bool,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// More groups.
    pub groups: Vec<libc::gid_t>,
    /// Capabilities.
    pub caps: Caps,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// A reaper is process 1, the program its child.
    pub init: bool,
    /// Run no program: wait, and reap, until somebody says to end.
    pub idle: bool,
    /// What is executed.
    pub program: Program,
    /// `program.args`, with the null at the end.
    pub argv: Vec<*const libc::c_char>,
    /// `program.env`, with the null at the end.
    pub envp: Vec<*const libc::c_char>,
}

/// A resource limit.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Which one.
    pub resource: u32,
    /// Soft and hard.
    pub value: libc::rlimit64,
    /// Go on when it cannot be set.
    pub optional: bool,
}

/// Where a child failed, beyond the numbers of the steps.
pub mod at {
    /// Joining the control group or the namespaces.
    pub const JOIN: u32 = 1 << 16;
    /// Standard streams and the terminal.
    pub const STDIO: u32 = JOIN + 1;
    /// Changing to the working directory.
    pub const CWD: u32 = JOIN + 2;
    /// Limits.
    pub const LIMITS: u32 = JOIN + 3;
    /// User, groups, capabilities.
    pub const IDENTITY: u32 = JOIN + 4;
    /// execve(2).
    pub const EXEC: u32 = JOIN + 5;
    /// No failure: the second child's process id, as seen by the agent.
    pub const PID: u32 = JOIN + 6;
}

const EMPTY: &CStr = c"";

fn errno() -> i32 {
    // SAFETY: the thread's own errno; the thread pointer was copied with the thread.
    unsafe { *libc::__errno_location() }
}

fn report(pipe: RawFd, place: u32, value: i32) {
    let mut message = [0u8; 8];
    message[..4].copy_from_slice(&place.to_ne_bytes());
    message[4..].copy_from_slice(&value.to_ne_bytes());
    // SAFETY: the buffer lives; eight bytes go into a pipe at once.
    unsafe { libc::write(pipe, message.as_ptr().cast(), message.len()) };
}

fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends this process without running anything else.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

/// fork(2) without the C library's part; with more flags of clone(2).
///
/// # Safety
/// In the child only code that obeys this file's rules may run, and it must not return from the caller's frame.
pub unsafe fn raw_clone(flags: libc::c_int) -> libc::c_long {
    // SAFETY: without a stack and without CLONE_VM this is fork(2): the child goes on with a copy of the memory.
    unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags | libc::SIGCHLD), 0, 0, 0, 0) }
}

/// The child's life. `pipe` is the report pipe's writing end.
pub fn run(plan: &Plan, pipe: RawFd) -> ! {
    if let Err(place) = enter(plan, pipe) {
        report(pipe, place, errno());
    }
    exit(127)
}

fn ok(result: libc::c_long, place: u32) -> Result<(), u32> {
    if result < 0 { Err(place) } else { Ok(()) }
}

fn enter(plan: &Plan, pipe: RawFd) -> Result<(), u32> {
    default_signals();
    if let Some(cgroup) = plan.cgroup {
        // A group that may hold no processes itself (its own children do, with controllers) is left alone.
        // SAFETY: writes one byte that lives; the kernel takes 0 as the writer.
        unsafe { libc::write(cgroup, c"0".as_ptr().cast(), 1) };
    }
    if let Some(process) = plan.join {
        join(process, pipe)?;
    } else {
        // SAFETY: takes no pointers.
        ok(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWCGROUP) }, at::JOIN)?;
    }
    for (number, step) in plan.steps.iter().enumerate() {
        take(step).map_err(|()| u32::try_from(number).unwrap_or(0))?;
    }
    if plan.init {
        become_init()?;
    }
    streams(plan)?;
    // The folder may be one that only root, or only the user, can enter: before and after.
    let early = change_dir(&plan.program.cwd);
    limits(plan)?;
    identity(plan)?;
    if change_dir(&plan.program.cwd).is_err() && early.is_err() {
        return Err(at::CWD);
    }
    if plan.idle {
        idle();
    }
    // SAFETY: takes no pointers; descriptors that were forgotten do not pass.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    // SAFETY: path, arguments and environment are zero-terminated strings in null-terminated lists that live in `plan`.
    unsafe { libc::syscall(libc::SYS_execve, plan.program.path.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
    Err(at::EXEC)
}

fn default_signals() {
    for signal in [libc::SIGPIPE, libc::SIGCHLD] {
        // SAFETY: SIG_DFL is a valid disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none: u64 = 0;
    // SAFETY: the kernel's signal set is 8 bytes, which live.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0, 8) };
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_umask, 0o022) };
}

/// Joins the namespaces and goes on as a second child, whose parent is the agent: only a child is in the joined PID
/// namespace.
fn join(process: RawFd, pipe: RawFd) -> Result<(), u32> {
    let spaces =
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
    // SAFETY: takes no pointers.
    ok(unsafe { libc::syscall(libc::SYS_setns, process, spaces) }, at::JOIN)?;
    // SAFETY: both go on in this file: the first ends at once, the second with execve(2) or an exit.
    let pid = unsafe { raw_clone(libc::CLONE_PARENT) };
    if pid > 0 {
        report(pipe, at::PID, i32::try_from(pid).unwrap_or(0));
        exit(0);
    }
    ok(pid, at::JOIN)
}

fn take(step: &Step) -> Result<(), ()> {
    match step {
        Step::Mount { source, target, kind, flags, data, optional } => {
            match mount(source, target, kind, *flags, data) {
                Err(()) if *optional => Ok(()),
                result => result,
            }
        }
        Step::Mask(path) => {
            if mount(c"/dev/null", path, EMPTY, libc::MS_BIND, EMPTY).is_err() && errno() == libc::ENOTDIR {
                mount(c"tmpfs", path, c"tmpfs", libc::MS_RDONLY, c"size=0k")?;
            }
            Ok(())
        }
        Step::ReadOnly(path) => {
            if mount(path, path, EMPTY, libc::MS_BIND | libc::MS_REC, EMPTY).is_err() {
                return Ok(());
            }
            let flags =
                libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            mount(path, path, EMPTY, flags, EMPTY)
        }
        Step::Pivot(root) => pivot(root),
        Step::Write(path, value) => write_file(path, value),
        Step::Names(host, domain) => {
            // SAFETY: both strings live and have the lengths given.
            let results = unsafe {
                [
                    libc::syscall(libc::SYS_sethostname, host.as_ptr(), host.count_bytes()),
                    libc::syscall(libc::SYS_setdomainname, domain.as_ptr(), domain.count_bytes()),
                ]
            };
            if results.iter().any(|r| *r < 0) { Err(()) } else { Ok(()) }
        }
        Step::MakeDir(path) => {
            make_dirs(path);
            Ok(())
        }
    }
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> Result<(), ()> {
    // SAFETY: all four are zero-terminated strings that live.
    let result = unsafe {
        libc::syscall(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr())
    };
    if result < 0 { Err(()) } else { Ok(()) }
}

fn pivot(root: &CStr) -> Result<(), ()> {
    // SAFETY: the strings live; "." twice puts the old root on top of the new one (pivot_root(2), NOTES), from where it is taken off.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_chdir, root.as_ptr()),
            libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()),
            libc::syscall(libc::SYS_umount2, c".".as_ptr(), libc::MNT_DETACH),
            libc::syscall(libc::SYS_chdir, c"/".as_ptr()),
        ]
    };
    if results.iter().any(|r| *r < 0) { Err(()) } else { Ok(()) }
}

fn write_file(path: &CStr, value: &CStr) -> Result<(), ()> {
    // SAFETY: the path is a zero-terminated string that lives.
    let fd = unsafe { libc::syscall(libc::SYS_open, path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0) };
    if fd < 0 {
        return Err(());
    }
    // SAFETY: the value lives and has the length given.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, value.as_ptr(), value.count_bytes()) };
    if written < 0 { Err(()) } else { Ok(()) }
}

/// mkdir -p on a copy in a buffer; what fails shows at chdir(2).
fn make_dirs(path: &CStr) {
    let bytes = path.to_bytes_with_nul();
    let mut copy = [0u8; libc::PATH_MAX as usize];
    if bytes.len() > copy.len() {
        return;
    }
    copy[..bytes.len()].copy_from_slice(bytes);
    for index in 1..bytes.len() {
        if bytes[index] == b'/' || bytes[index] == 0 {
            copy[index] = 0;
            // SAFETY: the buffer is zero-terminated at `index`.
            unsafe { libc::syscall(libc::SYS_mkdir, copy.as_ptr(), 0o755) };
            copy[index] = bytes[index];
        }
    }
}

fn streams(plan: &Plan) -> Result<(), u32> {
    // SAFETY: takes no pointers; fails only for a leader, which is one already.
    unsafe { libc::syscall(libc::SYS_setsid) };
    for (target, source) in (0..).zip(plan.stdio) {
        // The agent keeps 0 to 2 occupied, so a source is never one of them.
        // SAFETY: takes no pointers.
        ok(unsafe { libc::syscall(libc::SYS_dup2, source, target) }, at::STDIO)?;
        // A user that is not root may open /dev/stdout again.
        // SAFETY: takes no pointers; not every kind of file can be given away.
        unsafe { libc::syscall(libc::SYS_fchown, target, plan.uid, u32::MAX) };
    }
    if plan.tty {
        // SAFETY: TIOCSCTTY takes an integer.
        ok(unsafe { libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSCTTY, 0) }, at::STDIO)?;
    }
    Ok(())
}

fn change_dir(path: &CStr) -> Result<(), ()> {
    // SAFETY: the path is a zero-terminated string that lives.
    if unsafe { libc::syscall(libc::SYS_chdir, path.as_ptr()) } < 0 { Err(()) } else { Ok(()) }
}

fn limits(plan: &Plan) -> Result<(), u32> {
    for limit in &plan.limits {
        // SAFETY: the limit lives; the old one is not asked for.
        let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, limit.resource, &raw const limit.value, 0) };
        if result < 0 && !limit.optional {
            return Err(at::LIMITS);
        }
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn identity(plan: &Plan) -> Result<(), u32> {
    for cap in (0..64).filter(|cap| plan.caps.0 & (1 << cap) == 0) {
        // SAFETY: takes no pointers.
        let result = unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, cap, 0, 0, 0) };
        if result < 0 && cap < zone::capability::COUNT {
            return Err(at::IDENTITY);
        }
    }
    // SAFETY: the list lives and has the length given; the raw calls change this thread only, the process's only one.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, plan.groups.len(), plan.groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid),
            libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid),
        ]
    };
    if results.iter().any(|r| *r < 0) {
        return Err(at::IDENTITY);
    }
    if plan.uid == 0 {
        // Another user has none left; root's are cut down here and would be regained at execve(2) but for the bounding set.
        let header = CapHeader { version: 0x2008_0522, pid: 0 };
        let part = |shift: u32| {
            let bits = ((plan.caps.0 & caps::ALL.0) >> shift) as u32;
            CapData { effective: bits, permitted: bits, inheritable: 0 }
        };
        let data = [part(0), part(32)];
        // SAFETY: version 3 takes a header and two data structures, which live.
        ok(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }, at::IDENTITY)?;
    }
    if plan.no_new_privileges {
        // SAFETY: takes no pointers.
        ok(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, at::IDENTITY)?;
    }
    Ok(())
}

/// Forks: the child returns and becomes the program, the parent is process 1 of the container until the child's end.
fn become_init() -> Result<(), u32> {
    let all: u64 = u64::MAX;
    // Signals wait until init can take them.
    // SAFETY: the kernel's signal set is 8 bytes, which live.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, 8) };
    // SAFETY: both go on in this file.
    let child = unsafe { raw_clone(0) };
    if child == 0 {
        default_signals();
        return Ok(());
    }
    ok(child, at::STDIO)?;
    // SAFETY: takes no pointers. Init keeps no pipe open, else its program's end would not be seen.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    // SAFETY: the name is a zero-terminated string of less than 16 bytes.
    unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, c"docker-init".as_ptr(), 0, 0, 0) };
    reap(child, all)
}

/// Process 1 of a container without a program of its own.
fn idle() -> ! {
    let all: u64 = u64::MAX;
    // SAFETY: the kernel's signal set is 8 bytes, which live.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, 0, 8) };
    // SAFETY: takes no pointers. Its end tells the agent that all went well; the streams are the agent's, and are let go.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    loop {
        // SAFETY: the set lives; neither information nor a timeout is asked for.
        let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, 0, 0, 8) };
        if signal == libc::c_long::from(libc::SIGTERM) || signal == libc::c_long::from(libc::SIGINT) {
            exit(0);
        }
        // SAFETY: neither status nor resource usage is asked for.
        while unsafe { libc::syscall(libc::SYS_wait4, -1, 0, libc::WNOHANG, 0) } > 0 {}
    }
}

fn reap(child: libc::c_long, all: u64) -> ! {
    loop {
        // SAFETY: the set lives; neither information nor a timeout is asked for.
        let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, 0, 0, 8) };
        if signal > 0 && signal != libc::c_long::from(libc::SIGCHLD) {
            // SAFETY: takes no pointers.
            unsafe { libc::syscall(libc::SYS_kill, child, signal) };
            continue;
        }
        loop {
            let mut status: libc::c_int = 0;
            // SAFETY: the status lives; resource usage is not asked for.
            let pid = unsafe { libc::syscall(libc::SYS_wait4, -1, &raw mut status, libc::WNOHANG, 0) };
            if pid <= 0 {
                break;
            }
            if pid == child {
                exit(if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) });
            }
        }
    }
}
