//! What should be: a pure function of the resources and of what else is on the machine. It chooses subnets, addresses and
//! ports, and says which statuses, taps, rules and names follow.
//!
//! Choices that a status already holds are kept, so a restart changes nothing.

mod endpoints;
mod networks;
mod ports;

pub use ports::HostPorts;

use crate::resources::Resources;
use crate::subnet::Subnet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use zone::endpoint::{BoundPort, EndpointStatus};
use zone::network::NetworkStatus;
use zone::pod::{Desired, Phase, Pod};

/// The MAC address of every tap on the host's side: each is a link of its own, so all may be the same, and the guest knows
/// its gateway's address without asking.
pub const GATEWAY_MAC: [u8; 6] = [0x06, 0x6b, 0x72, 0x61, 0x75, 0x64];

/// What else is on the machine.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Where the machine's own routes lead, without the default route and without ours.
    pub host_subnets: Vec<Subnet>,
    /// Ports that the machine's own programs listen on.
    pub host_ports: HostPorts,
}

/// A network that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its subnet.
    pub subnet: Subnet,
    /// The part of it that addresses are picked from.
    pub range: Subnet,
    /// The gateway; its number is also the network's mark in the firewall.
    pub gateway: Ipv4Addr,
    /// Nothing goes in or out.
    pub internal: bool,
}

/// A tap that should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapPlan {
    /// Who may open it.
    pub uid: u32,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The network's gateway.
    pub gateway: Ipv4Addr,
    /// The ports that are forwarded to it.
    pub ports: Vec<BoundPort>,
}

/// The names on a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Addresses by name, in lower case.
    pub addresses: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// The first name of each address.
    pub reverse: BTreeMap<Ipv4Addr, String>,
}

/// What a pod that asks for names sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The gateways of its networks, in the order of its interfaces.
    pub gateways: Vec<Ipv4Addr>,
    /// The name servers that its user named, none of them the machine itself; empty = the machine's.
    pub upstreams: Vec<IpAddr>,
}

/// All that should be.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Statuses of networks, by id.
    pub network_status: BTreeMap<String, NetworkStatus>,
    /// Statuses of endpoints, by id; true only once the rest of the plan is carried out.
    pub endpoint_status: BTreeMap<String, EndpointStatus>,
    /// Networks by their gateway.
    pub networks: BTreeMap<Ipv4Addr, NetworkPlan>,
    /// Taps by name.
    pub taps: BTreeMap<String, TapPlan>,
    /// Names by the network's gateway.
    pub names: BTreeMap<Ipv4Addr, Names>,
    /// Who may ask, by address.
    pub askers: BTreeMap<Ipv4Addr, Asker>,
}

/// Plans everything anew.
#[must_use]
pub fn plan(resources: &Resources, world: &World) -> Plan {
    let mut plan = Plan::default();
    let by_id = networks::plan(resources, world, &mut plan);
    endpoints::plan(resources, world, &by_id, &mut plan);
    askers(resources, &mut plan);
    plan
}

/// A pod on several networks sees the names of all, whichever gateway it asks.
fn askers(resources: &Resources, plan: &mut Plan) {
    for pod in resources.pods.values() {
        let status = |id: &zone::EndpointId| plan.endpoint_status.get(id.as_str());
        let own: Vec<&EndpointStatus> = pod.spec.endpoints.iter().filter_map(status).collect();
        let gateways: Vec<Ipv4Addr> = own.iter().filter_map(|s| s.gateway).collect();
        let upstreams: Vec<IpAddr> = pod
            .spec
            .dns
            .iter()
            .filter_map(|server| server.parse().ok())
            .filter(|ip: &IpAddr| !ip.is_loopback())
            .collect();
        let asker = Asker { gateways, upstreams };
        let addresses: Vec<Ipv4Addr> = own.iter().filter_map(|s| s.ipv4).collect();
        plan.askers.extend(addresses.into_iter().map(|address| (address, asker.clone())));
    }
}

/// Whether a pod's ports and names should be there: from the request to start it until it has exited for good.
fn is_wanted(pod: &zone::Resource<Pod>) -> bool {
    let (spec, status) = (&pod.spec, &pod.status);
    let runs = matches!(status.phase, Phase::Starting | Phase::Running | Phase::Stopping);
    let over = status.phase == Phase::Exited && status.starts == spec.starts;
    runs || (spec.desired == Desired::Running && !over)
}

/// `02:42:ac:14:00:02`
#[must_use]
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let parts = text.split([':', '-']).map(|part| u8::from_str_radix(part, 16)).collect::<Result<Vec<_>, _>>().ok()?;
    // A group address cannot be a station's.
    parts.try_into().ok().filter(|mac: &[u8; 6]| mac[0] & 1 == 0)
}

#[cfg(test)]
mod tests;
