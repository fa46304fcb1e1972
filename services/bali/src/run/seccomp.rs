//! The filter of system calls. `service` kills the process for what no service of a zone does: mounts, namespaces, tracing,
//! kernel modules, other kernels, BPF, clocks, swap, keys. It is a list of what is denied, so that a new libc does not break
//! services; capabilities and the empty root do the rest.

use super::RunError;
use crate::error::{Error, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

/// Which filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// The built-in list.
    #[default]
    Service,
    /// No filter.
    None,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "service" => Ok(Self::Service),
            "none" => Ok(Self::None),
            other => Err(format!("there is no profile {other:?}; choose service or none")),
        }
    }
}

const DENIED: &[(&str, i64)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("adjtimex", libc::SYS_adjtimex),
    ("bpf", libc::SYS_bpf),
    ("chroot", libc::SYS_chroot),
    ("clock_adjtime", libc::SYS_clock_adjtime),
    ("clock_settime", libc::SYS_clock_settime),
    ("delete_module", libc::SYS_delete_module),
    ("finit_module", libc::SYS_finit_module),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("fsopen", libc::SYS_fsopen),
    ("fspick", libc::SYS_fspick),
    ("init_module", libc::SYS_init_module),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("ioperm", libc::SYS_ioperm),
    ("iopl", libc::SYS_iopl),
    ("kcmp", libc::SYS_kcmp),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("mount", libc::SYS_mount),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("move_mount", libc::SYS_move_mount),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("pivot_root", libc::SYS_pivot_root),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("ptrace", libc::SYS_ptrace),
    ("quotactl", libc::SYS_quotactl),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("setns", libc::SYS_setns),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapoff", libc::SYS_swapoff),
    ("swapon", libc::SYS_swapon),
    ("syslog", libc::SYS_syslog),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("vhangup", libc::SYS_vhangup),
];

/// Compiles a profile without the system calls in `allow`; `clone` there stands for new namespaces by clone(2).
///
/// # Errors
/// `Invalid` for a name that the profile does not deny anyway.
pub fn compile(profile: Profile, allow: &[String]) -> Result<Vec<BpfProgram>> {
    let known = |name: &String| name == "clone" || DENIED.iter().any(|(denied, _)| denied == name);
    if let Some(name) = allow.iter().find(|name| !known(name)) {
        return Err(Error::Invalid(format!(
            "the system call {name:?} is not denied by any profile: it need not be allowed"
        )));
    }
    if profile == Profile::None {
        return Ok(Vec::new());
    }
    build(allow).map_err(|e| Error::Invalid(format!("cannot compile the filter of system calls: {e}")))
}

fn build(allow: &[String]) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let allowed = |name: &str| allow.iter().any(|a| a == name);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().filter(|(name, _)| !allowed(name)).map(|(_, number)| (*number, Vec::new())).collect();
    let mut programs = Vec::new();
    if !allowed("clone") {
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
        let namespaces = namespaces | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
        for bit in (0..32).map(|n| 1u64 << n).filter(|bit| u64::from(namespaces.cast_unsigned()) & bit != 0) {
            let one = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bit), bit)?;
            rules.entry(libc::SYS_clone).or_default().push(SeccompRule::new(vec![one])?);
        }
        // The flags of clone3 lie in memory, where no filter sees them: a libc that hears ENOSYS falls back to clone.
        let clone3 = [(libc::SYS_clone3, Vec::new())].into();
        programs.push(program(clone3, SeccompAction::Errno(libc::ENOSYS.cast_unsigned()))?);
    }
    programs.push(program(rules, SeccompAction::KillProcess)?);
    Ok(programs)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64)?.try_into()
}

/// Installs the filters for this thread and all that come from it.
pub(super) fn apply(programs: &[BpfProgram]) -> Result<(), RunError> {
    for program in programs {
        seccompiler::apply_filter(program)
            .map_err(|e| RunError::step("install the filter of system calls")(io::Error::other(e)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_denied_can_be_allowed() {
        assert_eq!(compile(Profile::Service, &["mount".into(), "clone".into()]).unwrap().len(), 1);
        assert_eq!(compile(Profile::Service, &[]).unwrap().len(), 2);
        assert!(compile(Profile::None, &[]).unwrap().is_empty());
        assert!(compile(Profile::Service, &["mounts".into()]).is_err());
    }
}
