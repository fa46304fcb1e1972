//! What a request may ask for: each option is checked, translated, or refused with a sentence that says why.
//!
//! Pure functions. An option that this engine would silently ignore, although a program depends on it, is refused; one
//! that only tunes is accepted with a warning.

use super::request::{DeviceRate, HostConfig, RestartPolicyRequest, Words};
use super::resources;
use crate::errors::{Failure, Result};
use std::collections::BTreeSet;
use std::net::IpAddr;
use zone::Resource;
use zone::bundle::Rate;
use zone::capability;
use zone::endpoint::{Protocol, PublishedPort};
use zone::image::Image;
use zone::pod::{RestartPolicy, Ulimit};

/// Half of the log of a container whose log nobody may read, bytes.
const UNREAD_LOG: u64 = 1 << 20;

/// Checks what the other functions here do not translate; the answer's warnings.
///
/// # Errors
/// 400 for what is wrong or cannot be done.
pub fn host_config(host: &HostConfig) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    resources::check(host)?;
    let policy = restart_policy(host.restart_policy.as_ref())?;
    if host.auto_remove.unwrap_or_default() && policy != RestartPolicy::No {
        return Err(Failure::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    network_mode(host.network_mode.as_deref().unwrap_or_default())?;
    if host.network_mode.as_deref() == Some("host") {
        warnings.push(
            "a container is a microVM: with --network host each port that it exposes (EXPOSE, --expose) is published under its own \
             number on the zone's addresses; other ports stay inside"
                .into(),
        );
        if host.port_bindings.as_ref().is_some_and(|p| !p.is_empty()) {
            warnings.push("Published ports are discarded when using host network mode".into());
        }
    }
    runtime(host.runtime.as_deref().unwrap_or_default())?;
    for (what, mode) in [("pid", &host.pid_mode), ("ipc", &host.ipc_mode)] {
        match mode.as_deref().unwrap_or_default() {
            mode if mode.starts_with("container:") => {
                return Err(Failure::invalid(format!(
                    "sharing the {what} namespace of another container is not supported yet"
                )));
            }
            "host" => warnings.push(format!("{what}=host means the microVM's own, not the host's")),
            _ => {}
        }
    }
    if host.uts_mode.as_deref() == Some("host") {
        warnings.push("uts=host means the microVM's own, not the host's".into());
    }
    for option in host.security_opt.iter().flatten() {
        if !option.contains(['=', ':']) && option != "no-new-privileges" && option != "disable" {
            return Err(Failure::invalid(format!("invalid --security-opt 1: \"{option}\"")));
        }
        if !option.starts_with("no-new-privileges") {
            warnings.push(format!("security option \"{option}\" has no effect: a container is a microVM"));
        }
    }
    for (what, words) in [("CapAdd", &host.cap_add), ("CapDrop", &host.cap_drop)] {
        let unknown = |name: &String| name != "ALL" && capability::number(name).is_none();
        if let Some(name) = capabilities(words.clone()).into_iter().find(unknown) {
            return Err(Failure::invalid(format!("invalid {what}: unknown capability: \"CAP_{name}\"")));
        }
    }
    log_driver(host)?;
    Ok(warnings)
}

fn network_mode(mode: &str) -> Result<()> {
    if mode.starts_with("container:") {
        return Err(Failure::invalid("sharing another container's network (\"container:\") is not supported yet"));
    }
    Ok(())
}

fn runtime(runtime: &str) -> Result<()> {
    match runtime {
        "" | "kcradle" | "runc" | "io.containerd.runc.v2" => Ok(()),
        other => Err(Failure::invalid(format!("unknown or invalid runtime name: {other}"))),
    }
}

fn log_driver(host: &HostConfig) -> Result<()> {
    const FILES: [&str; 3] = ["max-file", "max-size", "compress"];
    const JSON: [&str; 5] = ["labels", "labels-regex", "env", "env-regex", "tag"];
    let Some(config) = &host.log_config else { return Ok(()) };
    let driver = match config.kind.as_deref().unwrap_or_default() {
        "" => "json-file",
        "none" => return Ok(()),
        known @ ("json-file" | "local") => known,
        other => {
            return Err(Failure::invalid(format!(
                "error looking up logging plugin {other}: plugin \"{other}\" not found"
            )));
        }
    };
    let known = |key: &str| FILES.contains(&key) || (driver == "json-file" && JSON.contains(&key));
    match config
        .config
        .iter()
        .flatten()
        .find(|(key, _)| !known(key) && !["mode", "max-buffer-size"].contains(&key.as_str()))
    {
        Some((key, _)) => Err(Failure::invalid(format!("unknown log opt '{key}' for {driver} log driver"))),
        None => Ok(()),
    }
}

/// The restart policy.
///
/// # Errors
/// 400 when there is no such policy.
pub fn restart_policy(policy: Option<&RestartPolicyRequest>) -> Result<RestartPolicy> {
    let Some(policy) = policy else { return Ok(RestartPolicy::No) };
    let retries = policy.maximum_retry_count.unwrap_or_default();
    let name = policy.name.as_deref().unwrap_or_default();
    if retries != 0 && name != "on-failure" {
        return Err(Failure::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"));
    }
    match name {
        "" | "no" => Ok(RestartPolicy::No),
        "always" => Ok(RestartPolicy::Always),
        "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
        "on-failure" => u32::try_from(retries)
            .map(|max_retries| RestartPolicy::OnFailure { max_retries })
            .map_err(|_| Failure::invalid("invalid restart policy: maximum retry count cannot be negative")),
        other => Err(Failure::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Capability names without `CAP_`, upper case.
#[must_use]
pub fn capabilities(words: Option<Words>) -> Vec<String> {
    let list = words.map(Words::list).unwrap_or_default();
    list.iter()
        .map(|c| c.to_ascii_uppercase())
        .map(|c| c.strip_prefix("CAP_").map(str::to_owned).unwrap_or(c))
        .collect()
}

/// Whether `no-new-privileges` is set.
#[must_use]
pub fn no_new_privileges(host: &HostConfig) -> bool {
    host.security_opt
        .iter()
        .flatten()
        .any(|o| matches!(o.as_str(), "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true"))
}

/// Resource limits.
///
/// # Errors
/// 400 when a soft limit is above its hard one.
pub fn ulimits(host: &HostConfig) -> Result<Vec<Ulimit>> {
    let above = |soft: i64, hard: i64| hard != -1 && (soft == -1 || soft > hard);
    host.ulimits
        .iter()
        .flatten()
        .map(|u| {
            if above(u.soft, u.hard) {
                return Err(Failure::invalid(format!(
                    "ulimit {}: soft limit must be less than or equal to hard limit: {} > {}",
                    u.name, u.soft, u.hard
                )));
            }
            Ok(Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard })
        })
        .collect()
}

/// The smallest of the limits that were given for devices.
pub fn rate(bytes: Option<&Vec<DeviceRate>>, operations: Option<&Vec<DeviceRate>>) -> Rate {
    let least = |limits: Option<&Vec<DeviceRate>>| {
        limits.into_iter().flatten().map(|limit| limit.rate).filter(|rate| *rate > 0).min().unwrap_or_default()
    };
    Rate { operations_per_second: least(operations), bytes_per_second: least(bytes) }
}

/// Size of the writable layer from `StorageOpt`; 0 means the default.
///
/// # Errors
/// 400 for an unknown option or a size that is none.
pub fn rootfs_size(host: &HostConfig) -> Result<u64> {
    let mut size = 0;
    for (key, value) in host.storage_opt.iter().flatten() {
        if key != "size" {
            return Err(Failure::invalid(format!("unknown storage option {key}; there is only \"size\"")));
        }
        size = super::mounts::bytes(value)
            .ok_or_else(|| Failure::invalid(format!("invalid size \"{value}\" in the storage options")))?;
    }
    Ok(size)
}

/// How large the log may become, from `max-size` and `max-file`; 0 means the default.
///
/// # Errors
/// 400 when a value is no number.
pub fn log_max_bytes(host: &HostConfig) -> Result<u64> {
    let kind = host.log_config.as_ref().and_then(|l| l.kind.as_deref()).unwrap_or_default();
    let config = host.log_config.as_ref().and_then(|l| l.config.clone()).unwrap_or_default();
    if kind == "none" {
        // Attached clients and the exit are served from it.
        return Ok(UNREAD_LOG);
    }
    let Some(size) = config.get("max-size").filter(|s| *s != "-1") else { return Ok(0) };
    let size = super::mounts::bytes(size)
        .ok_or_else(|| Failure::invalid(format!("invalid value for max-size: \"{size}\"")))?;
    let files = config.get("max-file").map_or(Ok(1), |f| f.parse::<u64>());
    let files = files.map_err(|_| Failure::invalid("invalid value for max-file: not a number"))?;
    // There are always two files; each gets half of what Docker's files would have together.
    Ok((size.saturating_mul(files) / 2).max(64 << 10))
}

/// Ports to publish.
///
/// # Errors
/// 400 for what is no port or address.
pub fn ports(host: &HostConfig, exposed: &BTreeSet<String>) -> Result<Vec<PublishedPort>> {
    let mut ports = Vec::new();
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let (container_port, protocol) = parse_port(port)?;
        for binding in bindings.iter().flatten() {
            let host_ip = match binding.host_ip.as_deref().unwrap_or_default() {
                "" => None,
                text => Some(
                    text.trim_matches(['[', ']'])
                        .parse::<IpAddr>()
                        .map_err(|_| Failure::invalid(format!("invalid host IP \"{text}\"")))?,
                ),
            };
            let host_port = match binding.host_port.as_deref().unwrap_or_default() {
                "" | "0" => None,
                text => {
                    let wrong = match text.split_once('-') {
                        Some(_) => {
                            format!("invalid port specification: \"{text}\": a range of host ports is not supported")
                        }
                        None => format!("invalid port specification: \"{text}\""),
                    };
                    Some(text.parse::<u16>().map_err(|_| Failure::invalid(wrong))?)
                }
            };
            ports.push(PublishedPort { protocol, container_port, host_ip, host_port });
        }
    }
    if host.publish_all_ports.unwrap_or_default() {
        for port in exposed {
            let (container_port, protocol) = parse_port(port)?;
            if ports.iter().all(|p| (p.container_port, p.protocol) != (container_port, protocol)) {
                ports.push(PublishedPort { protocol, container_port, host_ip: None, host_port: None });
            }
        }
    }
    Ok(ports)
}

/// Every exposed port under its own number (`--network host`).
///
/// # Errors
/// 400 for what is no port.
pub fn own_ports(exposed: &BTreeSet<String>) -> Result<Vec<PublishedPort>> {
    let own = |text: &String| {
        let (port, protocol) = parse_port(text)?;
        Ok(PublishedPort { protocol, container_port: port, host_ip: None, host_port: Some(port) })
    };
    exposed.iter().map(own).collect()
}

/// `80/tcp` or `80`.
fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number = number
        .parse::<u16>()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| Failure::invalid(format!("invalid port specification: \"{number}\"")))?;
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Ok((number, Protocol::Tcp)),
        "udp" => Ok((number, Protocol::Udp)),
        other => Err(Failure::invalid(format!(
            "cannot publish {text}: the protocol \"{other}\" is not supported, tcp and udp are"
        ))),
    }
}

/// Checks the platform that the client asks for.
///
/// # Errors
/// 404 when the image is of another one.
pub fn platform(wanted: Option<&str>, reference: &str, image: &Resource<Image>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let has = image.status.config["architecture"].as_str().unwrap_or("amd64");
    let mut parts = wanted.split('/');
    let os = parts.next().unwrap_or_default();
    let architecture = parts.next().map(|a| match a {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    });
    if os != "linux" || architecture.is_some_and(|a| a != has) {
        return Err(Failure::not_found(format!(
            "image with reference {reference} was found but does not provide the specified platform ({wanted})"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host(value: serde_json::Value) -> HostConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for (config, part) in [
            (json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}), "AutoRemove"),
            (json!({"RestartPolicy": {"Name": "sometimes"}}), "unknown policy 'sometimes'"),
            (json!({"NetworkMode": "container:x"}), "not supported yet"),
            (json!({"CapAdd": ["CAP_MOON"]}), "invalid CapAdd: unknown capability: \"CAP_MOON\""),
            (json!({"SecurityOpt": ["moon"]}), "invalid --security-opt 1: \"moon\""),
            (
                json!({"LogConfig": {"Type": "local", "Config": {"tag": "x"}}}),
                "unknown log opt 'tag' for local log driver",
            ),
            (json!({"Runtime": "nvidia"}), "runtime name: nvidia"),
            (
                json!({"LogConfig": {"Type": "syslog"}}),
                "error looking up logging plugin syslog: plugin \"syslog\" not found",
            ),
        ] {
            let failure = host_config(&host(config.clone())).unwrap_err();
            assert!(failure.status == 400 && failure.message.contains(part), "{config}: {failure}");
        }
    }

    #[test]
    fn ports_are_read_with_address_and_number() {
        let config = host(
            json!({"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}], "53/udp": [{}]}, "PublishAllPorts": true}),
        );
        let ports = ports(&config, &BTreeSet::from(["80/tcp".to_owned(), "81/tcp".to_owned()])).unwrap();
        let numbers: Vec<_> = ports.iter().map(|p| (p.container_port, p.host_port, p.host_ip.is_some())).collect();
        assert_eq!(numbers, [(53, None, false), (80, Some(8080), true), (81, None, false)]);
    }
}
