//! Chooses the host's ports. A port belongs to one endpoint, or to a program of the machine itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use zone::endpoint::{BoundPort, Protocol, PublishedPort};

/// Where free ports are looked for.
const FREE_FROM: u16 = 32_768;

/// Addresses that are listened on, by port; unspecified = all.
pub type HostPorts = BTreeMap<(Protocol, u16), BTreeSet<IpAddr>>;

/// Ports that are taken, and by which address.
pub(super) struct Ports {
    host: HostPorts,
    held: HostPorts,
}

impl Ports {
    /// The gateways' own ports (name servers) take none away: published ports never cover those addresses.
    pub(super) fn new(host: &HostPorts, gateways: &BTreeSet<Ipv4Addr>) -> Self {
        let is_gateway = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if gateways.contains(ip));
        let mut host = host.clone();
        for addresses in host.values_mut() {
            addresses.retain(|ip| !is_gateway(ip));
        }
        host.retain(|_, addresses| !addresses.is_empty());
        Self { host, held: HostPorts::new() }
    }

    /// Remembers ports that an endpoint has already.
    pub(super) fn hold(&mut self, ports: &[BoundPort]) {
        for port in ports {
            self.held.entry((port.protocol, port.host_port)).or_default().insert(port.host_ip);
        }
    }

    /// All ports of an endpoint or none; those in `before` are its own and kept.
    pub(super) fn bind(&mut self, wanted: &[PublishedPort], before: &[BoundPort]) -> Result<Vec<BoundPort>, String> {
        let mut bound: Vec<BoundPort> = Vec::new();
        for port in wanted {
            let kept = before.iter().find(|b| fits(port, b) && !bound.contains(b)).cloned();
            let choice = match kept {
                Some(kept) => Ok(kept),
                None => self.choose(port),
            };
            match choice {
                Ok(choice) => {
                    self.hold(std::slice::from_ref(&choice));
                    bound.push(choice);
                }
                Err(error) => {
                    self.release(bound.iter().filter(|b| !before.contains(b)));
                    return Err(error);
                }
            }
        }
        Ok(bound)
    }

    fn choose(&self, port: &PublishedPort) -> Result<BoundPort, String> {
        let host_ip = match port.host_ip {
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(IpAddr::V6(ip)) => return Err(format!("cannot publish on [{ip}]: only IPv4 addresses are published")),
            Some(ip) => ip,
        };
        let bound =
            |host_port| BoundPort { protocol: port.protocol, container_port: port.container_port, host_ip, host_port };
        match port.host_port.filter(|p| *p != 0) {
            Some(wanted) if self.is_taken(port.protocol, host_ip, wanted) => {
                Err(format!("Bind for {host_ip}:{wanted} failed: port is already allocated"))
            }
            Some(wanted) => Ok(bound(wanted)),
            None => (FREE_FROM..=u16::MAX)
                .find(|candidate| !self.is_taken(port.protocol, host_ip, *candidate))
                .map(bound)
                .ok_or_else(|| format!("Bind for {host_ip}:0 failed: all ports are allocated")),
        }
    }

    fn is_taken(&self, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
        let clash = |other: &IpAddr| *other == ip || other.is_unspecified() || ip.is_unspecified();
        [&self.held, &self.host].into_iter().filter_map(|ports| ports.get(&(protocol, port))).flatten().any(clash)
    }

    fn release<'a>(&mut self, ports: impl Iterator<Item = &'a BoundPort>) {
        for port in ports {
            if let Some(addresses) = self.held.get_mut(&(port.protocol, port.host_port)) {
                addresses.remove(&port.host_ip);
            }
        }
    }
}

fn fits(wanted: &PublishedPort, bound: &BoundPort) -> bool {
    let ip = wanted.host_ip.filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    wanted.protocol == bound.protocol
        && wanted.container_port == bound.container_port
        && ip == bound.host_ip
        && wanted.host_port.is_none_or(|port| port == 0 || port == bound.host_port)
}
