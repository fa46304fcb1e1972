//! Chooses each network's subnet and gateway.

use super::{NetworkPlan, Plan, World};
use crate::resources::Resources;
use crate::subnet::Subnet;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use zone::Resource;
use zone::network::{DEFAULT_NETWORK, Network, NetworkStatus};

/// Subnets are taken from here when a user asks for none: 172.20.0.0/14.
const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 20, 0, 0), 14);
const DEFAULT_NETWORK_PREFIX: u8 = 16;
const PREFIX: u8 = 24;
/// Docker's words, which its users search for.
const OVERLAP: &str = "Pool overlaps with other one on this address space";

/// Plans all networks; those that can be used, by id.
pub(super) fn plan(resources: &Resources, world: &World, plan: &mut Plan) -> BTreeMap<String, NetworkPlan> {
    let mut taken: Vec<Subnet> = Vec::new();
    let mut ready = BTreeMap::new();
    // First those that have their subnet, then the new ones in the order of their age.
    let (settled, mut new): (Vec<_>, Vec<_>) = resources.networks.values().partition(|n| kept(n).is_some());
    new.sort_by_key(|n| (n.meta.created_ns, n.meta.name.clone()));
    for network in settled.into_iter().chain(new) {
        let name = &network.meta.name;
        let status = match kept(network).map_or_else(|| choose(network, &taken, world), Ok) {
            Ok(network_plan) => {
                taken.push(network_plan.subnet);
                ready.insert(name.clone(), network_plan);
                plan.networks.insert(network_plan.gateway, network_plan);
                plan.names.entry(network_plan.gateway).or_default();
                NetworkStatus {
                    ready: true,
                    error: None,
                    subnet: network_plan.subnet.to_string(),
                    gateway: Some(network_plan.gateway),
                }
            }
            Err(error) => NetworkStatus { error: Some(error), ..NetworkStatus::default() },
        };
        plan.network_status.insert(name.clone(), status);
    }
    ready
}

fn kept(network: &Resource<Network>) -> Option<NetworkPlan> {
    let status = &network.status;
    let subnet = status.subnet.parse().ok().filter(|_| status.ready)?;
    Some(NetworkPlan {
        subnet,
        range: range(network, subnet),
        gateway: status.gateway?,
        internal: network.spec.internal,
    })
}

fn range(network: &Resource<Network>, subnet: Subnet) -> Subnet {
    let asked = network.spec.ip_range.as_deref().and_then(|text| text.parse::<Subnet>().ok());
    asked.filter(|range| range.prefix() >= subnet.prefix() && range.overlaps(subnet)).unwrap_or(subnet)
}

fn choose(network: &Resource<Network>, taken: &[Subnet], world: &World) -> Result<NetworkPlan, String> {
    let free = |subnet: &Subnet| !taken.iter().chain(&world.host_subnets).any(|other| other.overlaps(*subnet));
    let spec = &network.spec;
    let subnet = match &spec.subnet {
        Some(text) => {
            let subnet: Subnet = text.parse()?;
            if !(8..=30).contains(&subnet.prefix()) {
                return Err(format!("invalid subnet {text}: its prefix must be from /8 to /30"));
            }
            if !free(&subnet) {
                return Err(OVERLAP.into());
            }
            subnet
        }
        None => {
            let prefix = if spec.name == DEFAULT_NETWORK { DEFAULT_NETWORK_PREFIX } else { PREFIX };
            let (address, bits) = POOL;
            let parts = Subnet::of(address, bits).parts(prefix);
            let mut parts: Vec<Subnet> = parts.filter(free).collect();
            // The first /16 is for the default network as long as there is other room.
            parts.sort_by_key(|part| prefix == PREFIX && u32::from(part.network()) >> 16 == u32::from(address) >> 16);
            parts.first().copied().ok_or("all predefined address pools have been fully subnetted")?
        }
    };
    let first = subnet.hosts().next().ok_or("the subnet has no addresses")?;
    let gateway = spec.gateway.unwrap_or(first);
    if !subnet.contains(gateway) || gateway == subnet.network() || gateway == subnet.broadcast() {
        return Err(format!("no matching subnet for gateway {gateway}"));
    }
    Ok(NetworkPlan { subnet, range: range(network, subnet), gateway, internal: spec.internal })
}
