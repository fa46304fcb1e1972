//! Starts processes: a container's first one, in new namespaces, and others in namespaces that exist.
//!
//! Everything is prepared here, in memory, for [`crate::child`].

use crate::child::{self, Limit, Plan, Step, at};
use crate::program::{Program, c_string, errno_text, exec_error, other};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use zone::guest::{GuestContainer, GuestSpec};
use zone::pod::{StartError, Ulimit};

/// Hidden from a container, as Docker does.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Soft and hard limit of open files when the request names none.
const NOFILE: (u64, u64) = (1024, 524_288);

/// A started process.
#[derive(Debug)]
pub struct Started {
    /// Its id, as the agent sees it.
    pub pid: i32,
}

/// Pipes or a terminal between the agent and a process.
#[derive(Debug)]
pub struct Stdio {
    /// The process's ends: in, out, error.
    pub child: [OwnedFd; 3],
    /// Where its input goes, if it has any.
    pub input: Option<OwnedFd>,
    /// Its output.
    pub output: OwnedFd,
    /// Its error output, unless a terminal.
    pub error: Option<OwnedFd>,
}

impl Stdio {
    /// Pipes; /dev/null as input unless `input`.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pipes(input: bool) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (child_in, input) = if input {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let ((output, child_out), (error, child_error)) = (pipe()?, pipe()?);
        Ok(Self { child: [child_in, child_out, child_error], input, output, error: Some(error) })
    }

    /// A terminal whose master is `master`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        let slave = crate::sys::open_terminal(&master)?;
        let child = [slave.try_clone()?, slave.try_clone()?, slave];
        Ok(Self { child, input: Some(master.try_clone()?), output: master, error: None })
    }
}

/// Who and how, common to both kinds of process.
#[derive(Debug)]
pub struct Settings {
    /// User, groups.
    pub identity: crate::user::Identity,
    /// Capabilities.
    pub caps: crate::caps::Caps,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Limits.
    pub limits: Vec<Limit>,
    /// A terminal.
    pub tty: bool,
}

/// Mounts and settings that are done inside of a container's new namespaces.
///
/// # Errors
/// When a string contains a zero byte.
pub fn container_steps(
    spec: &GuestSpec,
    container: &GuestContainer,
    root: &Path,
    has_cgroup: bool,
) -> Result<Vec<Step>, StartError> {
    let text = |s: &str| c_string(s);
    let plain = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let read_only = if container.privileged { 0 } else { libc::MS_RDONLY };
    let mount = |source: &str, target: &str, kind: &str, flags, optional| -> Result<Step, StartError> {
        Ok(Step::Mount {
            source: text(source)?,
            target: text(target)?,
            kind: text(kind)?,
            flags,
            data: CString::default(),
            optional,
        })
    };
    let mut steps = vec![
        mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, false)?,
        Step::Pivot(text(&root.to_string_lossy())?),
        Step::Names(text(&spec.hostname)?, text(&spec.domainname)?),
        mount("proc", "/proc", "proc", plain, false)?,
        mount("sysfs", "/sys", "sysfs", plain | read_only, false)?,
    ];
    if has_cgroup {
        steps.push(mount("cgroup", "/sys/fs/cgroup", "cgroup2", plain | read_only, true)?);
    }
    steps.push(mount("mqueue", "/dev/mqueue", "mqueue", plain, true)?);
    for (name, value) in [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")] {
        if !container.sysctls.contains_key(name) && Path::new(&sysctl_path(name)).exists() {
            steps.push(Step::Write(text(&sysctl_path(name))?, text(value)?));
        }
    }
    for (name, value) in &container.sysctls {
        steps.push(Step::Write(text(&sysctl_path(name))?, text(value)?));
    }
    if !container.privileged {
        for path in MASKED {
            steps.push(Step::Mask(text(path)?));
        }
        for path in READ_ONLY {
            steps.push(Step::ReadOnly(text(path)?));
        }
    }
    if !container.cwd.is_empty() {
        steps.push(Step::MakeDir(text(&container.cwd)?));
    }
    Ok(steps)
}

/// `net.core.somaxconn` as a file; a name with slashes may have dots in its parts.
fn sysctl_path(name: &str) -> String {
    if name.contains('/') { format!("/proc/sys/{name}") } else { format!("/proc/sys/{}", name.replace('.', "/")) }
}

/// Limits as the kernel takes them.
///
/// # Errors
/// When a name is unknown.
pub fn limits(ulimits: &[Ulimit]) -> Result<Vec<Limit>, StartError> {
    let number = |value: i64| u64::try_from(value).unwrap_or(libc::RLIM64_INFINITY);
    let mut all = Vec::new();
    if !ulimits.iter().any(|u| u.name == "nofile") {
        let value = libc::rlimit64 { rlim_cur: NOFILE.0, rlim_max: NOFILE.1 };
        all.push(Limit { resource: libc::RLIMIT_NOFILE, value, optional: true });
    }
    for ulimit in ulimits {
        let resource = resource(&ulimit.name).ok_or_else(|| other(format!("invalid ulimit type: {}", ulimit.name)))?;
        let value = libc::rlimit64 { rlim_cur: number(ulimit.soft), rlim_max: number(ulimit.hard) };
        all.push(Limit { resource, value, optional: false });
    }
    Ok(all)
}

fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "as" => libc::RLIMIT_AS,
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

/// Puts a plan together.
pub fn plan(steps: Vec<Step>, program: Program, settings: &Settings, stdio: &Stdio) -> Plan {
    let list = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
    let (argv, envp) = (list(&program.args), list(&program.env));
    Plan {
        cgroup: None,
        join: None,
        steps,
        stdio: [0, 1, 2].map(|i: usize| stdio.child[i].as_raw_fd()),
        tty: settings.tty,
        limits: settings.limits.clone(),
        uid: settings.identity.uid,
        gid: settings.identity.gid,
        groups: settings.identity.groups.clone(),
        caps: settings.caps,
        no_new_privileges: settings.no_new_privileges,
        init: false,
        idle: false,
        program,
        argv,
        envp,
    }
}

/// Starts what is planned and waits until it runs its program.
///
/// # Errors
/// What the child reported, with Docker's words for a program that cannot be executed.
pub fn start(plan: &Plan) -> Result<Started, StartError> {
    // One at a time: a child that is between clone and exec holds copies of every descriptor.
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock();
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| other(format!("make a pipe: {e}")))?;
    let spaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let flags = if plan.join.is_some() { 0 } else { spaces };
    // SAFETY: the child runs child::run, which obeys the rules and does not return.
    let pid = unsafe { child::raw_clone(flags) };
    if pid == 0 {
        child::run(plan, write.as_raw_fd());
    }
    if pid < 0 {
        return Err(other(format!("make a process: {}", io::Error::last_os_error())));
    }
    drop(write);
    let first = i32::try_from(pid).map_err(|_| other("make a process: its id is out of range"))?;
    let result = watch(plan, &mut File::from(read), first);
    drop(guard);
    result
}

fn watch(plan: &Plan, pipe: &mut File, first: i32) -> Result<Started, StartError> {
    let mut pid = first;
    let mut failure = None;
    let mut message = [0u8; 8];
    while pipe.read_exact(&mut message).is_ok() {
        let (place, value) = message.split_at(4);
        let [place, value] = [place, value].map(|half| half.try_into().map_or(0, u32::from_ne_bytes));
        if place == at::PID {
            pid = value.cast_signed();
        } else {
            failure = Some((place, value.cast_signed()));
        }
    }
    if plan.join.is_some() {
        let _ = crate::sys::wait_exit_code(first);
    }
    let Some((place, errno)) = failure else {
        return if plan.join.is_some() && pid == first {
            Err(other("the process ended before it ran"))
        } else {
            Ok(Started { pid })
        };
    };
    if plan.join.is_none() || pid != first {
        let _ = crate::sys::wait_exit_code(pid);
    }
    Err(describe(plan, place, &io::Error::from_raw_os_error(errno)))
}

fn describe(plan: &Plan, place: u32, error: &io::Error) -> StartError {
    let name = plan.program.args.first().unwrap_or(&plan.program.path).to_string_lossy();
    match place {
        at::EXEC => exec_error(&name, error),
        at::CWD => other(format!(
            "chdir to cwd ({:?}) set in config.json failed: {}",
            plan.program.cwd.to_string_lossy(),
            errno_text(error)
        )),
        at::JOIN => other(format!("join the container's namespaces: {error}")),
        at::STDIO => other(format!("set up the standard streams: {error}")),
        at::LIMITS => other(format!("set the resource limits: {error}")),
        at::IDENTITY => other(format!("set user, groups and capabilities: {error}")),
        step => match plan.steps.get(step as usize) {
            Some(Step::Mount { kind, target, .. }) => {
                other(format!("mount {} at {}: {error}", kind.to_string_lossy(), target.to_string_lossy()))
            }
            Some(Step::Write(path, value)) => {
                other(format!("write {:?} to {}: {error}", value.to_string_lossy(), path.to_string_lossy()))
            }
            Some(Step::Pivot(_)) => other(format!("change to the container's root: {error}")),
            Some(Step::Names(..)) => other(format!("set the host name: {error}")),
            _ => other(format!("start the process: {error}")),
        },
    }
}

/// Flags with which a descriptor of a control group is opened.
pub const CGROUP_FLAGS: OFlags = OFlags::WRONLY.union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_files() {
        assert_eq!(sysctl_path("net.core.somaxconn"), "/proc/sys/net/core/somaxconn");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/rp_filter"), "/proc/sys/net/ipv4/conf/eth0.1/rp_filter");
    }

    #[test]
    fn limits_have_dockers_names_and_a_default_for_files() {
        let all = limits(&[Ulimit { name: "core".into(), soft: 0, hard: -1 }]).unwrap();
        assert_eq!(
            all.iter().map(|l| (l.resource, l.value.rlim_cur, l.value.rlim_max)).collect::<Vec<_>>(),
            [(libc::RLIMIT_NOFILE, 1024, 524_288), (libc::RLIMIT_CORE, 0, u64::MAX)]
        );
        assert!(limits(&[Ulimit { name: "speed".into(), soft: 1, hard: 1 }]).is_err());
    }
}
