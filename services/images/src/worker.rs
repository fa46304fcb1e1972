//! The process that turns a stranger's archive into a file system: this program once more, which shuts itself in and becomes
//! `mkfs.erofs`.
//!
//! ```text
//! images worker OUTPUT INPUT… -- PROGRAM ARGUMENTS…
//! ```
//! It sees the programs and libraries of the machine, its inputs, and its one output; it has no network, cannot signal or trace
//! anybody, and gains no privilege. Landlock (landlock(7)) does the files, a filter the system calls.

use anyhow::{Context as _, Result, bail};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    Scope, path_beneath_rules,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The first argument that asks for it.
pub const NAME: &str = "worker";
/// Programs and their libraries.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];
/// What no maker of file systems does.
const DENIED: [i64; 22] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_io_uring_setup,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_shmget,
    libc::SYS_msgget,
];

/// Shuts this process in and becomes the program. Returns only when that fails.
///
/// # Errors
/// What could not be done.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<()> {
    let args: Vec<OsString> = args.collect();
    let split = args.iter().position(|a| a == "--").context("the worker's arguments have no --")?;
    let ((files, command), read) = (args.split_at(split), more());
    let ([output, inputs @ ..], [_, program, rest @ ..]) = (files, command) else {
        bail!("the worker is called as: worker OUTPUT INPUT… -- PROGRAM ARGUMENTS…");
    };
    shut_in(output, inputs, &read).context("cannot shut the worker in")?;
    let filter = filter().context("cannot make the worker's filter of system calls")?;
    seccompiler::apply_filter(&filter).context("cannot install the worker's filter of system calls")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// More folders to read programs from, for tests with tools that lie elsewhere.
fn more() -> Vec<PathBuf> {
    std::env::var_os("KRAUD_WORKER_READ").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default()
}

fn shut_in(output: &OsString, inputs: &[OsString], more: &[PathBuf]) -> Result<()> {
    let abi = ABI::V6;
    let program: BitFlags<AccessFs> = AccessFs::from_read(abi);
    let written: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, program))?
        .add_rules(path_beneath_rules(more, program))?
        .add_rules(path_beneath_rules(inputs, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([output], written))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        // A developer's old kernel; the image's has it.
        writeln!(std::io::stderr(), "this kernel has no Landlock: the worker sees all files of its user")?;
    }
    Ok(())
}

fn filter() -> Result<BpfProgram> {
    let rules: BTreeMap<i64, _> = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let action = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64)?.try_into()?)
}
