//! `/networks`: subnets whose containers reach each other by name.
//!
//! `host` and `none` exist only here, as Docker's clients expect to see them; everything else is a resource.

mod connect;

use crate::App;
use crate::containers::request::EndpointConfig;
use crate::errors::{Failure, Result};
use crate::fields::{Answer, fit};
use crate::filters::Params;
use crate::names::{self, seconds};
use crate::state::World;
use crate::version::ApiVersion;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use zone::client::Operation;
use zone::endpoint::{Endpoint, EndpointSpec};
use zone::network::{DEFAULT_NETWORK, Network, NetworkName, NetworkSpec};
use zone::{ContainerId, ErrorKind, NetworkId, PodId, Resource};

/// How long a new network may take until the answer is sent without its being ready.
const READY: Duration = Duration::from_secs(10);
/// Networks that are no resources: name, driver, id.
const PSEUDO: [(&str, &str, &str); 2] = [
    ("host", "host", "686f737400000000000000000000000000000000000000000000000000000000"),
    ("none", "null", "6e6f6e6500000000000000000000000000000000000000000000000000000000"),
];

/// What the default network's options say, which tools read.
const DEFAULT_OPTIONS: [(&str, &str); 5] = [
    ("com.docker.network.bridge.default_bridge", "true"),
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
    ("com.docker.network.driver.mtu", "1500"),
];

/// The routes of networks.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect::connect))
        .route("/networks/{id}/disconnect", post(connect::disconnect))
}

/// The network that a container asks for.
///
/// # Errors
/// 404 when there is none, 503 when it is the default one and is not made yet.
pub fn find_for_container(world: &World, key: &str) -> Result<Arc<Resource<Network>>> {
    world.network(key).map_err(|failure| match key {
        DEFAULT_NETWORK => Failure::unavailable("the network \"bridge\" is not made yet; try again in a moment"),
        "host" | "none" => Failure::invalid(format!("the network \"{key}\" cannot be combined with others")),
        _ => failure,
    })
}

/// A container's place on a network.
///
/// # Errors
/// 400 for addresses that are wrong.
pub fn endpoint(
    network: &Resource<Network>,
    pod: &PodId,
    container: &ContainerId,
    name: &str,
    hostname: Option<String>,
    config: &EndpointConfig,
) -> Result<EndpointSpec> {
    let mut names = vec![name.to_owned(), container.short().to_owned()];
    for more in config.aliases.iter().flatten().cloned().chain(hostname) {
        if !names.contains(&more) {
            names.push(more);
        }
    }
    let wanted = config.ipam.as_ref().and_then(|i| i.ipv4.as_deref()).filter(|a| !a.is_empty());
    if wanted.is_some() && network.spec.name == DEFAULT_NETWORK {
        return Err(Failure::invalid(format!(
            "invalid config for network {DEFAULT_NETWORK}: invalid endpoint settings:\nuser specified IP address is supported on user \
             defined networks only"
        )));
    }
    let requested_ipv4 = wanted
        .map(|text| text.parse::<Ipv4Addr>().map_err(|_| Failure::invalid(format!("invalid IPv4 address: {text}"))))
        .transpose()?;
    let requested_mac = config.mac_address.clone().filter(|m| !m.is_empty());
    if let Some(mac) = requested_mac.as_ref().filter(|m| !is_mac(m)) {
        return Err(Failure::invalid(format!(
            "invalid config for network {}: invalid MAC address {mac}",
            network.spec.name
        )));
    }
    let network = NetworkId::new(&network.meta.name);
    Ok(EndpointSpec { pod: pod.clone(), network, names, requested_ipv4, requested_mac, ports: Vec::new() })
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The endpoint of a container without a network, as `inspect` shows it.
#[must_use]
pub fn none_endpoint() -> Value {
    json!({
        "IPAMConfig": null, "Links": null, "Aliases": null, "DriverOpts": null, "GwPriority": 0, "NetworkID": PSEUDO[1].2, "EndpointID": "",
        "Gateway": "", "IPAddress": "", "MacAddress": "", "IPPrefixLen": 0, "IPv6Gateway": "", "GlobalIPv6Address": "", "GlobalIPv6PrefixLen": 0,
        "DNSNames": null,
    })
}

fn pseudo(world: &World, key: &str) -> Option<Value> {
    // They are as old as the network that the zone has always had.
    let created = world.networks.values().find(|n| n.spec.name == DEFAULT_NETWORK).map_or(0, |n| n.meta.created_ns);
    let (name, driver, id) =
        PSEUDO.into_iter().find(|(name, _, id)| *name == key || (key.len() > 3 && id.starts_with(key)))?;
    Some(json!({
        "Name": name, "Id": id, "Created": names::time(created), "Scope": "local", "Driver": driver, "EnableIPv4": true, "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": null}, "Internal": false, "Attachable": false, "Ingress": false,
        "ConfigFrom": {"Network": ""}, "ConfigOnly": false, "Containers": {}, "Options": {}, "Labels": {},
    }))
}

fn endpoints_of<'a>(world: &'a World, network: &'a str) -> impl Iterator<Item = &'a Arc<Resource<Endpoint>>> {
    world.endpoints.values().filter(move |e| e.spec.network.as_str() == network)
}

fn describe(world: &World, network: &Resource<Network>) -> Value {
    let default = network.spec.name == DEFAULT_NETWORK;
    let mut ipam = Map::new();
    let subnet = Some(&network.status.subnet).filter(|s| !s.is_empty()).or(network.spec.subnet.as_ref());
    if let Some(subnet) = subnet {
        ipam.insert("Subnet".into(), json!(subnet));
    }
    if let Some(range) = &network.spec.ip_range {
        ipam.insert("IPRange".into(), json!(range));
    }
    if !network.spec.aux_addresses.is_empty() {
        ipam.insert("AuxiliaryAddresses".into(), json!(network.spec.aux_addresses));
    }
    if let Some(gateway) = network.status.gateway.or(network.spec.gateway) {
        ipam.insert("Gateway".into(), json!(gateway.to_string()));
    }
    json!({
        "Name": network.spec.name,
        "Id": network.meta.name,
        "Created": names::time(network.meta.created_ns),
        "Scope": "local",
        "Driver": network.spec.driver,
        "EnableIPv4": true,
        "EnableIPv6": network.spec.enable_ipv6,
        "IPAM": {"Driver": "default", "Options": network.spec.ipam_options, "Config": if ipam.is_empty() { json!([]) } else { json!([ipam]) }},
        "Internal": network.spec.internal,
        "Attachable": network.spec.attachable,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": members(world, network),
        "Options": if default { json!(DEFAULT_OPTIONS.into_iter().collect::<BTreeMap<_, _>>()) } else { json!(network.spec.options) },
        "Labels": network.spec.labels,
    })
}

/// The running containers on a network.
fn members(world: &World, network: &Resource<Network>) -> Map<String, Value> {
    let mut members = Map::new();
    for endpoint in endpoints_of(world, &network.meta.name) {
        let Ok(container) = world.container(endpoint.spec.pod.as_str()) else { continue };
        if !container.is_running() {
            continue;
        }
        let status = &endpoint.status;
        members.insert(
            container.id().to_string(),
            json!({
                "Name": container.spec().name,
                "EndpointID": crate::containers::short_endpoint(endpoint),
                "MacAddress": status.mac,
                "IPv4Address": status.ipv4.map(|a| format!("{a}/{}", status.prefix)).unwrap_or_default(),
                "IPv6Address": "",
            }),
        );
    }
    members
}

async fn inspect(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Json<Value>> {
    if params.get("scope").is_some_and(|scope| scope != "local") {
        return Err(Failure::not_found(format!("network {id} not found")));
    }
    let world = app.store.world();
    let mut answer = match world.network(&id) {
        Ok(network) => describe(&world, &network),
        Err(failure) => pseudo(&world, &id).ok_or(failure)?,
    };
    fit(Answer::Network, version, &mut answer);
    Ok(Json(answer))
}

async fn list(State(app): State<Arc<App>>, version: ApiVersion, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["dangling", "driver", "id", "label", "label!", "name", "scope", "type"])?;
    let dangling = filters.flag("dangling")?;
    if let Some(unknown) = filters.values("type").iter().find(|t| !["builtin", "custom"].contains(&t.as_str())) {
        return Err(Failure::invalid(format!("invalid filter: 'type'='{unknown}'")));
    }
    let world = app.store.world();
    let own = world.networks.values().map(|n| describe(&world, n));
    let all = own.chain(PSEUDO.into_iter().filter_map(|(name, ..)| pseudo(&world, name)));
    let text = |n: &Value, key: &str| n[key].as_str().unwrap_or_default().to_owned();
    let found: Vec<Value> = all
        .filter(|n| {
            let builtin = ["bridge", "host", "none"].contains(&n["Name"].as_str().unwrap_or_default());
            let unused = !builtin && endpoints_of(&world, n["Id"].as_str().unwrap_or_default()).next().is_none();
            filters.any("driver", |d| n["Driver"] == d)
                && filters.any("id", |i| text(n, "Id").starts_with(i))
                && filters.any("name", |i| text(n, "Name").contains(i))
                && filters.any("scope", |s| s == "local")
                && filters.any("type", |t| (t == "builtin") == builtin)
                && filters.labels(|key| n["Labels"][key].as_str().map(str::to_owned))
                && dangling.is_none_or(|d| d == unused)
        })
        .map(|mut n| {
            // Lists never say who is on a network.
            n["Containers"] = json!({});
            fit(Answer::Network, version, &mut n);
            n
        })
        .collect();
    Ok(Json(Value::Array(found)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Create {
    name: Option<String>,
    driver: Option<String>,
    internal: Option<bool>,
    attachable: Option<bool>,
    ingress: Option<bool>,
    config_only: Option<bool>,
    scope: Option<String>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(rename = "IPAM")]
    ipam: Option<Ipam>,
    options: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    config: Option<Vec<IpamConfig>>,
    options: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpamConfig {
    subnet: Option<String>,
    gateway: Option<String>,
    #[serde(rename = "IPRange")]
    ip_range: Option<String>,
    auxiliary_addresses: Option<BTreeMap<String, String>>,
}

fn spec_of(request: Create) -> Result<NetworkSpec> {
    let name = request.name.unwrap_or_default();
    if name.trim().is_empty() {
        return Err(Failure::invalid(format!("invalid name: {name}")));
    }
    names::network_name(&name)?;
    if [DEFAULT_NETWORK, "host", "none", "default"].contains(&name.as_str()) {
        return Err(Failure::forbidden(format!("operation is not permitted on predefined {name} network ")));
    }
    let driver = request.driver.filter(|d| !d.is_empty() && d != "default").unwrap_or_else(|| "bridge".into());
    if driver == "overlay" || request.scope.as_deref() == Some("swarm") || request.ingress == Some(true) {
        return Err(Failure::forbidden(crate::system::no_swarm().message));
    }
    if driver == "host" || driver == "null" {
        return Err(Failure::forbidden(format!("only one instance of \"{driver}\" network is allowed")));
    }
    if driver != "bridge" {
        return Err(Failure::not_found(format!("plugin \"{driver}\" not found")));
    }
    if request.config_only == Some(true) {
        return Err(Failure::not_implemented("networks that only hold a configuration are not supported"));
    }
    let Ipam { config, options: ipam_options } = request.ipam.unwrap_or_default();
    let config = config.unwrap_or_default();
    let text = |value: Option<&String>| value.filter(|v| !v.is_empty()).cloned();
    let first = config.iter().find(|c| c.subnet.as_ref().is_none_or(|s| !s.contains(':')));
    let gateway = text(first.and_then(|c| c.gateway.as_ref()))
        .map(|g| g.parse::<Ipv4Addr>().map_err(|_| Failure::invalid(format!("invalid gateway address: {g}"))))
        .transpose()?;
    let subnet = text(first.and_then(|c| c.subnet.as_ref()));
    if let Some(subnet) = &subnet {
        check_subnet(subnet, gateway)?;
    }
    let ip_range = text(first.and_then(|c| c.ip_range.as_ref()));
    if let Some(range) = &ip_range {
        let inside = subnet.as_deref().is_some_and(|subnet| is_within(range, subnet));
        if !inside {
            return Err(Failure::invalid(format!("invalid ip-range {range}: it must be a part of the subnet")));
        }
    }
    let mut aux_addresses = BTreeMap::new();
    for (key, address) in first.and_then(|c| c.auxiliary_addresses.as_ref()).into_iter().flatten() {
        let parsed = address.parse().map_err(|_| Failure::invalid(format!("invalid auxiliary address {address}")))?;
        aux_addresses.insert(key.clone(), parsed);
    }
    Ok(NetworkSpec {
        name,
        driver,
        subnet,
        gateway,
        ip_range,
        aux_addresses,
        ipam_options,
        internal: request.internal.unwrap_or_default(),
        attachable: request.attachable.unwrap_or_default(),
        enable_ipv6: request.enable_ipv6.unwrap_or_default(),
        labels: request.labels.unwrap_or_default(),
        options: request.options.unwrap_or_default(),
    })
}

/// Checks a subnet, and that the gateway is in it.
fn check_subnet(text: &str, gateway: Option<Ipv4Addr>) -> Result<()> {
    let wrong = |why: String| Failure::invalid(format!("invalid network config:\n{why}"));
    let parts = text.split_once('/').and_then(|(a, p)| Some((a.parse::<Ipv4Addr>().ok()?, p.parse::<u32>().ok()?)));
    let Some((address, prefix)) = parts.filter(|(_, prefix)| *prefix <= 32) else {
        return Err(wrong(format!("invalid subnet {text}: invalid CIDR block notation")));
    };
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    match gateway {
        Some(gateway) if (gateway.to_bits() ^ address.to_bits()) & mask != 0 => {
            Err(wrong(format!("invalid gateway {gateway}: parent subnet {text} doesn't contain this address")))
        }
        _ => Ok(()),
    }
}

/// Whether all addresses of one subnet are in the other.
fn is_within(part: &str, whole: &str) -> bool {
    let parse = |text: &str| {
        let (address, prefix) = text.split_once('/')?;
        Some((address.parse::<Ipv4Addr>().ok()?.to_bits(), prefix.parse::<u32>().ok().filter(|p| *p <= 32)?))
    };
    let (Some((part, bits)), Some((whole, prefix))) = (parse(part), parse(whole)) else { return false };
    bits >= prefix && (part ^ whole).checked_shr(32 - prefix).unwrap_or(0) == 0
}

async fn create(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let request: Create = crate::body::json(&headers, &body)?.unwrap_or_default();
    let mut spec = spec_of(request)?;
    if let Some(project) = app.scope.project() {
        spec.labels.insert(crate::project::LABEL.into(), project.into());
    }
    let id = names::new_id()?;
    let operations =
        vec![Operation::create::<NetworkName>(&spec.name, &id, None)?, Operation::create::<Network>(&id, &spec, None)?];
    match app.store.transact(operations).await {
        Ok(()) => {}
        Err(error) if error.kind == ErrorKind::Conflict => {
            return Err(Failure::conflict(format!("network with name {} already exists", spec.name)));
        }
        Err(error) => return Err(error.into()),
    }
    let settled = app.store.wait(Some(READY), |world| {
        let network = world.networks.get(&id)?;
        (network.status.ready || network.status.error.is_some()).then(|| network.clone())
    });
    if let Some(network) = settled.await
        && let Some(error) = &network.status.error
        && !network.status.ready
    {
        let failure = Failure::forbidden(error.clone());
        app.store.transact(delete(&spec.name, &id)).await?;
        return Err(failure);
    }
    Ok((StatusCode::CREATED, Json(json!({"Id": id, "Warning": ""}))).into_response())
}

fn delete(name: &str, id: &str) -> Vec<Operation> {
    vec![Operation::delete::<NetworkName>(name), Operation::delete::<Network>(id)]
}

async fn remove(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode> {
    let world = app.store.world();
    let network = match world.network(&id) {
        Ok(network) if network.spec.name == DEFAULT_NETWORK => return Err(predefined(DEFAULT_NETWORK)),
        Ok(network) => network,
        Err(failure) => return Err(pseudo(&world, &id).map_or(failure, |_| predefined(&id))),
    };
    if let Some(endpoint) = endpoints_of(&world, &network.meta.name).next() {
        let user = world.container(endpoint.spec.pod.as_str()).map(|c| c.spec().name.clone()).unwrap_or_default();
        return Err(Failure::forbidden(format!(
            "error while removing network: network {} has active endpoints (name:\"{user}\" id:\"{:.12}\")",
            network.spec.name,
            endpoint.spec.pod.as_str()
        )));
    }
    app.store.transact(delete(&network.spec.name, &network.meta.name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn predefined(name: &str) -> Failure {
    Failure::forbidden(format!("{name} is a pre-defined network and cannot be removed"))
}

async fn prune(State(app): State<Arc<App>>, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&["label", "label!", "until"])?;
    let until = filters.until()?;
    let world = app.store.world();
    let mut removed = Vec::new();
    for (id, network) in &world.networks {
        let wanted = network.spec.name != DEFAULT_NETWORK
            && endpoints_of(&world, id).next().is_none()
            && until.is_none_or(|u| seconds(network.meta.created_ns) < seconds(u))
            && filters.labels(|key| network.spec.labels.get(key).cloned());
        if wanted {
            app.store.transact(delete(&network.spec.name, id)).await?;
            removed.push(network.spec.name.clone());
        }
    }
    app.events.send(crate::events::Message::prune("network", 0));
    Ok(Json(json!({"NetworksDeleted": if removed.is_empty() { Value::Null } else { json!(removed) }})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/network-1.51.json")).unwrap();
        let world = crate::containers::sample();
        let ours = describe(&world, world.networks.values().next().unwrap());
        crate::containers::same_keys("", &golden, &ours, &[]);
        assert_eq!(ours["Containers"].as_object().unwrap().len(), 1);
        let builtin = pseudo(&world, "none").unwrap();
        assert_eq!(builtin.as_object().unwrap().len(), golden.as_object().unwrap().len());
    }

    #[test]
    fn a_range_is_a_part_of_its_subnet() {
        for (part, whole, expected) in [
            ("10.1.0.128/25", "10.1.0.0/24", true),
            ("10.1.0.0/24", "10.1.0.0/24", true),
            ("10.2.0.0/25", "10.1.0.0/24", false),
            ("10.1.0.0/16", "10.1.0.0/24", false),
            ("10.1.0.0/33", "0.0.0.0/0", false),
            ("10.1.0.0/8", "0.0.0.0/0", true),
            ("x", "10.1.0.0/24", false),
        ] {
            assert_eq!(is_within(part, whole), expected, "{part} {whole}");
        }
    }

    #[test]
    fn networks_that_cannot_be_are_refused() {
        for (body, status) in [
            (json!({"Name": "bridge"}), 403),
            (json!({"Name": "a/b"}), 400),
            (json!({"Name": "x", "Driver": "macvlan"}), 404),
            (json!({"Name": "x", "Driver": "overlay"}), 403),
            (json!({"Name": "x", "IPAM": {"Config": [{"Subnet": "10.0.0.0"}]}}), 400),
        ] {
            let failure = spec_of(serde_json::from_value(body.clone()).unwrap()).unwrap_err();
            assert_eq!(failure.status.as_u16(), status, "{body}");
        }
    }
}
