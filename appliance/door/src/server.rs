//! Listens, checks the token, and gives each connection its own thread.
//!
//! Before the right token is there, a peer gets one frame's worth of memory and ten seconds.

use crate::session;
use crate::wire::{self, Kind};
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Connections at once; more are refused.
const MAX_CONNECTIONS: usize = 256;
/// How long a peer may take to say who it is.
const AUTH_DEADLINE: Duration = Duration::from_secs(10);

struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves for ever.
///
/// # Errors
/// Only when the listener itself fails; a connection's failure ends that connection.
pub fn serve(listener: &TcpListener, token: &[u8]) -> io::Result<()> {
    let token: Arc<[u8]> = token.into();
    let used = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(e) => return Err(e),
        };
        let slot = Slot(Arc::clone(&used));
        if used.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            continue;
        }
        let token = Arc::clone(&token);
        // A thread that cannot be made drops the stream: the client sees the end and says so.
        let _ = std::thread::Builder::new().name("door".into()).spawn(move || {
            let _slot = slot;
            let _ = handle(stream, &token);
        });
    }
}

fn handle(mut stream: TcpStream, token: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(AUTH_DEADLINE))?;
    let first = wire::read_frame(&mut stream)?;
    if !first.is_some_and(|frame| frame.kind == Kind::Auth && wire::same_secret(&frame.payload, token)) {
        wire::write_frame(&mut stream, Kind::Error, b"the token is wrong")?;
        return drain(&mut stream);
    }
    let request = match wire::read_frame(&mut stream)? {
        Some(frame) if frame.kind == Kind::Request => wire::Request::decode(&frame.payload),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "expected a request")),
    };
    stream.set_read_timeout(None)?;
    let output = Mutex::new(stream.try_clone()?);
    let ran = request.and_then(|request| session::run(&request, &stream, &output));
    let mut output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
    match ran {
        Ok(code) => wire::write_frame(&mut output, Kind::Exit, &code.to_be_bytes())?,
        Err(e) => wire::write_frame(&mut output, Kind::Error, e.to_string().as_bytes())?,
    }
    drain(&mut stream)
}

/// Reads what the client still sends: closing with input unread would make the kernel reset the connection, and the last
/// frames could be lost.
fn drain(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(AUTH_DEADLINE))?;
    let until = Instant::now() + AUTH_DEADLINE;
    let mut buffer = [0; 8192];
    while Instant::now() < until && stream.read(&mut buffer)? > 0 {}
    Ok(())
}
