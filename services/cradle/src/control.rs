//! The control socket: devices that are plugged and unplugged while the guest runs ([`zone::control`]).
//!
//! Runs on the main thread. Who can connect is the host's; the guest never speaks here. A device's descriptor comes with the
//! request, so nothing is opened.

use crate::epoll::{Epoll, EventFlags};
use crate::plugger::Plugger;
use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with, recvmsg, send,
};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use zone::control::{MAX_PACKET, Reply, Request};

/// More clients wait for their turn.
const MAX_CLIENTS: usize = 8;
/// A packet brings at most this many descriptors; others are closed by the kernel.
const MAX_DESCRIPTORS: usize = 4;

/// The socket, and its clients.
pub struct Control {
    listener: OwnedFd,
    clients: BTreeMap<u64, OwnedFd>,
    first_token: u64,
}

impl Control {
    /// Has `epoll` tell of clients with `first_token`, and of their requests with the [`Control::TOKENS`] that follow it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(listener: OwnedFd, first_token: u64, epoll: &Epoll) -> Result<Self> {
        epoll.add(&listener, first_token, EventFlags::IN).context("cannot watch the control socket")?;
        Ok(Self { listener, clients: BTreeMap::new(), first_token })
    }

    /// How many tokens are its own.
    pub const TOKENS: u64 = 1 + MAX_CLIENTS as u64;

    /// Something happened to what has this token.
    pub fn event(&mut self, token: u64, epoll: &Epoll, plugger: &mut Plugger) {
        if token == self.first_token {
            self.accept(epoll);
            return;
        }
        let Some(client) = self.clients.get(&token) else { return };
        let answer = match receive(client) {
            Ok(None) => None,
            Ok(Some((request, descriptors))) => Some(perform(plugger, request, descriptors)),
            Err(error) => Some(Err(error)),
        };
        let Some(answer) = answer else {
            self.clients.remove(&token);
            return;
        };
        let reply = answer.unwrap_or_else(|error| Reply::Error { message: format!("{error:#}") });
        let sent = serde_json::to_vec(&reply).ok().and_then(|bytes| {
            let client = self.clients.get(&token)?;
            send(client, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).ok()
        });
        if sent.is_none() {
            self.clients.remove(&token);
        }
    }

    fn accept(&mut self, epoll: &Epoll) {
        let Ok(client) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else { return };
        let free = (self.first_token + 1..self.first_token + Self::TOKENS).find(|t| !self.clients.contains_key(t));
        // One too many is closed again, and sees it.
        if let Some(token) = free
            && epoll.add(&client, token, EventFlags::IN).is_ok()
        {
            self.clients.insert(token, client);
        }
    }
}

fn perform(plugger: &mut Plugger, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply> {
    match request {
        Request::State {} => Ok(Reply::State { empty_slots: plugger.empty_slots() }),
        Request::Plug(plug) => {
            let mut descriptors = descriptors.into_iter();
            let (Some(descriptor), None) = (descriptors.next(), descriptors.next()) else {
                bail!("a device comes with one descriptor");
            };
            Ok(Reply::Plugged { device: plugger.plug(plug, descriptor.into())? })
        }
        Request::Unplug { device } => plugger.unplug(&device).map(|()| Reply::Unplugged {}),
    }
}

/// The next request of a client, none when it has left.
fn receive(client: &impl AsFd) -> Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; MAX_PACKET];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    // One that fails has gone in between.
    let Ok(message) = recvmsg(client, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) else {
        return Ok(None);
    };
    let descriptors = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        bail!("a request has at most {MAX_PACKET} bytes");
    }
    let request = serde_json::from_slice(&bytes[..message.bytes]).context("this is no request")?;
    Ok(Some((request, descriptors)))
}
