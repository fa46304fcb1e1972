//! What each thread may ask of the kernel once the guest runs; anything else kills the process.
//!
//! One list a kind of thread, put up by the thread itself before the guest's first instruction. No thread can open, connect,
//! execute, trace, or make memory executable from then on.

use crate::virtio::net;
use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// `KVM_RUN`, `_IO(0xAE, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `KVM_IRQFD`, `_IOW(0xAE, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: u64 = 0x4020_ae76;
/// `KVM_IOEVENTFD`, `_IOW(0xAE, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The guest's sockets, random bytes, shares, the end.
    Main {
        /// Devices may be plugged.
        plug: bool,
    },
    /// A virtual CPU.
    Vcpu,
    /// The disks.
    Disks {
        /// And interfaces that are plugged.
        plug: bool,
    },
    /// A network interface.
    Net,
}

/// Memory, locks, messages to stderr, and the end: what any Rust thread needs.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];
const EPOLL: &[libc::c_long] =
    &[libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_writev,
];
const FILES: &[libc::c_long] = &[libc::SYS_ftruncate, libc::SYS_getrandom, libc::SYS_pread64, libc::SYS_pwrite64];
const DISKS: &[libc::c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
];
const NET: &[libc::c_long] = &[libc::SYS_read, libc::SYS_writev];
/// A plugged device's events and size.
const PLUG: &[libc::c_long] = &[libc::SYS_eventfd2, libc::SYS_lseek];

/// The filter for a thread, to be made before the guest runs.
///
/// # Errors
/// When the filter cannot be built.
pub fn filter(role: Role) -> Result<BpfProgram> {
    let (lists, ioctls): (&[&[libc::c_long]], &[u64]) = match role {
        Role::Main { plug: false } => {
            (&[COMMON, EPOLL, SOCKETS, FILES, &[libc::SYS_eventfd2]], &[KVM_IRQFD, KVM_IOEVENTFD])
        }
        Role::Main { plug: true } => {
            (&[COMMON, EPOLL, SOCKETS, FILES, PLUG], &[KVM_IRQFD, KVM_IOEVENTFD, net::TUNSETIFF, net::TUNSETVNETHDRSZ])
        }
        Role::Vcpu => (&[COMMON], &[KVM_RUN]),
        Role::Disks { plug: false } => (&[COMMON, EPOLL, DISKS], &[]),
        Role::Disks { plug: true } => (&[COMMON, EPOLL, DISKS, NET], &[net::TUNSETOFFLOAD]),
        Role::Net => (&[COMMON, EPOLL, NET], &[net::TUNSETOFFLOAD]),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        lists.iter().flat_map(|list| list.iter()).map(|call| (*call, Vec::new())).collect();
    // The allocator maps memory and takes protection away from it; nothing maps code.
    let not_executable = || condition(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    if !ioctls.is_empty() {
        let each = ioctls.iter().map(|request| condition(1, SeccompCmpOp::Eq, *request));
        rules.insert(libc::SYS_ioctl, each.collect::<Result<_>>()?);
    }
    if role == (Role::Main { plug: true }) {
        rules.insert(libc::SYS_fcntl, vec![condition(1, SeccompCmpOp::Eq, libc::F_SETFL as u64)?]);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)
        .context("cannot build the system call filter")?;
    filter.try_into().context("cannot build the system call filter")
}

fn condition(argument: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, value)
        .context("cannot build the system call filter")?;
    SeccompRule::new(vec![condition]).context("cannot build the system call filter")
}

/// Puts the filter up for this thread, and gives up new privileges for good.
///
/// # Errors
/// When the kernel refuses.
pub fn confine(filter: &BpfProgram) -> Result<()> {
    apply_filter(filter).context("the kernel refuses the system call filter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    /// Runs `body` confined in a child; gives the signal that killed it.
    fn killed_by(role: Role, body: fn()) -> Option<i32> {
        let filter = filter(role).unwrap();
        // SAFETY: the child only makes system calls, and ends with _exit: it takes no lock that the parent's threads may hold.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = if confine(&filter).is_ok() { 0 } else { 9 };
            body();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: `pid` is the child just made, `status` is written.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        let status = std::process::ExitStatus::from_raw(status);
        assert_ne!(status.code(), Some(9));
        status.signal()
    }

    fn open_a_file() {
        // SAFETY: the name is a C string.
        unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY) };
    }

    fn map_code() {
        // SAFETY: a new mapping, nothing is replaced.
        unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
    }

    fn ask_the_terminal() {
        // SAFETY: the descriptor is open or not; nothing is written when the request fails.
        unsafe { libc::ioctl(0, 0x5401, 0usize) };
    }

    fn map_data() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, nothing is replaced.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    }

    #[test]
    fn a_confined_thread_cannot_open_map_code_or_use_other_ioctls() {
        let plug = [Role::Main { plug: true }, Role::Disks { plug: true }];
        for role in [Role::Main { plug: false }, Role::Vcpu, Role::Disks { plug: false }, Role::Net].iter().chain(&plug)
        {
            let role = *role;
            assert_eq!(killed_by(role, open_a_file), Some(libc::SIGSYS), "{role:?}");
            assert_eq!(killed_by(role, map_code), Some(libc::SIGSYS), "{role:?}");
            assert_eq!(killed_by(role, ask_the_terminal), Some(libc::SIGSYS), "{role:?}");
            assert_eq!(killed_by(role, map_data), None, "{role:?}");
        }
    }
}
