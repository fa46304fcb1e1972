//! The vsock device: a guest that sends any packet in any order, clients that come, talk and go, and the log behind port 2.
//!
//! What is claimed: it comes to rest after any of it, and keeps no more than its buffers.

use super::devices::file;
use super::guest::{Guest, memory};
use crate::input::Input;
use cradle::epoll::{Epoll, EventFlags};
use cradle::virtio::vsock::{self, device::Vsock, log::LogFiles, packet::HEADER};
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use vm_memory::{Bytes as _, GuestAddress};

/// Where packets are put together.
const PACKET: u64 = 0x7000;
const LISTENER: u64 = 1;

/// A packet that makes more sense than noise does.
fn packet(input: &mut Input<'_>) -> Vec<u8> {
    let (kind, ports, data) = (input.byte(), input.byte(), input.piece());
    let guest_port = u32::from(ports >> 4) + 1;
    let host_port = match ports & 15 {
        port @ 0..=7 => u32::from(port),
        port @ 8..=13 => (1 << 20) + u32::from(port) - 8,
        _ => input.double(),
    };
    let (len, flags, buffer, passed) = match kind >> 4 {
        0 => (input.double(), input.double(), input.double(), input.double()),
        few => (data.len() as u32, u32::from(few & 3), u32::from(few) << 12, input.double()),
    };
    let mut bytes = Vec::with_capacity(HEADER + data.len());
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend([guest_port, host_port, len].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([1, u16::from(kind & 15)].iter().flat_map(|word: &u16| word.to_le_bytes()));
    bytes.extend([flags, buffer, passed].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(data);
    bytes
}

/// Any guest, any clients.
#[allow(clippy::expect_used)]
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let address = SocketAddr::from_abstract_name(format!("kraud-fuzz-{}", std::process::id()));
    let address = address.expect("the name is short enough");
    let listener = UnixListener::bind_addr(&address).expect("the machine that fuzzes has descriptors");
    let bound = u64::from(input.word()).max(64);
    let log = LogFiles::open([file(b""), file(b"")], bound).expect("two empty files are a log");
    let mut guest = Guest::new(vsock::identity(), memory());
    let mem = guest.mem.clone();
    let vsock = Vsock::new(guest.slot.clone(), mem.clone(), listener, LISTENER, Some(log));
    let mut vsock = vsock.expect("the machine that fuzzes has descriptors");
    let mut epoll = Epoll::new().expect("the machine that fuzzes has descriptors");
    let (mut clients, mut events) = (Vec::new(), Vec::new());
    guest.play(&mut input, |input| {
        match input.byte() % 5 {
            0 if clients.len() < 4 => {
                clients.extend(UnixStream::connect_addr(&address).inspect(|client| {
                    let _ = client.set_nonblocking(true);
                }));
                vsock.client_waits();
            }
            1 => drop(clients.pop()),
            2 => clients.iter_mut().for_each(|client| drop(client.write(input.piece()))),
            3 => clients.iter_mut().for_each(|client| drop(client.read(&mut [0; 4096]))),
            _ => {
                let bytes = packet(input);
                let _ = mem.write_slice(&bytes, GuestAddress(PACKET));
            }
        }
        for _ in 0..2 {
            vsock.serve(&epoll).expect("the guest cannot break the set");
            let _ = epoll.wait_until(Some(std::time::Instant::now()), &mut events);
            for (token, flags) in events.drain(..) {
                if token == LISTENER {
                    vsock.client_waits();
                } else {
                    vsock.stream_event(token, flags & EventFlags::all());
                }
            }
        }
        vsock.became_ready();
        let _ = (vsock.exit_status(), vsock.log_is_open());
    });
}
