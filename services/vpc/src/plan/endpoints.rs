//! Chooses each endpoint's address, and says what follows from it: tap, names, ports, status.

use super::ports::Ports;
use super::{GATEWAY_MAC, NetworkPlan, Plan, TapPlan, World, format_mac, is_wanted, parse_mac};
use crate::resources::Resources;
use crate::tap;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use zone::Resource;
use zone::endpoint::{Endpoint, EndpointStatus, RESOLVER};
use zone::network::DEFAULT_NETWORK;

/// Names that one endpoint may have.
const NAMES_MAX: usize = 256;

pub(super) fn plan(resources: &Resources, world: &World, networks: &BTreeMap<String, NetworkPlan>, plan: &mut Plan) {
    let gateways: BTreeSet<Ipv4Addr> = plan.networks.keys().copied().collect();
    let mut taken = gateways.clone();
    taken.extend(resources.networks.values().flat_map(|n| n.spec.aux_addresses.values()));
    let mut ports = Ports::new(&world.host_ports, &gateways);
    let order = order(resources);
    for endpoint in &order {
        if let Some(address) = kept_address(endpoint, networks) {
            taken.insert(address);
        }
        if wanted(endpoint, resources) {
            ports.hold(&endpoint.status.ports);
        }
    }
    for endpoint in order {
        let status = one(endpoint, resources, networks, &mut taken, &mut ports, plan);
        plan.endpoint_status.insert(endpoint.meta.name.clone(), status);
    }
}

/// In the order of their age, so that the first to ask is the first to get.
fn order(resources: &Resources) -> Vec<&Resource<Endpoint>> {
    let mut order: Vec<_> = resources.endpoints.values().collect();
    order.sort_by_key(|e| (e.meta.created_ns, e.meta.name.clone()));
    order
}

fn wanted(endpoint: &Resource<Endpoint>, resources: &Resources) -> bool {
    resources.pods.get(endpoint.spec.pod.as_str()).is_some_and(is_wanted)
}

fn kept_address(endpoint: &Resource<Endpoint>, networks: &BTreeMap<String, NetworkPlan>) -> Option<Ipv4Addr> {
    let network = networks.get(endpoint.spec.network.as_str())?;
    endpoint.status.ipv4.filter(|address| network.subnet.contains(*address))
}

fn one(
    endpoint: &Resource<Endpoint>,
    resources: &Resources,
    networks: &BTreeMap<String, NetworkPlan>,
    taken: &mut BTreeSet<Ipv4Addr>,
    ports: &mut Ports,
    plan: &mut Plan,
) -> EndpointStatus {
    let spec = &endpoint.spec;
    let failed = |error: Option<String>| EndpointStatus { error, ..EndpointStatus::default() };
    let Some(network) = networks.get(spec.network.as_str()) else {
        let status = plan.network_status.get(spec.network.as_str());
        return failed(match status {
            Some(status) => status.error.clone(),
            None => Some(format!("network {} not found", spec.network)),
        });
    };
    let address = match kept_address(endpoint, networks).map_or_else(|| choose(endpoint, network, taken), Ok) {
        Ok(address) => address,
        Err(error) => return failed(Some(error)),
    };
    taken.insert(address);
    let mac = match mac(endpoint, address) {
        Ok(mac) => mac,
        Err(error) => return failed(Some(error)),
    };
    let network_name = resources.networks.get(spec.network.as_str()).map_or("", |n| n.spec.name.as_str());
    let mut status = EndpointStatus {
        ready: false,
        error: None,
        tap: String::new(),
        mac: format_mac(mac),
        ipv4: Some(address),
        prefix: network.subnet.prefix(),
        gateway: Some(network.gateway),
        gateway_mac: format_mac(GATEWAY_MAC),
        resolver: Some(if network_name == DEFAULT_NETWORK { network.gateway } else { RESOLVER }),
        ports: Vec::new(),
    };
    let pod = resources.pods.get(spec.pod.as_str());
    let Some(uid) = pod.and_then(|pod| pod.status.uid) else { return status };
    status.tap = tap::name(&endpoint.meta.name);
    status.ready = true;
    if wanted(endpoint, resources) {
        name(plan, network.gateway, network_name, &spec.names, address);
        match ports.bind(&spec.ports, &endpoint.status.ports) {
            Ok(bound) => status.ports = bound,
            Err(error) => {
                status.ready = false;
                status.error = Some(error);
            }
        }
    }
    let tap = TapPlan { uid, address, mac, gateway: network.gateway, ports: status.ports.clone() };
    plan.taps.insert(status.tap.clone(), tap);
    status
}

fn choose(
    endpoint: &Resource<Endpoint>,
    network: &NetworkPlan,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, String> {
    let subnet = network.subnet;
    match endpoint.spec.requested_ipv4 {
        Some(address) if !subnet.contains(address) || address == subnet.network() || address == subnet.broadcast() => {
            Err(format!("no configured subnet or ip-range contain the IP address {address}"))
        }
        Some(address) if taken.contains(&address) => Err("Address already in use".into()),
        Some(address) => Ok(address),
        None => network
            .range
            .addresses()
            .find(|a| !taken.contains(a) && *a != subnet.network() && *a != subnet.broadcast())
            .ok_or_else(|| format!("no available IPv4 addresses on this network's address pools: {subnet}")),
    }
}

fn mac(endpoint: &Resource<Endpoint>, address: Ipv4Addr) -> Result<[u8; 6], String> {
    let [a, b, c, d] = address.octets();
    match &endpoint.spec.requested_mac {
        Some(text) => parse_mac(text)
            .filter(|mac| *mac != GATEWAY_MAC)
            .ok_or_else(|| format!("invalid MAC address {text}: it must be a station's, like 02:42:ac:14:00:02")),
        None => Ok([0x02, 0x42, a, b, c, d]),
    }
}

/// Each name alone, and with the network's behind it.
fn name(plan: &mut Plan, gateway: Ipv4Addr, network: &str, names: &[String], address: Ipv4Addr) {
    let table = plan.names.entry(gateway).or_default();
    for name in names.iter().take(NAMES_MAX) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if name.is_empty() {
            continue;
        }
        let full = format!("{name}.{}", network.to_ascii_lowercase());
        // Docker's answer to a question for the name of an address.
        table.reverse.entry(address).or_insert_with(|| full.clone());
        table.addresses.entry(full).or_default().insert(address);
        table.addresses.entry(name).or_default().insert(address);
    }
}
