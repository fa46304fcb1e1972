//! The Docker socket in a container: what connects to it is handed to the host, which asks for it.
//!
//! ```text
//! program ── /var/run/docker.sock ── agent ═══ vsock port 1 (a connection that the host opened) ═══ docker-api
//! ```
//! The host opens connections ahead (`POST /v1/docker/ID`); each waits for one program, whose coming is
//! told by one byte. So the guest never connects to the
//! host for this, and what is at the other end knows from the beginning whose guest it is.
//!
//! Must not: read what goes through.

use crate::agent::spawn;
use crate::container::Container;
use crate::http::response::Upgrade;
use crate::platform::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// What the host reads first: a program is there.
const TAKEN: u8 = b'+';
/// Programs that may wait to be served.
const BACKLOG: i32 = 128;

/// Makes a socket that listens, for root and root's group, as Docker's is.
///
/// # Errors
/// When it cannot be made.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(0o660))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Waits for a program that connects to the container's socket, and carries bytes between it and the host.
pub fn next(container: &Arc<Container>) -> Upgrade {
    let container = Arc::clone(container);
    let work = move |host: Arc<Stream>, _ahead: Vec<u8>| {
        if let Some(program) = accept(&container.rootfs.docker_sockets, &host) {
            carry(&host, &Arc::new(Stream(program)));
        }
        host.shutdown(Shutdown::Both);
    };
    Upgrade { tty: true, work: Box::new(work) }
}

/// None when the host has gone away first.
fn accept(listeners: &[OwnedFd], host: &Stream) -> Option<OwnedFd> {
    loop {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(host, PollFlags::RDHUP | PollFlags::HUP)];
        fds.extend(listeners.iter().map(|l| PollFd::new(l, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        if !fds[0].revents().is_empty() {
            return None;
        }
        let ready: Vec<BorrowedFd<'_>> = fds
            .iter()
            .skip(1)
            .zip(listeners)
            .filter(|(f, _)| !f.revents().is_empty())
            .map(|(_, l)| l.as_fd())
            .collect();
        // Several wait for the same programs: another may have been faster.
        if let Some(program) = ready.into_iter().find_map(|l| rustix::net::accept_with(l, SocketFlags::CLOEXEC).ok()) {
            return Some(program);
        }
    }
}

/// Both ways, each half closed when its source is.
fn carry(host: &Arc<Stream>, program: &Arc<Stream>) {
    let mut out: &Stream = host;
    if out.write_all(&[TAKEN]).is_err() {
        return;
    }
    let (to_host, from_program) = (Arc::clone(host), Arc::clone(program));
    let up = spawn("docker-up", move || copy(&from_program, &to_host));
    if !up {
        return;
    }
    copy(host, program);
}

fn copy(from: &Stream, to: &Stream) {
    let (mut source, mut sink) = (from, to);
    if io::copy(&mut source, &mut sink).is_err() {
        // Nobody reads any more: the other side learns it at once.
        from.shutdown(Shutdown::Both);
    }
    to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_program_is_handed_to_the_host_and_both_halves_close_on_their_own() {
        let dir = std::env::temp_dir().join(format!("vdocker-relay-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("docker.sock");
        let _ = std::fs::remove_file(&path);
        let listener = listen(&path).unwrap();
        let (mut host, agent) = UnixStream::pair().unwrap();
        let agent = Arc::new(Stream(agent.into()));
        let served = std::thread::spawn(move || {
            let program = accept(&[listener], &agent).unwrap();
            carry(&agent, &Arc::new(Stream(program)));
        });
        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(b"question").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "+question");
        host.write_all(b"answer").unwrap();
        drop(host);
        text.clear();
        program.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        served.join().unwrap();
    }

    #[test]
    fn a_host_that_goes_away_leaves_the_program_to_the_next() {
        let dir = std::env::temp_dir().join(format!("vdocker-relay-gone-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("docker.sock");
        let _ = std::fs::remove_file(&path);
        let listener = listen(&path).unwrap();
        let (host, agent) = UnixStream::pair().unwrap();
        drop(host);
        assert!(accept(&[listener], &Stream(agent.into())).is_none());
    }
}
