//! One command: its process, its three streams or its terminal, its end.
//!
//! The answer comes when the command itself has ended and all that it wrote is sent; a process that it left behind does not
//! keep the connection open. When the connection ends first, the command's process group is killed.

#![allow(unsafe_code)]

use crate::wire::{self, CHUNK, Kind, Request};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

/// What a command finds when the request says nothing else.
const BASE_ENV: [(&str, &str); 5] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LANG", "C.UTF-8"),
    ("TERM", "xterm-256color"),
];

/// What a ready pipe takes at least (pipe(7)).
const PIPE_BUF: usize = 4096;

type Output = Mutex<TcpStream>;

fn send(output: &Output, kind: Kind, payload: &[u8]) -> io::Result<()> {
    wire::write_frame(&mut *output.lock().unwrap_or_else(PoisonError::into_inner), kind, payload)
}

/// Runs the request and returns its exit status as a shell tells it.
///
/// # Errors
/// When the command cannot be started; the text is for the client.
pub fn run(request: &Request, input: &TcpStream, output: &Output) -> io::Result<u32> {
    let mut command = command(request)?;
    let (mut child, streams) = match request.terminal {
        None => with_pipes(&mut command),
        Some(size) => with_terminal(&mut command, size),
    }
    .map_err(|e| {
        let program = request.argv.first().map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
        io::Error::new(e.kind(), format!("cannot run {program}: {e}"))
    })?;
    let group = Pid::from_child(&child);
    // A client that is gone already is seen by the reader below.
    let _ = send(output, Kind::Started, &child.id().to_be_bytes());
    let Streams { stdin, outputs, terminal } = streams;
    let ended = Mutex::new(false);
    // Its write end is dropped when the command has ended; that wakes every thread below.
    let (exited, exit_signal) = io::pipe()?;
    let status = std::thread::scope(|scope| {
        let (exited, ended) = (&exited, &ended);
        let to = Input { stdin, terminal, group };
        scope.spawn(move || {
            forward_input(input, to, exited, ended);
            signal_unless_ended(group, Signal::KILL, ended);
        });
        for (kind, from) in outputs {
            scope.spawn(move || pump(kind, from, exited, output));
        }
        let status = wait(&mut child, ended);
        drop(exit_signal);
        status
    })?;
    Ok(code(status))
}

fn command(request: &Request) -> io::Result<Command> {
    let mut words = request.argv.iter().map(|word| OsStr::from_bytes(word));
    let program = words.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
    let mut command = Command::new(program);
    command.args(words).env_clear().envs(BASE_ENV).current_dir("/");
    for pair in &request.env {
        if let Some(at) = pair.iter().position(|byte| *byte == b'=') {
            command.env(OsStr::from_bytes(&pair[..at]), OsStr::from_bytes(&pair[at + 1..]));
        }
    }
    Ok(command)
}

struct Streams {
    stdin: Option<File>,
    outputs: Vec<(Kind, File)>,
    terminal: Option<File>,
}

fn with_pipes(command: &mut Command) -> io::Result<(Child, Streams)> {
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let file = |fd: OwnedFd| File::from(fd);
    let outputs = [
        (Kind::Stdout, child.stdout.take().map(OwnedFd::from)),
        (Kind::Stderr, child.stderr.take().map(OwnedFd::from)),
    ];
    let outputs = outputs.into_iter().filter_map(|(kind, fd)| Some((kind, file(fd?)))).collect();
    let stdin = child.stdin.take().map(|stdin| file(stdin.into()));
    Ok((child, Streams { stdin, outputs, terminal: None }))
}

fn with_terminal(command: &mut Command, size: (u16, u16)) -> io::Result<(Child, Streams)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?;
    // Without NOCTTY it would become the terminal of this very process, which is a session's leader under systemd: the command
    // could not have it, and its end would hang us up.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let master = File::from(master);
    resize(&master, size);
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    // SAFETY: between fork and exec only two system calls are made; neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    // The command's copies of the terminal must be the only ones, or its end is never seen.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let outputs = vec![(Kind::Stdout, master.try_clone()?)];
    let stdin = Some(master.try_clone()?);
    Ok((child, Streams { stdin, outputs, terminal: Some(master) }))
}

fn resize(terminal: &File, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal of the wrong size is still one.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// Waits; sets `ended` before the process id can belong to another process.
fn wait(child: &mut Child, ended: &Mutex<bool>) -> io::Result<ExitStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    while let Err(e) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
        if e != rustix::io::Errno::INTR {
            return Err(e.into());
        }
    }
    *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    child.wait()
}

fn signal_unless_ended(group: Pid, signal: Signal, ended: &Mutex<bool>) {
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ended {
        let _ = kill_process_group(group, signal);
    }
}

struct Input {
    stdin: Option<File>,
    terminal: Option<File>,
    group: Pid,
}

/// Passes the client's frames on until the connection or the command ends.
fn forward_input(mut from: &TcpStream, mut to: Input, exited: &PipeReader, ended: &Mutex<bool>) {
    while readable(from, PollFlags::IN, exited) {
        let Ok(Some(frame)) = wire::read_frame(&mut from) else {
            return;
        };
        match frame.kind {
            Kind::Stdin => {
                let Some(stdin) = &mut to.stdin else { continue };
                match write_input(stdin, &frame.payload, from, exited) {
                    Ok(true) => {}
                    Ok(false) => return,
                    // A command that does not read its input any more is no reason to end it.
                    Err(_) => to.stdin = None,
                }
            }
            Kind::StdinEof if to.terminal.is_some() => {
                const END_OF_TRANSMISSION: u8 = 4;
                let _ = to.stdin.as_mut().map(|stdin| stdin.write_all(&[END_OF_TRANSMISSION]));
            }
            Kind::StdinEof => to.stdin = None,
            Kind::Signal => {
                let number = frame.payload.first().copied().unwrap_or_default();
                if let Some(signal) = Signal::from_named_raw(i32::from(number)) {
                    signal_unless_ended(to.group, signal, ended);
                }
            }
            Kind::Resize => {
                if let (Some(terminal), Some(size)) = (&to.terminal, wire::decode_size(&frame.payload)) {
                    resize(terminal, size);
                }
            }
            _ => return,
        }
    }
}

/// Waits for the client; false when the command has ended.
fn readable(client: &TcpStream, flags: PollFlags, exited: &PipeReader) -> bool {
    loop {
        let mut fds = [PollFd::new(client, flags), PollFd::new(exited, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return fds[1].revents().is_empty(),
        }
    }
}

/// Writes without waiting for a command that reads slowly: false when the client or the command is gone before all is written.
fn write_input(stdin: &mut File, mut bytes: &[u8], client: &TcpStream, exited: &PipeReader) -> io::Result<bool> {
    while !bytes.is_empty() {
        let mut fds = [
            PollFd::new(stdin, PollFlags::OUT),
            PollFd::new(client, PollFlags::RDHUP),
            PollFd::new(exited, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => {}
        }
        if fds[0].revents().is_empty() {
            return Ok(false);
        }
        // A pipe that is ready takes this much without blocking.
        let length = bytes.len().min(PIPE_BUF);
        bytes = &bytes[stdin.write(&bytes[..length])?..];
    }
    Ok(true)
}

/// Sends what the command writes, until its end; after `exited` only what is there already.
fn pump(kind: Kind, mut from: File, exited: &PipeReader, output: &Output) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = [PollFd::new(&from, PollFlags::IN), PollFd::new(exited, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if fds[0].revents().is_empty() {
            return;
        }
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if send(output, kind, &buffer[..length]).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose last user is gone answers EIO.
            Err(_) => return,
        }
    }
}

fn code(status: ExitStatus) -> u32 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}
