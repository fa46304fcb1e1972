//! One connection: its two directions, each with its own end, and its credit.
//!
//! ```text
//!   guest ── data ──> [inbox, at most BUFFER] ──> stream        credit: we say what we have passed on
//!   guest <── data ── stream                                    credit: never more than the guest has room for
//! ```
//! A direction ends by itself (half close); the connection is over when both have ended and everything is delivered. What the
//! guest has sent is delivered even when the guest is gone. The state changes only here; [`super::device`] brings packets and
//! events and takes packets away.

use super::log::LogFiles;
use super::packet::{NO_RECEIVE, NO_SEND, Op};
use crate::say;
use crate::virtio::chain::Buffers;
use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

/// What the guest may send before we have passed it on, bytes.
pub const BUFFER: u32 = 128 * 1024;

/// The host's end.
#[derive(Debug)]
pub enum Peer {
    /// A client of the agent's socket.
    Stream(UnixStream),
    /// The log's files.
    Log(Box<LogFiles>),
    /// Nobody: what is sent is lost, nothing is answered.
    Nobody,
}

/// What is next to be told to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A packet without data.
    Packet(Op, u32),
    /// Data has been put into the buffers.
    Data(usize),
    /// Nothing.
    Nothing,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    peer: Peer,
    /// We asked for it and the guest has not answered.
    connecting: bool,
    /// Packets to send first.
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
    /// Guest to host.
    inbox: VecDeque<u8>,
    passed_on: u32,
    passed_on_told: u32,
    guest_sends: bool,
    stream_writable: bool,
    stream_takes: bool,
    /// Host to guest.
    sent: u32,
    guest_buffer: u32,
    guest_passed_on: u32,
    guest_receives: bool,
    stream_readable: bool,
    stream_gives: bool,
    /// Which ends we have told.
    told: u32,
    /// The guest knows no more of it.
    gone: bool,
    /// It is in the device's line of those that may have something to send.
    pub lined_up: bool,
}

impl Connection {
    fn new(peer: Peer) -> Self {
        let stream = matches!(peer, Peer::Stream(_));
        Self {
            peer,
            connecting: false,
            request: false,
            response: false,
            reset: false,
            credit: false,
            inbox: VecDeque::new(),
            passed_on: 0,
            passed_on_told: 0,
            guest_sends: true,
            stream_writable: true,
            stream_takes: true,
            sent: 0,
            guest_buffer: 0,
            guest_passed_on: 0,
            guest_receives: true,
            stream_readable: stream,
            // The log and nobody say nothing, but their silence is no end before the guest's is.
            stream_gives: true,
            told: 0,
            gone: false,
            lined_up: false,
        }
    }

    /// One that the host's client asks for.
    #[must_use]
    pub fn to_guest(stream: UnixStream) -> Self {
        Self { connecting: true, request: true, ..Self::new(Peer::Stream(stream)) }
    }

    /// One that the guest asks for.
    #[must_use]
    pub fn from_guest(peer: Peer, guest_buffer: u32, guest_passed_on: u32) -> Self {
        Self { response: true, guest_buffer, guest_passed_on, ..Self::new(peer) }
    }

    /// The host's end, taken out of a connection that is over.
    #[must_use]
    pub fn into_peer(self) -> Peer {
        self.peer
    }

    /// Bytes passed on, for a packet's header, which tells the guest.
    pub fn tell_passed_on(&mut self) -> u32 {
        self.passed_on_told = self.passed_on;
        self.credit = false;
        self.passed_on
    }

    /// Every packet of the guest brings its credit.
    pub fn guest_credit(&mut self, buffer: u32, passed_on: u32) {
        self.guest_buffer = buffer;
        self.guest_passed_on = passed_on;
    }

    /// The guest answers our request.
    pub fn responded(&mut self) {
        if self.connecting && !self.request {
            self.connecting = false;
        } else {
            self.reset = true;
        }
    }

    /// The guest says what cannot be: the connection ends.
    pub fn fail(&mut self) {
        self.reset = true;
    }

    /// The guest wants to know what it may send.
    pub fn credit_requested(&mut self) {
        self.credit = true;
    }

    /// The guest sends data.
    pub fn data(&mut self, mut data: Buffers<'_>) {
        let len = data.len();
        if self.connecting || !self.guest_sends || self.inbox.len() + len > BUFFER as usize {
            self.reset = true;
            return;
        }
        match &mut self.peer {
            Peer::Stream(_) => {
                if self.stream_takes && self.inbox.is_empty() && self.stream_writable {
                    let written = self.write_directly(&data);
                    data.split(written);
                    self.pass_on(written);
                }
                let mut rest = vec![0; data.len()];
                data.read(&mut rest);
                if self.stream_takes {
                    self.inbox.extend(rest);
                } else {
                    self.pass_on(rest.len());
                }
            }
            Peer::Log(log) => {
                let mut bytes = vec![0; len];
                data.read(&mut bytes);
                if let Err(error) = log.write(&bytes) {
                    say(&format!("the log loses records: {error}"));
                }
                self.pass_on(len);
            }
            Peer::Nobody => self.pass_on(len),
        }
    }

    /// Writes guest memory to the stream without a copy in between; gives how much of it.
    fn write_directly(&mut self, data: &Buffers<'_>) -> usize {
        let Peer::Stream(stream) = &self.peer else { return 0 };
        let iovecs = data.iovecs(usize::MAX);
        // SAFETY: each iovec is a checked slice of guest memory that stays mapped while `data` borrows it; the count is at most
        // their number.
        let written =
            unsafe { libc::writev(stream.as_raw_fd(), iovecs.as_ptr(), iovecs.len().min(1024) as libc::c_int) };
        if written >= 0 {
            return written as usize;
        }
        self.write_failed(&io::Error::last_os_error());
        0
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.stream_writable = false,
            io::ErrorKind::Interrupted => {}
            // The client is gone; what the guest still sends is lost, and it is told.
            _ => self.stream_takes = false,
        }
    }

    fn pass_on(&mut self, count: usize) {
        self.passed_on = self.passed_on.wrapping_add(count as u32);
        if self.passed_on.wrapping_sub(self.passed_on_told) >= BUFFER / 4 {
            self.credit = true;
        }
    }

    /// The guest ends one or both directions.
    pub fn shut_down(&mut self, flags: u32) {
        if flags & NO_SEND != 0 {
            self.guest_sends = false;
        }
        if flags & NO_RECEIVE != 0 {
            self.guest_receives = false;
        }
        if flags & (NO_SEND | NO_RECEIVE) == NO_SEND | NO_RECEIVE {
            self.gone = true;
            self.reset = true;
        }
        self.flush();
    }

    /// The guest knows no more of it; what it sent before is still delivered.
    pub fn was_reset(&mut self) {
        self.guest_sends = false;
        self.guest_receives = false;
        self.gone = true;
        self.reset = false;
        self.flush();
    }

    /// Something happened to the stream; `closed`: the client has gone altogether.
    pub fn stream_event(&mut self, readable: bool, writable: bool, closed: bool) {
        self.stream_readable |= readable;
        if closed {
            self.stream_takes = false;
            self.flush();
        }
        if writable {
            self.stream_writable = true;
            self.flush();
        }
    }

    /// Delivers what the guest has sent, and its end.
    fn flush(&mut self) {
        let mut written_total = 0;
        if let Peer::Stream(stream) = &mut self.peer {
            while self.stream_takes && self.stream_writable && !self.inbox.is_empty() {
                let (first, second) = self.inbox.as_slices();
                match stream.write(if first.is_empty() { second } else { first }) {
                    Ok(written) => {
                        self.inbox.drain(..written);
                        written_total += written;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream_writable = false,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => self.stream_takes = false,
                }
            }
            if !self.stream_takes {
                written_total += self.inbox.len();
                self.inbox.clear();
            }
        }
        self.pass_on(written_total);
        if self.guest_sends || !self.inbox.is_empty() {
            return;
        }
        match &mut self.peer {
            Peer::Stream(stream) if self.stream_takes => {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            Peer::Stream(_) => {}
            Peer::Log(log) => {
                if let Err(error) = log.finish() {
                    say(&format!("the log loses records: {error}"));
                }
                self.stream_gives = false;
            }
            Peer::Nobody => self.stream_gives = false,
        }
        self.stream_takes = false;
    }

    /// How much the guest has room for.
    fn room(&self) -> usize {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_passed_on)) as usize
    }

    /// Whether there may be something to tell.
    #[must_use]
    pub fn has_something(&self) -> bool {
        let open = !self.connecting && (self.credit || self.untold_ends() != 0 || self.may_read());
        self.pending() || (!self.gone && open)
    }

    /// Whether a packet is to be sent whatever else there is. A guest that knows no more of it is told nothing but a reset.
    fn pending(&self) -> bool {
        self.reset || (!self.gone && (self.request || self.response))
    }

    fn may_read(&self) -> bool {
        self.stream_readable && self.stream_gives && self.guest_receives && !self.connecting && self.room() > 0
    }

    fn untold_ends(&self) -> u32 {
        let mut ends = 0;
        if !self.stream_gives {
            ends |= NO_SEND;
        }
        // Told of our own accord only: a guest that has ended its direction knows.
        if !self.stream_takes && (self.guest_sends || !self.stream_gives) {
            ends |= NO_RECEIVE;
        }
        ends & !self.told
    }

    /// Says what to tell next; data goes to `buffers`.
    pub fn next(&mut self, buffers: &mut Buffers<'_>) -> Told {
        if std::mem::take(&mut self.reset) {
            self.gone = true;
            self.guest_sends = false;
            self.guest_receives = false;
            self.flush();
            return Told::Packet(Op::Reset, 0);
        }
        if self.gone {
            return Told::Nothing;
        }
        if std::mem::take(&mut self.request) {
            return Told::Packet(Op::Request, 0);
        }
        if std::mem::take(&mut self.response) {
            return Told::Packet(Op::Response, 0);
        }
        if self.connecting {
            return Told::Nothing;
        }
        if self.may_read()
            && let Some(len) = self.read(buffers)
        {
            return Told::Data(len);
        }
        let ends = self.untold_ends();
        if ends != 0 {
            self.told |= ends;
            return Told::Packet(Op::Shutdown, self.told);
        }
        if std::mem::take(&mut self.credit) {
            return Told::Packet(Op::CreditUpdate, 0);
        }
        Told::Nothing
    }

    /// Reads from the stream straight into guest memory.
    fn read(&mut self, buffers: &mut Buffers<'_>) -> Option<usize> {
        let Peer::Stream(stream) = &self.peer else { return None };
        let iovecs = buffers.iovecs(self.room().min(super::packet::MAX_DATA));
        if iovecs.is_empty() {
            return None;
        }
        loop {
            // SAFETY: each iovec is a checked slice of guest memory that stays mapped while `buffers` borrows it; the count is at
            // most their number.
            let got =
                unsafe { libc::readv(stream.as_raw_fd(), iovecs.as_ptr(), iovecs.len().min(1024) as libc::c_int) };
            if got > 0 {
                self.sent = self.sent.wrapping_add(got as u32);
                return Some(got as usize);
            }
            if got == 0 {
                self.stream_gives = false;
                return None;
            }
            match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    self.stream_readable = false;
                    return None;
                }
                _ => {
                    self.stream_gives = false;
                    self.stream_takes = false;
                    return None;
                }
            }
        }
    }

    /// Nothing is left to do.
    #[must_use]
    pub fn over(&self) -> bool {
        let delivered = !self.guest_sends && self.inbox.is_empty();
        let both_told = self.told == NO_SEND | NO_RECEIVE || (!self.guest_sends && self.told & NO_SEND != 0);
        !self.pending() && ((self.gone && self.inbox.is_empty()) || (both_told && (delivered || !self.stream_takes)))
    }
}
