//! The guest's interfaces: the loopback, and `eth0`, `eth1`, … with their routed addresses.
//!
//! An address is a /32; everything, the own network too, goes through the gateway, whose MAC address is a permanent
//! neighbour: no ARP, no DHCP, no broadcast. All of it is one write of rtnetlink(7) messages and one read of their answers.
//!
//! Must not fail a boot: what does not work is told on the console, and shows at once in the container.

use crate::console;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use zone::endpoint::RESOLVER;
use zone::guest::Nic;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;
/// NLM_F_REQUEST, NLM_F_ACK.
const ASK: u16 = 0x5;
/// And NLM_F_CREATE, NLM_F_REPLACE.
const MAKE: u16 = ASK | 0x500;
const AF_INET: u8 = 2;
/// RT_TABLE_MAIN.
const TABLE_MAIN: u8 = 254;
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u8 = 255;
const HEADER: usize = 16;

/// Brings the interfaces up.
pub fn configure(nics: &[Nic]) {
    if let Err(error) = try_configure(nics) {
        console::say(&format!("cannot configure the network: {error}"));
    }
}

fn try_configure(nics: &[Nic]) -> io::Result<()> {
    let mut batch = Batch::default();
    batch.link_up("lo", index_of("lo")?);
    for (number, nic) in nics.iter().enumerate() {
        let name = format!("eth{number}");
        match index_of(&name) {
            Ok(index) => batch.interface(&name, index, nic),
            Err(error) => console::say(&format!("there is no interface {name}: {error}")),
        }
    }
    for problem in batch.send()? {
        console::say(&problem);
    }
    Ok(())
}

/// Configures one interface that has come while the guest ran.
///
/// # Errors
/// What did not work, for people.
pub fn configure_one(name: &str, nic: &Nic) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot configure {name}: {error}");
    let mut batch = Batch::default();
    batch.interface(name, index_of(name).map_err(failed)?, nic);
    match batch.send().map_err(failed)?.as_slice() {
        [] => Ok(()),
        problems => Err(problems.join("; ")),
    }
}

fn index_of(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Messages that go to the kernel at once.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// What each message does, for its error; the sequence number is the place.
    what: Vec<String>,
}

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, what: String, head: &[u8], attributes: &[(u16, &[u8])]) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend((self.what.len() as u32).to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(head);
        for (kind, value) in attributes {
            self.bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            self.bytes.extend(kind.to_ne_bytes());
            self.bytes.extend(*value);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.what.push(what);
    }

    /// `struct ifinfomsg`, IFF_UP.
    fn link_up(&mut self, name: &str, index: u32) {
        let head = [[0; 4], index.to_ne_bytes(), 1u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
        self.message(RTM_NEWLINK, ASK, format!("bring {name} up"), &head, &[]);
    }

    fn interface(&mut self, name: &str, index: u32, nic: &Nic) {
        let (address, gateway) = (nic.ipv4.octets(), nic.gateway.octets());
        // `struct ifaddrmsg`; IFA_LOCAL, IFA_ADDRESS.
        let head = [[AF_INET, 32, 0, 0], index.to_ne_bytes()].concat();
        self.message(
            RTM_NEWADDR,
            MAKE,
            format!("give {name} the address {}", nic.ipv4),
            &head,
            &[(2, &address), (1, &address)],
        );
        self.link_up(name, index);
        match parse_mac(&nic.gateway_mac) {
            Some(mac) => {
                // `struct ndmsg`, NUD_PERMANENT; NDA_DST, NDA_LLADDR.
                let head = [[AF_INET, 0, 0, 0], index.to_ne_bytes(), [0x80, 0, 0, 0]].concat();
                self.message(
                    RTM_NEWNEIGH,
                    MAKE,
                    format!("set the gateway's MAC address on {name}"),
                    &head,
                    &[(1, &gateway), (2, &mac)],
                );
            }
            None => console::say(&format!("the gateway's MAC address {:?} of {name} is invalid", nic.gateway_mac)),
        }
        if nic.prefix < 32 {
            self.route(name, index, nic, network(nic.ipv4, nic.prefix), nic.prefix, TABLE_MAIN);
        }
        if nic.default_route {
            self.route(name, index, nic, Ipv4Addr::UNSPECIFIED, 0, TABLE_MAIN);
            // Docker's name server answers at a loopback address; here the gateway does. The table of local addresses
            // comes first, and has 127/8.
            let setting = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
            if let Err(error) = fs::write(&setting, "1") {
                console::say(&format!("cannot set {setting}: {error}"));
            }
            self.route(name, index, nic, RESOLVER, 32, TABLE_LOCAL);
        }
    }

    /// `struct rtmsg`: RTPROT_BOOT, unicast, RTNH_F_ONLINK; RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC.
    fn route(&mut self, name: &str, index: u32, nic: &Nic, to: Ipv4Addr, prefix: u8, table: u8) {
        let head = [[AF_INET, prefix, 0, 0], [table, 3, 0, 1], 4u32.to_ne_bytes()].concat();
        let (to_bytes, index, gateway, source) =
            (to.octets(), index.to_ne_bytes(), nic.gateway.octets(), nic.ipv4.octets());
        let attributes: [(u16, &[u8]); 4] = [(1, &to_bytes), (4, &index), (5, &gateway), (7, &source)];
        let skip = usize::from(prefix == 0);
        self.message(RTM_NEWROUTE, MAKE, format!("route {to}/{prefix} over {name}"), &head, &attributes[skip..]);
    }

    /// Does it all; gives what did not work.
    fn send(self) -> io::Result<Vec<String>> {
        let mut problems = Vec::new();
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        send(&socket, &self.bytes, SendFlags::empty())?;
        let mut buffer = vec![0u8; 16 * 1024];
        let mut answered = 0;
        while answered < self.what.len() {
            let (got, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            let answers = answers(&buffer[..got]);
            if answers.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            for (sequence, errno) in answers {
                answered += 1;
                if errno != 0 {
                    let what = self.what.get(sequence as usize).map_or("?", String::as_str);
                    problems.push(format!("cannot {what}: {}", io::Error::from_raw_os_error(errno)));
                }
            }
        }
        Ok(problems)
    }
}

/// Sequence number and error number of each acknowledgement.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let word =
        |bytes: &[u8], at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let mut all = Vec::new();
    while bytes.len() >= HEADER + 4 {
        let length = (word(bytes, 0) as usize).next_multiple_of(4);
        if u16::from_ne_bytes([bytes[4], bytes[5]]) == NLMSG_ERROR {
            all.push((word(bytes, 8), -word(bytes, HEADER).cast_signed()));
        }
        if length < HEADER || length > bytes.len() {
            break;
        }
        bytes = &bytes[length..];
    }
    all
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_the_address_without_its_host_part() {
        for (prefix, want) in [(24, [10, 1, 2, 0]), (16, [10, 1, 0, 0]), (32, [10, 1, 2, 3]), (0, [0, 0, 0, 0])] {
            assert_eq!(network([10, 1, 2, 3].into(), prefix), Ipv4Addr::from(want));
        }
    }

    #[test]
    fn mac_addresses_have_six_parts() {
        assert_eq!(parse_mac("02:00:ff:0a:1:2"), Some([2, 0, 255, 10, 1, 2]));
        for wrong in ["", "02:00:ff:0a:01", "02:00:ff:0a:01:02:03", "xx:00:ff:0a:01:02"] {
            assert_eq!(parse_mac(wrong), None);
        }
    }

    #[test]
    fn a_message_says_its_length_and_is_aligned() {
        let mut batch = Batch::default();
        batch.message(RTM_NEWADDR, MAKE, String::new(), &[1; 8], &[(1, &[9; 5])]);
        assert_eq!(batch.bytes.len(), HEADER + 8 + 12);
        assert_eq!(batch.bytes[0], 36);
    }

    #[test]
    fn broken_answers_end_the_reading() {
        assert_eq!(answers(&[0; 64]), []);
        assert_eq!(answers(&[0xff; 40]), []);
    }
}
