//! A guest's side of the vsock device, in this process: packets in, packets out, no queues.

use super::*;
use crate::virtio::vsock::packet::{NO_RECEIVE, NO_SEND};
use std::io::{Read as _, Write as _};
use std::time::Duration;
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, Permissions};

const GUEST_PORT: u32 = 5000;
const DATA: u64 = 0x10_0000;
const BIG: u32 = 1 << 20;

mod props;

struct Guest {
    sockets: Sockets,
    epoll: Epoll,
    mem: Arc<Mem>,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let files = ["0", "1"].map(|name| {
            std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(dir.path().join(name))
                .unwrap()
        });
        let sockets = Sockets {
            listener,
            listener_token: 1,
            ready: false,
            news: false,
            listener_ready: false,
            log_wanted: true,
            log: Some(Box::new(LogFiles::open(files, 1 << 20).unwrap())),
            connections: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            epoch: 0,
        };
        Self {
            sockets,
            epoll: Epoll::new().unwrap(),
            mem: Arc::new(crate::memory::create(32 << 20, false).unwrap()),
            dir,
        }
    }

    fn buffers<'m>(mem: &'m Mem, len: usize) -> Buffers<'m> {
        let mut queue = crate::virtio::chain::testing::queue_of(mem, &[&[(DATA, len as u32, true)]]);
        assert!(mem.check_range(GuestAddress(DATA), len, Permissions::Write));
        Chain::collect(queue.pop_descriptor_chain(mem).unwrap(), mem, 1 << 22).unwrap().writable
    }

    /// The guest sends a packet.
    fn send(&mut self, host_port: u32, guest_port: u32, op: Op, flags: u32, data: &[u8]) {
        let mem = self.mem.clone();
        mem.write_slice(data, GuestAddress(DATA)).unwrap();
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: data.len() as u32,
            kind: TYPE_STREAM,
            op: Some(op),
            flags,
            buf_alloc: BIG,
            fwd_cnt: 0,
        };
        let buffers = if data.is_empty() { Buffers::default() } else { Self::buffers(&mem, data.len()) };
        self.sockets.packet(&header, buffers, &self.epoll).unwrap();
    }

    /// The next packet for the guest, and its data.
    fn receive(&mut self) -> Option<(Op, Header, Vec<u8>)> {
        let mem = self.mem.clone();
        let mut buffers = Self::buffers(&mem, 3000);
        let header = self.sockets.next(&mut buffers)?;
        let mut data = vec![0; header.len as usize];
        mem.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        Some((header.op.unwrap(), header, data))
    }

    fn op(&mut self) -> Option<(Op, u32)> {
        self.receive().map(|(op, header, _)| (op, header.flags))
    }

    /// Brings a client's connection up; gives the client's end and our port.
    fn client(&mut self) -> (UnixStream, u32) {
        if !self.sockets.ready {
            self.send(READY_PORT, GUEST_PORT + 1, Op::Request, 0, &[]);
            assert_eq!(self.op(), Some((Op::Response, 0)));
        }
        let client = UnixStream::connect(self.dir.path().join("agent")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.sockets.listener_ready = true;
        self.sockets.accept(&self.epoll).unwrap();
        let (op, header, _) = self.receive().unwrap();
        assert_eq!((op, header.dst_port), (Op::Request, AGENT_PORT));
        self.send(header.src_port, AGENT_PORT, Op::Response, 0, &[]);
        (client, header.src_port)
    }

    /// What epoll would say of the connection.
    fn event(&mut self, port: u32, closed: bool) {
        let key = (port, AGENT_PORT);
        if let Some(connection) = self.sockets.connections.get_mut(&key) {
            connection.stream_event(true, true, closed);
        }
        self.sockets.settle(key);
    }
}

#[test]
fn a_port_that_nobody_serves_is_refused() {
    let mut guest = Guest::new();
    guest.send(77, GUEST_PORT, Op::Request, 0, &[]);
    let (op, header, _) = guest.receive().unwrap();
    assert_eq!((op, header.src_port, header.dst_port), (Op::Reset, 77, GUEST_PORT));
    assert!(guest.receive().is_none());
}

#[test]
fn the_log_is_written_and_its_end_answered_when_it_is_in_the_file() {
    let mut guest = Guest::new();
    guest.send(LOG_PORT, GUEST_PORT, Op::Request, 0, &[]);
    assert_eq!(guest.op(), Some((Op::Response, 0)));
    guest.send(LOG_PORT, GUEST_PORT + 9, Op::Request, 0, &[]);
    assert_eq!(guest.op(), Some((Op::Reset, 0)));
    guest.send(LOG_PORT, GUEST_PORT, Op::Data, 0, b"{\"a\":1}\n{\"b\"");
    guest.send(LOG_PORT, GUEST_PORT, Op::Data, 0, b":2}\n");
    assert!(guest.sockets.log.is_none());
    guest.send(LOG_PORT, GUEST_PORT, Op::Shutdown, NO_SEND, &[]);
    assert_eq!(std::fs::read_to_string(guest.dir.path().join("0")).unwrap(), "{\"file\":1}\n{\"a\":1}\n{\"b\":2}\n");
    assert_eq!(guest.op(), Some((Op::Shutdown, NO_SEND | NO_RECEIVE)));
    assert!(guest.sockets.log.is_some());
}

#[test]
fn clients_wait_until_the_agent_is_ready() {
    let mut guest = Guest::new();
    let _early = UnixStream::connect(guest.dir.path().join("agent")).unwrap();
    guest.sockets.listener_ready = true;
    guest.sockets.accept(&guest.epoll).unwrap();
    assert!(guest.receive().is_none());
    guest.send(READY_PORT, GUEST_PORT, Op::Request, 0, &[]);
    guest.sockets.accept(&guest.epoll).unwrap();
    assert_eq!(guest.op(), Some((Op::Response, 0)));
    assert_eq!(guest.op(), Some((Op::Request, 0)));
}

#[test]
fn the_clients_half_close_reaches_the_guest_and_the_answer_still_arrives() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.client();
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    guest.event(port, false);
    let (op, _, data) = guest.receive().unwrap();
    assert_eq!((op, &data[..]), (Op::Data, &b"question"[..]));
    assert_eq!(guest.op(), Some((Op::Shutdown, NO_SEND)));
    guest.send(port, AGENT_PORT, Op::Data, 0, b"answer");
    guest.send(port, AGENT_PORT, Op::Shutdown, NO_SEND | NO_RECEIVE, &[]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(guest.op(), Some((Op::Reset, 0)));
    assert_eq!(guest.sockets.connections.len(), 1);
}

#[test]
fn the_guests_half_close_reaches_the_client_and_more_can_be_said() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.client();
    guest.send(port, AGENT_PORT, Op::Data, 0, b"out");
    guest.send(port, AGENT_PORT, Op::Shutdown, NO_SEND, &[]);
    let mut out = String::new();
    client.read_to_string(&mut out).unwrap();
    assert_eq!(out, "out");
    client.write_all(b"more").unwrap();
    guest.event(port, false);
    assert_eq!(guest.receive().unwrap().2, b"more");
    drop(client);
    guest.event(port, true);
    assert_eq!(guest.op(), Some((Op::Shutdown, NO_SEND | NO_RECEIVE)));
    assert_eq!(guest.sockets.connections.len(), 1);
    guest.send(port, AGENT_PORT, Op::Shutdown, NO_SEND | NO_RECEIVE, &[]);
    assert_eq!(guest.op(), Some((Op::Reset, 0)));
}

#[test]
fn a_client_that_does_not_read_holds_the_guest_back_and_loses_nothing() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.client();
    let piece = vec![b'x'; 16 * 1024];
    let (mut sent, mut told) = (0usize, 0usize);
    while sent - told + piece.len() <= BUFFER as usize {
        guest.send(port, AGENT_PORT, Op::Data, 0, &piece);
        sent += piece.len();
        while let Some((op, header, _)) = guest.receive() {
            assert_eq!(op, Op::CreditUpdate);
            told = header.fwd_cnt as usize;
        }
    }
    // Held back: now the guest ends and goes, and still the client gets all of it.
    guest.send(port, AGENT_PORT, Op::Shutdown, NO_SEND | NO_RECEIVE, &[]);
    guest.send(port, AGENT_PORT, Op::Reset, 0, &[]);
    client.set_nonblocking(true).unwrap();
    let (mut got, mut buffer) = (0, vec![0; 65536]);
    loop {
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => got += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => guest.event(port, false),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(got, sent);
    assert_eq!(guest.sockets.connections.len(), 1);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut guest = Guest::new();
    let (_client, port) = guest.client();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        guest.send(port, AGENT_PORT, Op::Data, 0, &piece);
    }
    let mut last = None;
    while let Some((op, _)) = guest.op() {
        last = Some(op);
    }
    assert_eq!(last, Some(Op::Reset));
}

#[test]
fn the_guest_never_gets_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.client();
    let key = (port, AGENT_PORT);
    guest.sockets.connections.get_mut(&key).unwrap().guest_credit(5000, 0);
    client.write_all(&[1; 9000]).unwrap();
    guest.event(port, false);
    let mut got = 0;
    while let Some((_, header, _)) = guest.receive() {
        got += header.len;
    }
    assert_eq!(got, 5000);
    guest.sockets.connections.get_mut(&key).unwrap().guest_credit(5000, 4000);
    guest.sockets.settle(key);
    while let Some((_, header, _)) = guest.receive() {
        got += header.len;
    }
    assert_eq!(got, 9000);
}

#[test]
fn a_client_that_leaves_ends_the_guests_connection_though_the_guest_says_nothing() {
    let mut guest = Guest::new();
    let (client, port) = guest.client();
    drop(client);
    guest.event(port, true);
    assert_eq!(guest.op(), Some((Op::Shutdown, NO_SEND | NO_RECEIVE)));
    assert!(guest.receive().is_none());
}

#[test]
fn nonsense_is_answered_by_a_reset_and_changes_nothing_else() {
    let mut guest = Guest::new();
    let (_client, port) = guest.client();
    guest.send(port, AGENT_PORT + 1, Op::Data, 0, b"x");
    assert_eq!(guest.op(), Some((Op::Reset, 0)));
    guest.send(port, AGENT_PORT + 1, Op::Reset, 0, &[]);
    guest.send(port, AGENT_PORT + 1, Op::CreditUpdate, 0, &[]);
    assert!(guest.receive().is_none());
    guest.send(port, AGENT_PORT, Op::Response, 0, &[]);
    assert_eq!(guest.op(), Some((Op::Reset, 0)));
}

#[test]
fn a_connection_that_is_reset_before_it_was_answered_is_forgotten() {
    let mut guest = Guest::new();
    guest.send(READY_PORT, GUEST_PORT, Op::Request, 0, &[]);
    guest.send(READY_PORT, GUEST_PORT, Op::Reset, 0, &[]);
    assert!(guest.receive().is_none() && guest.sockets.connections.is_empty());
    let _client = UnixStream::connect(guest.dir.path().join("agent")).unwrap();
    guest.sockets.listener_ready = true;
    guest.sockets.accept(&guest.epoll).unwrap();
    guest.send(FIRST_PORT, AGENT_PORT, Op::Reset, 0, &[]);
    assert!(guest.receive().is_none() && guest.sockets.connections.is_empty());
}

#[test]
fn data_that_finds_no_room_waits_for_the_next_buffer() {
    let mut guest = Guest::new();
    let (mut client, port) = guest.client();
    client.write_all(b"hello").unwrap();
    guest.send(port, AGENT_PORT, Op::CreditUpdate, 0, &[]);
    guest.event(port, false);
    assert!(guest.sockets.next(&mut Buffers::default()).is_none());
    assert_eq!(guest.receive().map(|(op, _, data)| (op, data)), Some((Op::Data, b"hello".to_vec())));
}
