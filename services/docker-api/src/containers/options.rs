//! Options of create that are only words to check, with Docker Engine's sentences: names, hosts, name servers, namespaces,
//! devices, links.
//!
//! Pure functions. What has no meaning in a microVM is accepted with a warning where a program works all the same, and
//! refused where it would not.

use super::request::{Create, HostConfig};
use crate::errors::{Failure, Result};
use crate::state::World;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use zone::pod::Device;

/// The most entries of any list: more is no container's configuration.
const MAX_LIST: usize = 10_000;
/// The longest host or domain name (hostname(7)).
const MAX_HOSTNAME: usize = 253;

/// Checks a request; the answer's warnings.
///
/// # Errors
/// 400 for what is wrong.
pub fn check(request: &Create, host: &HostConfig) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    config(request)?;
    for line in host.extra_hosts.iter().flatten() {
        extra_host(line)?;
    }
    for server in host.dns.iter().flatten() {
        if server.parse::<IpAddr>().is_err() {
            return Err(Failure::invalid(format!("invalid IP address: bad nameserver address \"{server}\"")));
        }
    }
    if host.oom_score_adj.is_some_and(|n| !(-1000..=1000).contains(&n)) {
        let value = host.oom_score_adj.unwrap_or_default();
        return Err(Failure::invalid(format!("Invalid value {value}, range for oom score adj is [-1000, 1000]")));
    }
    if host.shm_size.is_some_and(|n| n < 0) {
        return Err(Failure::invalid("SHM size can not be less than 0"));
    }
    if let Some(request) = host.device_requests.iter().flatten().next() {
        return Err(gpu(request));
    }
    if host.pid_mode.as_deref() == Some("host") {
        return Err(Failure::invalid(
            "the host's processes cannot be seen from a container: it is a microVM with a kernel of its own",
        ));
    }
    namespaces(host, &mut warnings)?;
    for (what, there) in [
        ("device cgroup rules", host.device_cgroup_rules.as_ref().is_some_and(|l| !l.is_empty())),
        ("a cgroup parent", host.cgroup_parent.as_ref().is_some_and(|p| !p.is_empty())),
    ] {
        if there {
            warnings.push(format!("{what} has no effect: a container is a microVM with control groups of its own"));
        }
    }
    Ok(warnings)
}

fn config(request: &Create) -> Result<()> {
    let lists = [
        request.env.as_ref().map_or(0, Vec::len),
        request.labels.as_ref().map_or(0, BTreeMap::len),
        request.volumes.as_ref().map_or(0, BTreeMap::len),
        request.exposed_ports.as_ref().map_or(0, BTreeMap::len),
    ];
    if lists.into_iter().any(|length| length > MAX_LIST) {
        return Err(Failure::invalid(format!("a list in the request has more than {MAX_LIST} entries")));
    }
    if let Some(dir) = request.working_dir.as_deref().filter(|d| !d.is_empty() && !d.starts_with('/')) {
        return Err(Failure::invalid(format!(
            "the working directory '{dir}' is invalid, it needs to be an absolute path"
        )));
    }
    for entry in request.env.iter().flatten() {
        if entry.is_empty() || entry.starts_with('=') || entry.contains('\0') {
            return Err(Failure::invalid(format!("invalid environment variable: {entry}")));
        }
    }
    for name in [&request.hostname, &request.domainname].into_iter().flatten() {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if name.len() > MAX_HOSTNAME || !name.bytes().all(legal) {
            return Err(Failure::invalid(format!("invalid hostname format: {name}")));
        }
    }
    match request.stop_signal.as_deref().filter(|s| !s.is_empty()) {
        Some(signal) if super::lifecycle::signal_number(signal).is_none() => {
            Err(Failure::invalid(format!("invalid signal: {signal}")))
        }
        _ => Ok(()),
    }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; an address may be `host-gateway`, or IPv6 in brackets.
fn extra_host(line: &str) -> Result<()> {
    let split = line.split_once('=').or_else(|| line.split_once(':'));
    let Some((name, address)) = split.filter(|(name, _)| !name.is_empty()) else {
        return Err(Failure::invalid(format!("bad format for add-host: \"{line}\"")));
    };
    let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let word = |b: u8| b.is_ascii_graphic();
    if !name.bytes().all(word) || (address != "host-gateway" && plain.parse::<IpAddr>().is_err()) {
        return Err(Failure::invalid(format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok(())
}

/// Docker Engine's words for a driver that is not there, with the reason.
fn gpu(request: &Value) -> Failure {
    let driver = request["Driver"].as_str().unwrap_or_default();
    let sets = request["Capabilities"].as_array().into_iter().flatten();
    let sets: Vec<String> = sets
        .map(|set| {
            let words: Vec<&str> = set.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            format!("[{}]", words.join(" "))
        })
        .collect();
    Failure::invalid(format!(
        "could not select device driver \"{driver}\" with capabilities: [{}]: a container is a microVM, and this engine passes no \
         device of the machine to it",
        sets.join(" ")
    ))
}

fn namespaces(host: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    let modes: [(&str, &str, &Option<String>, &[&str]); 5] = [
        ("pid", "PID", &host.pid_mode, &["", "private"]),
        ("ipc", "IPC", &host.ipc_mode, &["", "private", "shareable", "none", "host"]),
        ("uts", "UTS", &host.uts_mode, &["", "private", "host"]),
        ("userns", "userns", &host.userns_mode, &["", "private", "host"]),
        ("cgroupns", "cgroup namespace", &host.cgroupns_mode, &["", "private", "host"]),
    ];
    for (what, shown, mode, legal) in modes {
        let mode = mode.as_deref().unwrap_or_default();
        if mode.starts_with("container:") {
            // Said elsewhere for the modes that can be shared.
            continue;
        }
        if !legal.contains(&mode) {
            return Err(Failure::invalid(format!("invalid {shown} mode: {mode}")));
        }
        // The others warn where they are translated.
        if mode == "host" && matches!(what, "userns" | "cgroupns") {
            warnings.push(format!("{what}=host means the microVM's own, not the host's"));
        }
    }
    Ok(())
}

/// The devices that a container gets: the guest's, by path.
///
/// # Errors
/// 400 for paths that are none.
pub fn devices(host: &HostConfig) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for entry in host.devices.iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let (source, mut target, permissions) =
            (text("PathOnHost"), text("PathInContainer"), text("CgroupPermissions"));
        let inside = |path: &str| path.starts_with("/dev/") && path.len() < 256 && path.split('/').all(|p| p != "..");
        if target.is_empty() {
            target.clone_from(&source);
        }
        if !permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(Failure::invalid(format!("invalid device mode: {permissions}")));
        }
        if !inside(&source) || !target.starts_with('/') || target.split('/').any(|p| p == "..") {
            return Err(Failure::invalid(format!(
                "error gathering device information while adding custom device \"{source}\": not a device of the microVM (those are \
                 below /dev; devices of the machine cannot be given to a container)"
            )));
        }
        devices.push(Device { source, target });
    }
    Ok(devices)
}

/// The `NAME[:ALIAS]` links of a container called `this`, as `inspect` shows them: `/other:/this/alias`.
///
/// # Errors
/// 400 when the other container is not there, or the format is wrong.
pub fn links(world: &World, host: &HostConfig, this: &str) -> Result<Vec<String>> {
    let mut links = Vec::new();
    for text in host.links.iter().flatten() {
        let (key, alias) = text.split_once(':').unwrap_or((text, text));
        let alias = alias.rsplit('/').next().unwrap_or(alias);
        let key = key.strip_prefix('/').unwrap_or(key);
        if key.is_empty() || alias.is_empty() || alias.contains(|c: char| c.is_whitespace() || c == ':') {
            return Err(Failure::invalid(format!("bad format for links: {text}")));
        }
        let other =
            world.container(key).map_err(|f| Failure::invalid(format!("could not get container for {key}: {f}")))?;
        links.push(format!("/{}:/{this}/{alias}", other.spec().name));
    }
    Ok(links)
}

/// Lines for /etc/hosts of the containers that are linked to, which have to run.
///
/// # Errors
/// 409 when one does not run.
pub fn link_lines(world: &World, container: &crate::state::Container) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for shown in container.spec().docker["HostConfig"]["Links"].as_array().into_iter().flatten() {
        let Some((key, own)) = shown.as_str().and_then(|s| s.split_once(':')) else { continue };
        let alias = own.rsplit('/').next().unwrap_or(own);
        let other =
            world.container(key).map_err(|f| Failure::internal(format!("Cannot link to {key} AS {own}: {f}")))?;
        let address = other
            .pod
            .spec
            .endpoints
            .iter()
            .filter_map(|id| world.endpoints.get(id.as_str())?.status.ipv4)
            .next()
            .filter(|_| other.is_running());
        let Some(address) = address else {
            return Err(Failure::conflict(format!("Cannot link to a non running container: {key} AS {own}")));
        };
        let mut names = vec![alias.to_owned(), other.pod.spec.hostname.clone(), other.spec().name.clone()];
        names.dedup();
        lines.extend(names.iter().map(|name| format!("{name}:{address}")));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(request: Value) -> Result<Vec<String>> {
        let request: Create = serde_json::from_value(request).unwrap();
        check(&request, &request.host_config.clone().unwrap_or_default())
    }

    #[test]
    fn wrong_words_are_refused_in_dockers_own() {
        for (request, part) in [
            (json!({"WorkingDir": "x"}), "the working directory 'x' is invalid, it needs to be an absolute path"),
            (json!({"Env": ["=x"]}), "invalid environment variable: =x"),
            (json!({"Hostname": "a b"}), "invalid hostname format: a b"),
            (json!({"StopSignal": "SIGNOPE"}), "invalid signal: SIGNOPE"),
            (json!({"HostConfig": {"ExtraHosts": ["x"]}}), "bad format for add-host: \"x\""),
            (json!({"HostConfig": {"ExtraHosts": ["x:y"]}}), "invalid IP address in add-host: \"y\""),
            (json!({"HostConfig": {"Dns": ["x"]}}), "bad nameserver address"),
            (json!({"HostConfig": {"OomScoreAdj": 1001}}), "range for oom score adj is [-1000, 1000]"),
            (json!({"HostConfig": {"ShmSize": -1}}), "SHM size can not be less than 0"),
            (json!({"HostConfig": {"PidMode": "host"}}), "microVM"),
            (json!({"HostConfig": {"IpcMode": "odd"}}), "invalid IPC mode: odd"),
            (json!({"HostConfig": {"UsernsMode": "odd"}}), "invalid userns mode: odd"),
            (
                json!({"HostConfig": {"DeviceRequests": [{"Count": -1, "Capabilities": [["gpu", "nvidia"]]}]}}),
                "could not select device driver \"\" with capabilities: [[gpu nvidia]]",
            ),
        ] {
            let failure = checked(request.clone()).unwrap_err();
            assert!(failure.status == 400 && failure.message.contains(part), "{request}: {failure}");
        }
    }

    #[test]
    fn what_means_nothing_here_is_accepted_with_a_word() {
        let warnings = checked(json!({"HostConfig": {"UsernsMode": "host", "CgroupParent": "/x", "ExtraHosts": ["h:host-gateway", "six:[::1]", "a=10.0.0.1"], "Dns": ["fd00::1"]}})).unwrap();
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn a_device_is_one_of_the_guests() {
        let devices_of = |entry: Value| devices(&serde_json::from_value(json!({"Devices": [entry]})).unwrap());
        let device =
            devices_of(json!({"PathOnHost": "/dev/fuse", "PathInContainer": "", "CgroupPermissions": "rwm"})).unwrap();
        assert_eq!(device, [Device { source: "/dev/fuse".into(), target: "/dev/fuse".into() }]);
        for wrong in [
            json!({"PathOnHost": "/etc/passwd"}),
            json!({"PathOnHost": "/dev/../etc/passwd"}),
            json!({"PathOnHost": "/dev/fuse", "CgroupPermissions": "x"}),
        ] {
            assert_eq!(devices_of(wrong.clone()).unwrap_err().status, 400, "{wrong}");
        }
    }

    #[test]
    fn a_link_names_a_container_that_is_there() {
        let world = crate::containers::sample();
        let other = world.containers().next().unwrap();
        let (id, name) = (other.id().to_string(), other.spec().name.clone());
        let host = |link: String| serde_json::from_value::<HostConfig>(json!({"Links": [link]})).unwrap();
        let found = links(&world, &host(format!("{id}:db")), "web").unwrap();
        assert_eq!(found, [format!("/{name}:/web/db")]);
        assert!(
            links(&world, &host("nope:db".into()), "web")
                .unwrap_err()
                .message
                .contains("could not get container for nope")
        );
    }
}
