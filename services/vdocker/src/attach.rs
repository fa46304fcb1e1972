//! Streams between a client and a process: the client's bytes go in, output comes out, raw or in Docker's frames.

use crate::agent::{Agent, spawn};
use crate::container::Container;
use crate::detach::DetachKeys;
use crate::http::request::Request;
use crate::http::response::Upgrade;
use crate::output::frame;
use crate::platform::Stream as Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use zone::log::Stream;

/// How long a client may take to close its side after the end of the output.
const CLOSE_LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Attaches a client to a container's process. The client reads along from the moment of this call.
pub fn attach(agent: &Arc<Agent>, container: &Arc<Container>, request: &Request) -> Upgrade {
    let (agent, container) = (Arc::clone(agent), Arc::clone(container));
    let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(|name| request.flag(name));
    let reader =
        (stdout || stderr).then(|| container.output.reader(request.query("resume").parse().ok(), request.stream()));
    let tty = container.spec.tty;
    let keys = tty.then(|| DetachKeys::parse(request.query("detachKeys")));
    let work = move |connection: Arc<Connection>, ahead: Vec<u8>| {
        let guard = agent.stream();
        if stdin {
            let (input, connection, container) =
                (container.open_input(), Arc::clone(&connection), Arc::clone(&container));
            let feed_all = move || {
                let detached = feed(&connection, &ahead, input.as_deref(), keys);
                drop(input);
                if detached {
                    connection.shutdown(Shutdown::Both);
                } else if container.spec.stdin_once {
                    container.close_input();
                }
            };
            if reader.is_none() {
                return feed_all();
            }
            spawn("stdin", feed_all);
        }
        while let Some((stream, bytes)) = reader.as_ref().and_then(crate::output::Reader::next) {
            let wanted = if stream == Stream::Stdout { stdout } else { stderr };
            if wanted && send(&connection, tty, stream, &bytes).is_err() {
                break;
            }
        }
        finish(&connection, stdin);
        drop(guard);
    };
    Upgrade { tty, work: Box::new(work) }
}

/// Sends a piece of output.
///
/// # Errors
/// When the client is gone.
pub fn send(connection: &Connection, tty: bool, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    let mut out: &Connection = connection;
    if tty { out.write_all(bytes) } else { out.write_all(&frame(stream, bytes)) }
}

/// Carries the client's bytes to the process until the client closes its side or the process its input. The client's
/// bytes are read on, and dropped, after that: unread ones would make its end a reset. True when the client typed `keys`.
pub fn feed(connection: &Connection, ahead: &[u8], input: Option<&OwnedFd>, mut keys: Option<DetachKeys>) -> bool {
    let mut pass = |bytes: &[u8]| keys.as_mut().map_or_else(|| Some(bytes.to_vec()), |keys| keys.pass(bytes));
    let Some(first) = pass(ahead) else { return true };
    let mut open = input.filter(|fd| write_all(fd, &first).is_ok());
    let mut buffer = vec![0u8; 16 * 1024];
    let mut source: &Connection = connection;
    while let Ok(length @ 1..) = source.read(&mut buffer) {
        let Some(bytes) = pass(&buffer[..length]) else { return true };
        open = open.filter(|fd| write_all(fd, &bytes).is_ok());
    }
    false
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Ends the stream: the client reads the end, and has a moment to close its side, so that nothing that was sent is lost. Then
/// a thread that still reads from it is let go.
pub fn finish(connection: &Connection, somebody_reads: bool) {
    connection.shutdown(Shutdown::Write);
    if somebody_reads {
        let mut fds = [PollFd::new(connection, PollFlags::HUP | PollFlags::RDHUP)];
        let _ = poll(&mut fds, Some(&CLOSE_LIMIT));
    }
    connection.shutdown(Shutdown::Both);
}
