//! The agent's HTTP server: one thread per connection, blocking, HTTP/1.1.
//!
//! Owns: the limits on what a client may send. Everything a request does is in [`route`] and behind it.
//! Must not: trust a length; read more than it needs before a stream is taken over.

pub mod request;
pub mod response;
pub mod route;

use crate::agent::{Agent, spawn};
use crate::console;
use crate::platform::Stream;
use crate::sys;
use request::{Request, RequestError};
use response::{Answer, Response};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use zone::bundle::READY_PORT;

/// The most connections at a time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 256;

/// How much of a body that nobody wants is read and dropped.
const MAX_DRAINED: u64 = 1 << 30;

/// Listens, tells the host that it may connect, and serves until the power goes.
pub fn serve(agent: &Arc<Agent>) {
    let listener = match agent.platform.listen() {
        Ok(listener) => listener,
        Err(error) => return console::say(&format!("cannot listen for requests: {error}")),
    };
    let agent = Arc::clone(agent);
    let ready = agent.platform.connect(READY_PORT);
    if let Err(error) = &ready {
        console::say(&format!("cannot tell the host that the agent is ready: {error}"));
    }
    spawn("listener", move || {
        accept_all(&agent, &listener);
        drop(ready);
    });
}

fn accept_all(agent: &Arc<Agent>, listener: &OwnedFd) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match sys::accept(listener.as_fd()) {
            Ok(fd) => Stream(fd),
            Err(error) => {
                console::say(&format!("cannot accept a connection: {error}"));
                // Out of descriptors or memory: a loop at full speed would make it worse.
                std::thread::sleep(std::time::Duration::from_millis(20));
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (agent, count) = (Arc::clone(agent), Arc::clone(&open));
        let counted = agent.connection();
        let served = spawn("connection", move || {
            connection(&agent, &Arc::new(stream));
            drop(counted);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if !served {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One request after the other until the client leaves or a stream takes the connection over.
fn connection(agent: &Arc<Agent>, stream: &Arc<Stream>) {
    let mut rest = Vec::new();
    loop {
        let mut request = match Request::read(stream, rest) {
            Ok(request) => request,
            Err(RequestError::Closed) => return,
            Err(error) => {
                let _ = write(stream, &Response::error(error.status(), &error.to_string()), false, false);
                return;
            }
        };
        let head_only = request.method == "HEAD";
        match route::answer(agent, &mut request) {
            Answer::Response(response) => {
                // A client that is still sending would see a broken connection instead of the answer.
                let _ = std::io::copy(&mut request.body().take(MAX_DRAINED), &mut std::io::sink());
                let keep = request.keep_alive && request.body_is_read();
                if write(stream, &response, head_only, keep).is_err() || !keep {
                    return;
                }
                rest = request.into_rest();
            }
            Answer::Download(work) => {
                work(stream);
                return;
            }
            Answer::Upgrade(upgrade) => {
                // A body that the handler has not read is no part of the stream.
                let _ = std::io::copy(&mut request.body().take(MAX_DRAINED), &mut std::io::sink());
                let head = response::upgrade_head(request.upgrade, upgrade.tty);
                if {
                    let mut out: &Stream = stream;
                    out.write_all(&head)
                }
                .is_ok()
                {
                    (upgrade.work)(Arc::clone(stream), request.into_rest());
                }
                return;
            }
        }
    }
}

fn write(stream: &Stream, response: &Response, head_only: bool, keep: bool) -> std::io::Result<()> {
    let mut out: &Stream = stream;
    out.write_all(&response.to_bytes(head_only, keep))
}
