//! Ports that pods publish appear on 127.0.0.1: a watch on the zone's events, and QEMU's forwards changed to match.
//!
//! After every event that can change ports the whole list is read again, so a lost event heals with the next one.

use super::http::Client;
use super::qemu::NETDEV;
use super::qmp::Qmp;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(30);
/// After the stream of events broke: docker-api is starting again.
const AGAIN: Duration = Duration::from_millis(500);
/// Container events after which other ports may be published; `%22` is a quote, `%7B` and `%7D` are braces.
const EVENTS: &str = "/events?filters=%7B%22type%22:%5B%22container%22%5D,%22event%22:%5B%22start%22,%22die%22,%22destroy%22,%22unpause%22%5D%7D";

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    protocol: Protocol,
    number: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}", self.number)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    ports: Option<Vec<ListedPort>>,
}

#[derive(Deserialize)]
struct ListedPort {
    #[serde(rename = "IP", default)]
    ip: String,
    #[serde(rename = "PublicPort", default)]
    public: u16,
    #[serde(rename = "Type", default)]
    kind: String,
}

/// The ports that a list of running containers publishes. Those that are bound to the zone's own loopback are not for us.
fn published(list: &[u8]) -> Result<BTreeSet<Port>> {
    let list: Vec<Listed> = serde_json::from_slice(list).context("the list of containers is damaged")?;
    let ports = list.into_iter().flat_map(|container| container.ports.unwrap_or_default());
    let ports = ports.filter(|port| port.public != 0 && !port.ip.starts_with("127.") && port.ip != "::1");
    let ports = ports.filter_map(|port| {
        let protocol = match port.kind.as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        Some(Port { protocol, number: port.public })
    });
    Ok(ports.collect())
}

/// What is forwarded now.
#[derive(Debug, Default)]
struct Forwards {
    active: BTreeSet<Port>,
    /// Ports that could not be forwarded, and why; tried again with each change.
    refused: BTreeMap<Port, String>,
}

impl Forwards {
    fn update(&mut self, wanted: &BTreeSet<Port>, mut monitor: impl FnMut(&str) -> Result<String>) -> Result<()> {
        let gone: Vec<Port> = self.active.difference(wanted).cloned().collect();
        for port in gone {
            monitor(&format!("hostfwd_remove {NETDEV} {}", address(&port)))?;
            self.active.remove(&port);
        }
        self.refused.retain(|port, _| wanted.contains(port));
        for port in wanted {
            if self.active.contains(port) {
                continue;
            }
            let said = monitor(&format!("hostfwd_add {NETDEV} {}-:{}", address(port), port.number))?;
            if said.is_empty() {
                self.refused.remove(port);
                self.active.insert(port.clone());
            } else {
                self.refused.insert(port.clone(), reason(port).unwrap_or(said));
            }
        }
        Ok(())
    }
}

fn address(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{protocol}:127.0.0.1:{}", port.number)
}

/// Why this computer does not give the port away: QEMU says only that it got none.
fn reason(port: &Port) -> Option<String> {
    let address = (Ipv4Addr::LOCALHOST, port.number);
    let error = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).err(),
        Protocol::Udp => UdpSocket::bind(address).err(),
    }?;
    Some(match error.kind() {
        ErrorKind::AddrInUse => {
            "another program of this computer has it (`ss -lntup`): end that, then restart the container".into()
        }
        ErrorKind::PermissionDenied => {
            "only root may open it (see the sysctl net.ipv4.ip_unprivileged_port_start)".into()
        }
        _ => error.to_string(),
    })
}

/// Watches until `changed` says that nobody listens (false). It is given the ports that answer, and what could not be forwarded.
pub fn watch(client: &Client, qmp: &Mutex<Qmp>, mut changed: impl FnMut(Vec<String>, Vec<String>) -> bool) {
    let mut forwards = Forwards::default();
    let mut wanted_on = true;
    while wanted_on {
        let mut refresh = || -> Result<bool> {
            let answer = client.get("/containers/json", ANSWER)?;
            if answer.status != 200 {
                bail!("the list of containers answers {}", answer.status);
            }
            let wanted = published(&answer.body)?;
            let before = (forwards.active.clone(), forwards.refused.clone());
            let mut qmp = qmp.lock().unwrap_or_else(PoisonError::into_inner);
            forwards.update(&wanted, |line| qmp.human(line))?;
            if before == (forwards.active.clone(), forwards.refused.clone()) {
                return Ok(true);
            }
            let active = forwards.active.iter().map(Port::to_string).collect();
            let notes = forwards.refused.iter();
            let notes = notes
                .map(|(port, why)| format!("published port {port} does not answer on this computer: {why}"))
                .collect();
            Ok(changed(active, notes))
        };
        // A list that cannot be read ends this stream, and the next one begins with a list.
        let followed = client.lines(EVENTS, ANSWER, |_| match refresh() {
            Ok(on) => {
                wanted_on = on;
                on
            }
            Err(_) => false,
        });
        let _ = followed;
        if wanted_on {
            std::thread::park_timeout(AGAIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(list: &str) -> Vec<String> {
        published(list.as_bytes()).unwrap().iter().map(Port::to_string).collect()
    }

    #[test]
    fn published_ports_are_found_once() {
        let list = r#"[{"Id":"a","Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},
            {"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},{"PrivatePort":81,"Type":"tcp"},
            {"IP":"127.0.0.1","PrivatePort":82,"PublicPort":8082,"Type":"tcp"},
            {"PrivatePort":53,"PublicPort":53,"Type":"udp"},{"PublicPort":9,"Type":"sctp"}]},{"Ports":null},{}]"#;
        assert_eq!(ports(list), ["tcp:8080", "udp:53"]);
        assert!(published(b"{}").is_err());
    }

    #[test]
    fn a_port_that_another_program_has_is_told() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = Port { protocol: Protocol::Tcp, number: taken.local_addr().unwrap().port() };
        assert!(reason(&port).unwrap().contains("another program"));
        drop(taken);
        assert_eq!(reason(&port), None);
    }

    #[test]
    fn forwards_follow_the_list() {
        let mut forwards = Forwards::default();
        let mut said = Vec::new();
        let mut step = |forwards: &mut Forwards, list: &[(&str, u16)]| {
            let wanted = list.iter().map(|(kind, number)| Port {
                protocol: if *kind == "udp" { Protocol::Udp } else { Protocol::Tcp },
                number: *number,
            });
            let wanted = wanted.collect();
            let monitor = |line: &str| {
                said.push(line.to_owned());
                Ok(if line.contains(":22-") { "Could not set up".to_owned() } else { String::new() })
            };
            forwards.update(&wanted, monitor).unwrap();
        };
        step(&mut forwards, &[("tcp", 80), ("udp", 53), ("tcp", 22)]);
        step(&mut forwards, &[("tcp", 80), ("tcp", 22)]);
        step(&mut forwards, &[]);
        assert_eq!(
            said,
            [
                "hostfwd_add uplink tcp:127.0.0.1:22-:22",
                "hostfwd_add uplink tcp:127.0.0.1:80-:80",
                "hostfwd_add uplink udp:127.0.0.1:53-:53",
                "hostfwd_remove uplink udp:127.0.0.1:53",
                "hostfwd_add uplink tcp:127.0.0.1:22-:22",
                "hostfwd_remove uplink tcp:127.0.0.1:80",
            ]
        );
        assert!(forwards.refused.is_empty() && forwards.active.is_empty());
    }
}
