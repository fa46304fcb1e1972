//! What holds for any sequence of packets, clients and sizes.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

/// What a guest may come up with.
#[derive(Clone, Debug)]
struct Whim {
    host_port: u32,
    guest_port: u32,
    op: Option<Op>,
    flags: u32,
    /// What the header says, and what is there.
    len: (u32, usize),
    buf_alloc: u32,
    fwd_cnt: u32,
    kind: u16,
    src_cid: u64,
}

fn whim() -> impl Strategy<Value = Whim> {
    let host_port =
        prop_oneof![Just(AGENT_PORT), Just(LOG_PORT), Just(READY_PORT), FIRST_PORT..FIRST_PORT + 3, any::<u32>()];
    let op = prop_oneof![
        3 => Just(Some(Op::Request)),
        3 => Just(Some(Op::Data)),
        2 => Just(Some(Op::Response)),
        2 => Just(Some(Op::Shutdown)),
        1 => Just(Some(Op::Reset)),
        1 => Just(Some(Op::CreditUpdate)),
        1 => Just(Some(Op::CreditRequest)),
        1 => Just(None),
    ];
    let number = || prop_oneof![Just(0), Just(u32::MAX), 0..5000_u32, any::<u32>()];
    let len = prop_oneof![4 => (0..3000_usize).prop_map(|n| (n as u32, n)), 1 => (any::<u32>(), 0..3000_usize)];
    let kind = prop_oneof![9 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let src_cid = prop_oneof![9 => Just(GUEST_CID), 1 => any::<u64>()];
    let ports = (host_port, prop_oneof![4 => 1..4_u32, 1 => any::<u32>()]);
    (ports, op, 0..5_u32, len, number(), number(), kind, src_cid).prop_map(
        |((host_port, guest_port), op, flags, len, buf_alloc, fwd_cnt, kind, src_cid)| Whim {
            host_port,
            guest_port,
            op,
            flags,
            len,
            buf_alloc,
            fwd_cnt,
            kind,
            src_cid,
        },
    )
}

impl Guest {
    fn follow(&mut self, whim: &Whim) {
        let mem = self.mem.clone();
        let header = Header {
            src_cid: whim.src_cid,
            dst_cid: HOST_CID,
            src_port: whim.guest_port,
            dst_port: whim.host_port,
            len: whim.len.0,
            kind: whim.kind,
            op: whim.op,
            flags: whim.flags,
            buf_alloc: whim.buf_alloc,
            fwd_cnt: whim.fwd_cnt,
        };
        let buffers = if whim.len.1 == 0 { Buffers::default() } else { Self::buffers(&mem, whim.len.1) };
        self.sockets.packet(&header, buffers, &self.epoll).unwrap();
    }

    /// Takes what there is; fails when there is no end to it.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..5000 {
            if self.receive().is_none() {
                prop_assert!(!self.sockets.has_something());
                return Ok(());
            }
        }
        Err(TestCaseError::fail("packets without an end"))
    }
}

/// Bytes that tell their place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_header_that_is_written_as_it_was_read(bytes in any::<[u8; HEADER]>()) {
        let header = Header::parse(&bytes);
        let again = header.to_bytes();
        prop_assert_eq!(Header::parse(&again), header);
        prop_assert_eq!(&again[..30], &bytes[..30]);
        prop_assert_eq!(&again[32..], &bytes[32..]);
        prop_assert_eq!(header.op.is_some(), again[30..32] == bytes[30..32] && bytes[30..32] != [0, 0]);
    }

    #[test]
    fn whatever_a_guest_sends_has_an_end_and_the_next_client_is_served(
        whims in vec((whim(), any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut guest = Guest::new();
        let mut clients = Vec::new();
        for (whim, connects, drains) in &whims {
            if *connects && clients.len() < 3 {
                clients.push(UnixStream::connect(guest.dir.path().join("agent")).unwrap());
                guest.sockets.listener_ready = true;
                guest.sockets.accept(&guest.epoll).unwrap();
            }
            guest.follow(whim);
            if *drains {
                guest.drain()?;
            }
            prop_assert!(guest.sockets.connections.len() <= MAX_CONNECTIONS);
        }
        // Those that nobody has taken yet, and what they ask for.
        guest.sockets.ready = true;
        guest.sockets.listener_ready = true;
        guest.sockets.accept(&guest.epoll).unwrap();
        guest.drain()?;
        let (mut client, port) = guest.client();
        guest.send(port, AGENT_PORT, Op::Data, 0, b"still here");
        let mut got = [0; 10];
        client.read_exact(&mut got).unwrap();
        prop_assert_eq!(&got, b"still here");
    }

    #[test]
    fn bytes_come_through_both_ways_in_pieces_of_any_size_within_the_credit(
        total in 1..400_000_usize,
        steps in vec((1..3000_usize, 1..5000_usize, 1..3000_u32), 1..40),
    ) {
        // A step moves at most what it names: with four times the steps that the slowest side needs, all must be through.
        let slowest = [0, 1, 2].map(|side| steps.iter().map(|s| [s.0, s.1, s.2 as usize][side]).sum::<usize>() / steps.len());
        let total = total.min(5_000 * slowest.into_iter().min().unwrap_or(1));
        let mut guest = Guest::new();
        let (mut client, port) = guest.client();
        client.set_nonblocking(true).unwrap();
        let bytes = pattern(total);
        let (mut sent, mut arrived, mut passed_on) = (0, Vec::new(), 0_u32);
        let (mut said, mut heard, mut room) = (0, Vec::new(), 0_u32);
        for (give, take, buffer) in steps.iter().cycle().take(20_000) {
            if sent == total && arrived.len() == total && said == total && heard.len() == total {
                break;
            }
            // The guest sends what the host has room for.
            let give = (*give).min(total - sent).min((BUFFER as usize).saturating_sub(sent - passed_on as usize));
            if give > 0 {
                guest.send_with(port, &bytes[sent..sent + give], room, heard.len() as u32);
                sent += give;
            }
            // The client reads and writes as it likes.
            let mut part = vec![0; *take];
            if let Ok(got) = client.read(&mut part) {
                arrived.extend_from_slice(&part[..got]);
            }
            said += client.write(&bytes[said..total.min(said + take)]).unwrap_or(0);
            guest.event(port, false);
            // The guest says how much it takes, and takes it.
            room = *buffer;
            guest.credit(port, room, heard.len() as u32);
            while let Some((op, header, data)) = guest.receive() {
                prop_assert!(matches!(op, Op::Data | Op::CreditUpdate), "{op:?}");
                prop_assert_eq!(header.buf_alloc, BUFFER);
                prop_assert!(header.fwd_cnt as usize <= sent && header.fwd_cnt >= passed_on);
                prop_assert!(data.len() <= room as usize, "{} bytes for a room of {room}", data.len());
                passed_on = header.fwd_cnt;
                room -= data.len() as u32;
                heard.extend_from_slice(&data);
            }
            room = *buffer;
            prop_assert!(bytes.starts_with(&arrived) && bytes.starts_with(&heard));
        }
        prop_assert!((sent, arrived.len(), said, heard.len()) == (total, total, total, total), "not done in 20000 steps");
    }
}

impl Guest {
    fn send_with(&mut self, port: u32, data: &[u8], buf_alloc: u32, fwd_cnt: u32) {
        let mem = self.mem.clone();
        mem.write_slice(data, GuestAddress(DATA)).unwrap();
        let header = Header { op: Some(Op::Data), len: data.len() as u32, ..ours(port, buf_alloc, fwd_cnt) };
        self.sockets.packet(&header, Self::buffers(&mem, data.len()), &self.epoll).unwrap();
    }

    fn credit(&mut self, port: u32, buf_alloc: u32, fwd_cnt: u32) {
        let header = Header { op: Some(Op::CreditRequest), ..ours(port, buf_alloc, fwd_cnt) };
        self.sockets.packet(&header, Buffers::default(), &self.epoll).unwrap();
    }
}

/// A packet on the client's connection.
fn ours(port: u32, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { src_cid: GUEST_CID, dst_cid: HOST_CID, buf_alloc, fwd_cnt, ..header((AGENT_PORT, port), Op::Data, 0) }
}
