//! The vsock device: joins queues, connections and the host's sockets.
//!
//! Runs on the main thread. One packet a connection and turn, so that no connection starves the others. A connection that the
//! guest may not have is answered by a reset; while too many of those wait, no more packets are taken from the guest.

use super::connection::{BUFFER, Connection, Peer, Told};
use super::log::LogFiles;
use super::packet::{HEADER, Header, MAX_DATA, Op, TYPE_STREAM};
use super::{GUEST_CID, HOST_CID};
use crate::epoll::{Epoll, EventFlags};
use crate::memory::Mem;
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::{Slot, look_again, notify};
use rustix::net::{SocketFlags, accept_with};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use virtio_queue::{Queue, QueueT as _};
use zone::bundle::{AGENT_PORT, LOG_PORT, READY_PORT};

/// The most connections at once, both ways.
const MAX_CONNECTIONS: usize = 1024;
/// The most resets that wait for room.
const MAX_RESETS: usize = 256;
/// Our ports for connections to the guest count from here.
const FIRST_PORT: u32 = 1 << 20;

/// Host's port and guest's port.
type Key = (u32, u32);

/// The backend.
pub struct Vsock {
    slot: Arc<Slot>,
    mem: Arc<Mem>,
    sockets: Sockets,
}

/// All but the queues.
struct Sockets {
    listener: UnixListener,
    listener_token: u64,
    /// The agent answers: connections are accepted.
    ready: bool,
    /// Nobody has been told yet that it does.
    news: bool,
    listener_ready: bool,
    log: Option<Box<LogFiles>>,
    log_wanted: bool,
    connections: HashMap<Key, Connection>,
    /// Those that may have something for the guest.
    line: VecDeque<Key>,
    resets: VecDeque<Key>,
    next_port: u32,
    epoch: u32,
}

impl Vsock {
    /// For this slot; `token` is the listener's in the epoll set, tokens from 2^32 on are the connections'.
    ///
    /// # Errors
    /// When the listener cannot be set up.
    pub fn new(
        slot: Arc<Slot>,
        mem: Arc<Mem>,
        listener: UnixListener,
        token: u64,
        log: Option<LogFiles>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let sockets = Sockets {
            listener,
            listener_token: token,
            ready: false,
            news: false,
            listener_ready: false,
            log_wanted: log.is_some(),
            log: log.map(Box::new),
            connections: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            epoch: 0,
        };
        Ok(Self { slot, mem, sockets })
    }

    /// The guest has begun its log and not ended it.
    #[must_use]
    pub fn log_is_open(&self) -> bool {
        self.sockets.log_wanted && self.sockets.log.is_none()
    }

    /// The last container's exit status, as the log has it.
    #[must_use]
    pub fn exit_status(&self) -> Option<u8> {
        self.sockets.log.as_ref()?.exit_status()
    }

    /// The agent has begun to answer, since this was asked last.
    pub fn became_ready(&mut self) -> bool {
        std::mem::take(&mut self.sockets.news)
    }

    /// A client waits at the agent's socket.
    pub fn client_waits(&mut self) {
        self.sockets.listener_ready = true;
    }

    /// Something happened to the connection with this token.
    pub fn stream_event(&mut self, token: u64, flags: EventFlags) {
        let key = ((token >> 32) as u32, token as u32);
        let Some(connection) = self.sockets.connections.get_mut(&key) else { return };
        let closed = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let readable = closed || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        connection.stream_event(readable, flags.contains(EventFlags::OUT), closed);
        self.sockets.settle(key);
    }

    /// Moves everything that can be moved.
    ///
    /// # Errors
    /// When the epoll set is broken.
    pub fn serve(&mut self, epoll: &Epoll) -> io::Result<()> {
        let slot = self.slot.clone();
        let mut active = slot.active();
        let epoch = active.as_ref().map_or(0, |active| active.epoch);
        if epoch != self.sockets.epoch {
            self.sockets.forget_all(epoch);
        }
        let Some(active) = active.as_mut() else { return Ok(()) };
        let [rx, tx, ..] = active.queues.as_mut_slice() else { return Ok(()) };
        loop {
            self.sockets.accept(epoll)?;
            let taken = take(&mut self.sockets, tx, &self.mem, epoll)?;
            if taken {
                notify(&slot, tx, &self.mem);
            }
            let given = give(&mut self.sockets, rx, &self.mem);
            if given {
                notify(&slot, rx, &self.mem);
            }
            if !taken && !given {
                return Ok(());
            }
        }
    }
}

/// Guest to host; true when there was something.
fn take(sockets: &mut Sockets, queue: &mut Queue, mem: &Mem, epoll: &Epoll) -> io::Result<bool> {
    let (mut any, mut idle) = (false, 0);
    loop {
        let _ = queue.disable_notification(mem);
        let mut took = false;
        while sockets.resets.len() < MAX_RESETS
            && let Some(chain) = queue.pop_descriptor_chain(mem)
        {
            (any, took) = (true, true);
            let head = chain.head_index();
            if let Ok(mut chain) = Chain::collect(chain, mem, HEADER + MAX_DATA) {
                let mut bytes = [0; HEADER];
                if chain.readable.read_exact(&mut bytes).is_ok() {
                    sockets.packet(&Header::parse(&bytes), chain.readable, epoll)?;
                }
            }
            if queue.add_used(mem, head, 0).is_err() {
                return Ok(any);
            }
        }
        if sockets.resets.len() >= MAX_RESETS || !look_again(queue, mem, took, &mut idle) {
            return Ok(any);
        }
    }
}

/// Host to guest; true when there was something.
fn give(sockets: &mut Sockets, queue: &mut Queue, mem: &Mem) -> bool {
    let (mut any, mut idle) = (false, 0);
    while sockets.has_something() {
        let before = queue.next_avail();
        let Some(chain) = queue.pop_descriptor_chain(mem) else {
            if look_again(queue, mem, false, &mut idle) {
                continue;
            }
            break;
        };
        idle = 0;
        let head = chain.head_index();
        let len = match Chain::collect(chain, mem, 1 << 20) {
            Ok(mut chain) if chain.writable.len() >= HEADER => {
                let mut place = chain.writable.split(HEADER);
                match sockets.next(&mut chain.writable) {
                    Some(header) => {
                        place.write(&header.to_bytes());
                        HEADER as u32 + header.len
                    }
                    None => {
                        queue.set_next_avail(before);
                        break;
                    }
                }
            }
            _ => 0,
        };
        any = true;
        if queue.add_used(mem, head, len).is_err() {
            break;
        }
    }
    any
}

impl Sockets {
    fn forget_all(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.ready = false;
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.was_reset();
            }
            self.remove(key);
        }
        self.line.clear();
        self.resets.clear();
    }

    fn accept(&mut self, epoll: &Epoll) -> io::Result<()> {
        while self.ready && self.listener_ready && self.connections.len() < MAX_CONNECTIONS {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(stream) => {
                    let key = self.free_key();
                    let stream = UnixStream::from(stream);
                    let token = (u64::from(key.0) << 32) | u64::from(key.1);
                    epoll.add(&stream, token, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)?;
                    self.connections.insert(key, Connection::to_guest(stream));
                    self.settle(key);
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                // No descriptors left: any later event tries again.
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => break,
                Err(_) => self.listener_ready = false,
            }
        }
        Ok(())
    }

    fn free_key(&mut self) -> Key {
        loop {
            let key = (self.next_port, AGENT_PORT);
            self.next_port = if self.next_port == u32::MAX { FIRST_PORT } else { self.next_port + 1 };
            if !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    /// A packet from the guest.
    fn packet(&mut self, header: &Header, mut data: Buffers<'_>, epoll: &Epoll) -> io::Result<()> {
        let key = (header.dst_port, header.src_port);
        let valid = header.src_cid == GUEST_CID && header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        if !valid || header.len as usize > data.len() {
            self.refuse(header.op, key);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            match header.op {
                Some(Op::Request) => return self.open(key, header, epoll),
                // What a guest says of its buffers may cross our end of the connection.
                Some(Op::CreditUpdate | Op::CreditRequest) => {}
                op => self.refuse(op, key),
            }
            return Ok(());
        };
        connection.guest_credit(header.buf_alloc, header.fwd_cnt);
        match header.op {
            Some(Op::Response) => connection.responded(),
            Some(Op::Data) => connection.data(data.split(header.len as usize)),
            Some(Op::Shutdown) => connection.shut_down(header.flags),
            Some(Op::Reset) => connection.was_reset(),
            Some(Op::CreditRequest) => connection.credit_requested(),
            Some(Op::CreditUpdate) => {}
            Some(Op::Request) | None => connection.fail(),
        }
        self.settle(key);
        Ok(())
    }

    fn refuse(&mut self, op: Option<Op>, key: Key) {
        if op != Some(Op::Reset) {
            self.resets.push_back(key);
        }
    }

    /// The guest asks for a connection.
    fn open(&mut self, key: Key, header: &Header, epoll: &Epoll) -> io::Result<()> {
        let peer = match key.0 {
            _ if self.connections.len() >= MAX_CONNECTIONS => None,
            LOG_PORT if self.log_wanted => self.log.take().map(Peer::Log),
            LOG_PORT => Some(Peer::Nobody),
            READY_PORT => {
                if !self.ready {
                    self.ready = true;
                    self.news = true;
                    // A second time after a reset: it is still in the set.
                    match epoll.add(&self.listener, self.listener_token, EventFlags::IN | EventFlags::ET) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                        _ => self.listener_ready = true,
                    }
                }
                Some(Peer::Nobody)
            }
            _ => None,
        };
        match peer {
            Some(peer) => {
                self.connections.insert(key, Connection::from_guest(peer, header.buf_alloc, header.fwd_cnt));
                self.settle(key);
            }
            None => self.resets.push_back(key),
        }
        Ok(())
    }

    /// Puts a connection in line or away, as its state says.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.over() {
            self.remove(key);
        } else if connection.has_something() && !connection.lined_up {
            connection.lined_up = true;
            self.line.push_back(key);
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(Peer::Log(log)) = self.connections.remove(&key).map(Connection::into_peer) {
            self.log = Some(log);
        }
    }

    fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// The next packet for the guest; its data is already in `buffers`.
    fn next(&mut self, buffers: &mut Buffers<'_>) -> Option<Header> {
        if let Some(key) = self.resets.pop_front() {
            return Some(header(key, Op::Reset, 0));
        }
        // Each has one turn: one that has something to tell but finds no room for it stays in line.
        for _ in 0..self.line.len() {
            let Some(key) = self.line.pop_front() else { break };
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.lined_up = false;
            let told = connection.next(buffers);
            let packet = match told {
                Told::Packet(op, flags) => Some(Header { flags, ..header(key, op, connection.tell_passed_on()) }),
                Told::Data(len) => {
                    Some(Header { len: len as u32, ..header(key, Op::Data, connection.tell_passed_on()) })
                }
                Told::Nothing => None,
            };
            self.settle(key);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }
}

fn header((host, guest): Key, op: Op, fwd_cnt: u32) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: GUEST_CID,
        src_port: host,
        dst_port: guest,
        len: 0,
        kind: TYPE_STREAM,
        op: Some(op),
        flags: 0,
        buf_alloc: BUFFER,
        fwd_cnt,
    }
}

#[cfg(test)]
mod tests;
