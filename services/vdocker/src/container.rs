//! A container: its root, its process, its output and input.
//!
//! One thread per container carries the output and waits for the end ([`Container::attend`]): so the exit is always
//! told after the last byte.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::health::Watch;
use crate::output::Output;
use crate::process::{self, Settings, Stdio};
use crate::program::{Program, other};
use crate::pump::pump;
use crate::rootfs::{Rootfs, open_ptmx};
use crate::user::Users;
use crate::{caps, console, sys};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use zone::guest::GuestContainer;
use zone::log::Data;
use zone::pod::StartError;

/// A container.
#[derive(Debug)]
pub struct Container {
    /// What it shall be.
    pub spec: GuestContainer,
    /// Its files.
    pub rootfs: Rootfs,
    /// Its control group, if the kernel has any.
    pub cgroup: Option<Cgroup>,
    /// Its output.
    pub output: Arc<Output>,
    /// Where its input goes; None when it has none, or it is closed.
    pub input: Mutex<Option<Arc<OwnedFd>>>,
    /// Its terminal's master.
    pub terminal: OnceLock<OwnedFd>,
    /// Its process.
    pub pidfd: OnceLock<OwnedFd>,
    /// Whether it is well.
    pub health: Watch,
    state: Mutex<State>,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Its process's id in the guest; 0 before the start.
    pub pid: i32,
    /// Its process runs.
    pub running: bool,
    /// Its processes are frozen.
    pub paused: bool,
    /// The exit code; 0 before the exit.
    pub exit_code: i32,
}

impl Container {
    /// A container that is not started.
    pub fn new(spec: GuestContainer, rootfs: Rootfs, cgroup: Option<Cgroup>) -> Self {
        Self {
            spec,
            rootfs,
            cgroup,
            output: Arc::default(),
            input: Mutex::default(),
            terminal: OnceLock::new(),
            pidfd: OnceLock::new(),
            health: Watch::default(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        *self.lock()
    }

    /// Notes that its processes are frozen, or not.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
    }

    /// Does something that must come before its exit is told. Returns false, and has done nothing, when it has exited.
    pub fn while_running<T>(&self, work: impl FnOnce() -> T) -> bool {
        let state = self.lock();
        if state.running {
            work();
        }
        state.running
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.spec.id.as_str()
    }

    /// The open input, if any.
    pub fn open_input(&self) -> Option<Arc<OwnedFd>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a signal to its first process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: i32) -> std::io::Result<()> {
        let pidfd = self.pidfd.get().ok_or_else(|| std::io::Error::from_raw_os_error(libc::ESRCH))?;
        sys::send_signal(pidfd.as_fd(), signal)
    }

    /// Closes the input; the process reads its end. A terminal has no such end.
    pub fn close_input(&self) {
        if !self.spec.tty {
            self.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Starts the process. Returns what carries its output.
    ///
    /// # Errors
    /// Why it could not be started, in Docker's words.
    pub fn start(&self, agent: &Agent) -> Result<Stdio, StartError> {
        let spec = &self.spec;
        let users = Users::read(&self.rootfs.root);
        let identity = users.resolve(&spec.user, &spec.group_add).map_err(|e| other(e.to_string()))?;
        let program = Program::prepare(
            &self.rootfs.root,
            &spec.args,
            &spec.env,
            &spec.cwd,
            &identity,
            &agent.spec.hostname,
            spec.tty,
        )?;
        let settings = Settings {
            identity,
            caps: caps::effective(spec.privileged, &spec.cap_add, &spec.cap_drop).map_err(|e| other(e.to_string()))?,
            no_new_privileges: spec.no_new_privileges,
            limits: process::limits(&spec.ulimits)?,
            tty: spec.tty,
        };
        let stdio = self.stdio().map_err(|e| other(format!("make the standard streams: {e}")))?;
        let steps = process::container_steps(&agent.spec, spec, &self.rootfs.path, self.cgroup.is_some())?;
        let mut plan = process::plan(steps, program, &settings, &stdio);
        let procs = self.cgroup.as_ref().and_then(|c| c.procs().ok());
        plan.cgroup = procs.as_ref().map(AsRawFd::as_raw_fd);
        plan.init = spec.init;
        plan.idle = spec.args.first().is_some_and(|a| a == zone::guest::IDLE_PROGRAM);
        let started = process::start(&plan)?;
        self.keep_streams(&stdio).map_err(|e| other(format!("keep the standard streams: {e}")))?;
        self.note_start(started.pid);
        let pid = started.pid.unsigned_abs();
        agent.log.send(self.id(), Data::Started { pid });
        Ok(stdio)
    }

    fn stdio(&self) -> std::io::Result<Stdio> {
        if !self.spec.tty {
            return Stdio::pipes(self.spec.open_stdin);
        }
        let stdio = Stdio::terminal(open_ptmx(&self.rootfs)?)?;
        let name = rustix::pty::ptsname(&stdio.output, Vec::new())?;
        let pts = self.rootfs.root.handle(std::path::Path::new(&*name.to_string_lossy()))?;
        let console = self.rootfs.root.handle(std::path::Path::new("/dev/console"))?;
        rustix::mount::mount_bind(crate::inroot::proc_path(pts.as_fd()), crate::inroot::proc_path(console.as_fd()))?;
        Ok(stdio)
    }

    /// Before any request can ask for them.
    fn keep_streams(&self, stdio: &Stdio) -> std::io::Result<()> {
        if let (true, Some(input)) = (self.spec.open_stdin, &stdio.input) {
            *self.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(input.try_clone()?));
        }
        if self.spec.tty {
            let _ = self.terminal.set(stdio.output.try_clone()?);
        }
        Ok(())
    }

    fn note_start(&self, pid: i32) {
        if let Some(pidfd) = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok()) {
            let _ = self.pidfd.set(pidfd);
        }
        *self.lock() = State { pid, running: true, ..State::default() };
    }

    /// Carries the output until there is no more, waits for the process's end, and tells it.
    pub fn attend(&self, agent: &Agent, stdio: Stdio) {
        let Stdio { child, input, output, error } = stdio;
        // The agent's copies: with them open the end would never be seen.
        drop((child, input));
        pump(output.as_fd(), error.as_ref().map(AsFd::as_fd), None, |stream, bytes| {
            let record = agent.log.send(self.id(), Data::output(stream, bytes));
            self.output.push(record, stream, bytes);
        });
        let code = sys::wait_exit_code(self.state().pid).unwrap_or_else(|error| {
            console::say(&format!("cannot wait for container {}: {error}", self.id()));
            255
        });
        let oom_killed = self.cgroup.as_ref().is_some_and(Cgroup::oom_killed);
        *self.lock() = State { exit_code: code, pid: 0, running: false, paused: false };
        self.output.close();
        agent.log.send(self.id(), Data::Exited { code, oom_killed });
    }
}
