//! More processes in a running container (`docker exec`).
//!
//! An exec is created, started once, and kept for its exit code. It ends when its process has exited and what that wrote
//! is sent: children that live on with its pipes open do not hold it. The exit code is set before the stream ends.

use crate::agent::{Agent, spawn};
use crate::attach::{feed, finish, send};
use crate::caps;
use crate::container::Container;
use crate::detach::DetachKeys;
use crate::http::response::Upgrade;
use crate::platform::Stream as Connection;
use crate::process::{self, Settings, Stdio};
use crate::program::{Program, other};
use crate::pump::pump;
use crate::rootfs::open_ptmx;
use crate::sys;
use crate::user::Users;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use zone::log::Stream;
use zone::pod::{StartError, StartErrorKind};

/// How many are kept; the oldest that do not run go first.
const MAX_KEPT: usize = 1000;

/// Docker's ExecConfig.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    user: Option<String>,
    privileged: bool,
    tty: bool,
    console_size: Option<[u16; 2]>,
    attach_stdin: bool,
    attach_stderr: bool,
    attach_stdout: bool,
    detach_keys: Option<String>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    cmd: Option<Vec<String>>,
}

/// Docker's ExecStartConfig.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct StartConfig {
    /// Do not wait, send no output.
    pub detach: bool,
    /// Raw output, not frames: Docker Engine goes by this, whatever the exec was made with.
    tty: bool,
    console_size: Option<[u16; 2]>,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    id: String,
    /// Where it runs.
    pub container: Arc<Container>,
    config: ExecConfig,
    state: Mutex<State>,
    /// Its terminal's master.
    pub terminal: OnceLock<OwnedFd>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    started: bool,
    running: bool,
    pid: i32,
    exit_code: Option<i32>,
}

/// All execs.
#[derive(Debug, Default)]
pub struct Execs {
    inner: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    by_id: BTreeMap<String, Arc<Exec>>,
    order: VecDeque<String>,
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a new exec. Returns its id.
    ///
    /// # Errors
    /// When there is no command, too many run, or the kernel gives no random number.
    pub fn create(&self, container: &Arc<Container>, config: ExecConfig) -> Result<String, String> {
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            return Err("No exec command specified".into());
        }
        let id = zone::ids::random().map_err(|e| format!("make an id: {e}"))?;
        let mut kept = self.lock();
        if kept.order.len() >= MAX_KEPT {
            let old = kept.order.iter().position(|id| kept.by_id.get(id).is_none_or(|e| !e.state().running));
            let old = old
                .and_then(|index| kept.order.remove(index))
                .ok_or_else(|| format!("more than {MAX_KEPT} exec processes run"))?;
            kept.by_id.remove(&old);
        }
        let exec = Exec {
            id: id.clone(),
            container: Arc::clone(container),
            config,
            state: Mutex::default(),
            terminal: OnceLock::new(),
        };
        kept.by_id.insert(id.clone(), Arc::new(exec));
        kept.order.push_back(id.clone());
        Ok(id)
    }

    /// An exec by its id.
    pub fn get(&self, id: &str) -> Option<Arc<Exec>> {
        self.lock().by_id.get(id).cloned()
    }

    /// The ids of a container's execs that run.
    pub fn running(&self, container: &str) -> Vec<String> {
        self.lock()
            .by_id
            .values()
            .filter(|e| e.container.id() == container && e.state().running)
            .map(|e| e.id.clone())
            .collect()
    }
}

/// Runs a command in a container without a client, as its user, and waits for its end: its exit code, none when it was killed
/// after `limit`, and the first `most` bytes of what it wrote.
///
/// # Errors
/// Docker's words when it cannot be started.
pub fn run_alone(
    agent: &Agent,
    container: &Arc<Container>,
    args: &[String],
    limit: Duration,
    most: usize,
) -> Result<(Option<i32>, Vec<u8>), String> {
    let config = ExecConfig { cmd: Some(args.to_vec()), ..ExecConfig::default() };
    let (container, state, terminal) = (Arc::clone(container), Mutex::default(), OnceLock::new());
    let exec = Exec { id: String::new(), container, config, state, terminal };
    let (pid, stdio) = exec.try_launch(agent, None).map_err(|e| exec_words(&e))?;
    let Stdio { child, input, output, error } = stdio;
    drop((child, input));
    let process = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok());
    let guard = process.as_ref().and_then(|p| p.try_clone().ok());
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let late = Arc::new(AtomicBool::new(false));
    let killed = Arc::clone(&late);
    let guarded = spawn("limit", move || {
        if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout)
            && let Some(process) = guard
        {
            killed.store(true, Ordering::Relaxed);
            let _ = sys::send_signal(process.as_fd(), libc::SIGKILL);
        }
    });
    if !guarded && let Some(process) = &process {
        let _ = sys::send_signal(process.as_fd(), libc::SIGKILL);
    }
    let mut written = Vec::new();
    pump(output.as_fd(), error.as_ref().map(AsFd::as_fd), process.as_ref().map(AsFd::as_fd), |_, bytes| {
        let room = most - written.len();
        written.extend_from_slice(&bytes[..bytes.len().min(room)]);
    });
    let code = sys::wait_exit_code(pid).unwrap_or(255);
    drop(done);
    Ok(((!late.load(Ordering::Relaxed)).then_some(code), written))
}

impl Exec {
    fn state(&self) -> State {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Docker's ExecInspectResponse.
    pub fn inspect(&self) -> Value {
        let (state, config) = (self.state(), &self.config);
        let command = config.cmd.as_deref().unwrap_or_default();
        json!({
            "ID": self.id, "ContainerID": self.container.id(), "Running": state.running, "ExitCode": state.exit_code, "Pid": state.pid,
            "CanRemove": !state.running && state.exit_code.is_some(), "DetachKeys": config.detach_keys.clone().unwrap_or_default(),
            "OpenStdin": config.attach_stdin, "OpenStdout": config.attach_stdout, "OpenStderr": config.attach_stderr,
            "ProcessConfig": {
                "tty": config.tty, "privileged": config.privileged, "user": config.user.clone().unwrap_or_default(),
                "entrypoint": command.first(), "arguments": command.get(1..).unwrap_or_default(),
            },
        })
    }

    /// Marks it as started. False when it was before.
    pub fn claim(&self) -> bool {
        !std::mem::replace(&mut self.lock().started, true)
    }

    /// Runs it with a client; the connection ends with the process.
    pub fn attached(self: &Arc<Self>, agent: &Arc<Agent>, start: &StartConfig) -> Upgrade {
        let (exec, agent, size, tty) = (Arc::clone(self), Arc::clone(agent), start.console_size, start.tty);
        let work = move |connection: Arc<Connection>, ahead: Vec<u8>| {
            let guard = agent.stream();
            match exec.launch(&agent, size) {
                Ok(stdio) => exec.carry(stdio, Some(&connection), tty, ahead),
                Err(error) => {
                    let words = format!("{}\r\n", exec_words(&error));
                    let _ = send(&connection, tty, Stream::Stdout, words.as_bytes());
                }
            }
            finish(&connection, exec.config.attach_stdin);
            drop(guard);
        };
        Upgrade { tty: start.tty, work: Box::new(work) }
    }

    /// Runs it on its own.
    ///
    /// # Errors
    /// Docker's words when it cannot be started.
    pub fn detached(self: &Arc<Self>, agent: &Agent, start: &StartConfig) -> Result<(), String> {
        let stdio = self.launch(agent, start.console_size).map_err(|e| exec_words(&e))?;
        let exec = Arc::clone(self);
        spawn("exec", move || exec.carry(stdio, None, false, Vec::new()));
        Ok(())
    }

    fn launch(&self, agent: &Agent, size: Option<[u16; 2]>) -> Result<Stdio, StartError> {
        let result = self.try_launch(agent, size);
        let mut state = self.lock();
        match &result {
            Ok((pid, _)) => *state = State { started: true, running: true, pid: *pid, exit_code: None },
            Err(error) => state.exit_code = Some(if error.kind == StartErrorKind::NotFound { 127 } else { 126 }),
        }
        drop(state);
        result.map(|(_, stdio)| stdio)
    }

    fn try_launch(&self, agent: &Agent, size: Option<[u16; 2]>) -> Result<(i32, Stdio), StartError> {
        let (container, config) = (&self.container, &self.config);
        let (spec, root) = (&container.spec, &container.rootfs.root);
        let user = config.user.as_deref().filter(|u| !u.is_empty()).unwrap_or(&spec.user);
        let identity = Users::read(root).resolve(user, &spec.group_add).map_err(|e| other(e.to_string()))?;
        let env: Vec<String> = spec.env.iter().chain(config.env.iter().flatten()).cloned().collect();
        let cwd = config.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or(&spec.cwd);
        let command = config.cmd.as_deref().unwrap_or_default();
        let program = Program::prepare(root, command, &env, cwd, &identity, &agent.spec.hostname, config.tty)?;
        let privileged = config.privileged || spec.privileged;
        let settings = Settings {
            identity,
            caps: caps::effective(privileged, &spec.cap_add, &spec.cap_drop).map_err(|e| other(e.to_string()))?,
            no_new_privileges: spec.no_new_privileges && !config.privileged,
            limits: process::limits(&spec.ulimits)?,
            tty: config.tty,
        };
        let stdio = self.stdio(size).map_err(|e| other(format!("make the standard streams: {e}")))?;
        let mut plan = process::plan(Vec::new(), program, &settings, &stdio);
        let procs = container.cgroup.as_ref().and_then(|c| c.procs().ok());
        plan.cgroup = procs.as_ref().map(AsRawFd::as_raw_fd);
        plan.join = Some(container.pidfd.get().ok_or_else(|| other("the container is not running"))?.as_raw_fd());
        Ok((process::start(&plan)?.pid, stdio))
    }

    fn stdio(&self, size: Option<[u16; 2]>) -> std::io::Result<Stdio> {
        if !self.config.tty {
            return Stdio::pipes(self.config.attach_stdin);
        }
        let stdio = Stdio::terminal(open_ptmx(&self.container.rootfs)?)?;
        if let Some([rows, columns]) = size.or(self.config.console_size) {
            set_size(&stdio.output, rows, columns)?;
        }
        let _ = self.terminal.set(stdio.output.try_clone()?);
        Ok(stdio)
    }

    /// Carries input and output until the process has exited, then notes its exit code.
    fn carry(&self, stdio: Stdio, connection: Option<&Arc<Connection>>, raw: bool, ahead: Vec<u8>) {
        let Stdio { child, input, output, error } = stdio;
        drop(child);
        if let (Some(connection), true) = (connection, self.config.attach_stdin) {
            let connection = Arc::clone(connection);
            // The end of the client's bytes drops the pipe: the process reads its end.
            let keys =
                self.config.tty.then(|| DetachKeys::parse(self.config.detach_keys.as_deref().unwrap_or_default()));
            spawn("stdin", move || {
                if feed(&connection, &ahead, input.as_ref(), keys) {
                    connection.shutdown(Shutdown::Both);
                }
            });
        } else if !self.config.tty {
            drop(input);
        }
        let pid = self.state().pid;
        let process = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok());
        let mut client = connection;
        pump(output.as_fd(), error.as_ref().map(AsFd::as_fd), process.as_ref().map(AsFd::as_fd), |stream, bytes| {
            let wanted = self.config.tty
                || if stream == Stream::Stdout { self.config.attach_stdout } else { self.config.attach_stderr };
            if wanted && client.is_some_and(|c| send(c, raw, stream, bytes).is_err()) {
                // The client is gone; the process goes on, as Docker's does.
                client = None;
            }
        });
        let code = sys::wait_exit_code(pid).unwrap_or(255);
        *self.lock() = State { started: true, running: false, pid, exit_code: Some(code) };
    }
}

/// Sets the size of a terminal.
///
/// # Errors
/// When it is closed.
pub fn set_size(master: &OwnedFd, rows: u16, columns: u16) -> std::io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

fn exec_words(error: &StartError) -> String {
    format!("OCI runtime exec failed: exec failed: unable to start container process: {}: unknown", error.message)
}
