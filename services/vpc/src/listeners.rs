//! Which ports the machine's own programs listen on, from /proc/net (proc_pid_net(5)).

use crate::plan::HostPorts;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zone::endpoint::Protocol;

/// TCP's LISTEN (include/net/tcp_states.h).
const LISTEN: &str = "0A";
/// UDP sockets that are not connected.
const UNCONNECTED: &str = "07";

/// Reads all tables; one that cannot be read (no IPv6) has no listeners.
#[must_use]
pub fn read() -> HostPorts {
    let mut ports = HostPorts::new();
    for (table, protocol, state) in [
        ("tcp", Protocol::Tcp, LISTEN),
        ("tcp6", Protocol::Tcp, LISTEN),
        ("udp", Protocol::Udp, UNCONNECTED),
        ("udp6", Protocol::Udp, UNCONNECTED),
    ] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for (ip, port) in text.lines().skip(1).filter_map(|line| parse(line, state)) {
            ports.entry((protocol, port)).or_default().insert(ip);
        }
    }
    ports
}

fn parse(line: &str, state: &str) -> Option<(IpAddr, u16)> {
    let mut fields = line.split_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    fields.next()?;
    if fields.next()? != state {
        return None;
    }
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is a word in the machine's byte order.
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_and_connections_skipped() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        assert_eq!(parse(line, LISTEN), Some(("127.0.0.1".parse().unwrap(), 8080)));
        assert_eq!(parse(&line.replace(" 0A ", " 01 "), LISTEN), None);
        let v6 = "  1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0";
        assert_eq!(parse(v6, LISTEN), Some(("::".parse().unwrap(), 80)));
        assert_eq!(parse("", LISTEN), None);
    }

    #[test]
    fn a_real_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(read()[&(Protocol::Tcp, port)].contains(&"127.0.0.1".parse().unwrap()));
    }
}
