//! The Docker API: what a client puts into a query, a name, a body.

use crate::input::Input;
use ::docker_api::containers::merge::{Merged, config_json, host_config_json, merge};
use ::docker_api::containers::mounts::{absolute, bytes, clean};
use ::docker_api::containers::request::{Create, HostConfig};
use ::docker_api::containers::{checks, options, resources, tmpfs};
use ::docker_api::filters::{Params, parse_time};
use ::docker_api::names::{self, Reference};
use serde_json::Value;

/// Queries: numbers, flags, filters in both shapes.
pub fn query(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let _ = parse_time(&text);
    let params = Params(["filters", "tail", "all"].map(|name| (name.to_owned(), text.clone())).to_vec());
    let _ = (params.number("tail").is_ok(), params.flag_or("all", true));
    let Ok(filters) = params.any_filters() else { return };
    let _ = (filters.flag("dangling").is_ok(), filters.until().is_ok());
    let all = filters.labels(|key| Some(key.to_owned()));
    let again = filters.labels(|key| Some(key.to_owned()));
    assert_eq!(all, again);
    let _ = filters.any("name", str::is_empty);
}

/// Names, references, paths and sizes. A full reference is read as itself.
pub fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for name in
        [names::container_name(&text), names::volume_name(&text), names::network_name(&text)].into_iter().flatten()
    {
        assert!(!name.contains('/') && name.len() <= 255);
    }
    if let Ok(reference) = Reference::parse(&text) {
        let full = reference.full();
        let again = Reference::parse(&full).map(|again| (again.full(), again.repository));
        assert_eq!(again.ok(), Some((full.clone(), reference.repository.clone())));
        let _ = (names::familiar(&full), reference.or_latest().tagged());
    }
    let path = clean(&text);
    assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".." || part == "."));
    assert_eq!(clean(&path), path);
    assert!(absolute(&text).is_ok_and(|path| path != "/") || absolute(&text).is_err());
    let _ = (bytes(&text), tmpfs::mount("/x", &text).is_ok());
}

/// The limits that a pod gets of whatever was asked for.
fn limits(host: &HostConfig) {
    if resources::check(host).is_ok() {
        assert!((1..=64).contains(&resources::vcpus(host)));
        let memory = resources::vm_memory_mib(host.memory.unwrap_or_default());
        assert!(memory > 0 && resources::most_memory(memory) >> 20 < u64::from(memory));
        let _ = resources::cpu_limits(host);
    }
    let _ = (checks::host_config(host).is_ok(), checks::ulimits(host).is_ok(), checks::no_new_privileges(host));
    let _ = checks::rate(host.blkio_device_read_bps.as_ref(), host.blkio_device_read_iops.as_ref());
    let _ = (checks::rootfs_size(host).is_ok(), checks::log_max_bytes(host).is_ok(), options::devices(host).is_ok());
    let _ = (checks::restart_policy(host.restart_policy.as_ref()).is_ok(), checks::capabilities(host.cap_add.clone()));
}

/// What is made of a body and of an image's configuration.
fn merged(raw: &Value, request: &Create, host: &HostConfig, image: &Value) {
    let Ok(all @ Merged { .. }) = merge(image, request) else { return };
    assert!(!all.args().is_empty(), "there is nothing to run");
    let _ = (config_json(raw, &all, "host"), host_config_json(raw));
    let _ = (checks::ports(host, &all.exposed).is_ok(), checks::own_ports(&all.exposed).is_ok());
}

/// The body of a create, and the configuration of the image, which a stranger has made too.
pub fn create(data: &[u8]) {
    let mut input = Input::new(data);
    let image = usize::from(input.word());
    let image = serde_json::from_slice(input.bytes(image)).unwrap_or_default();
    let Ok(raw) = serde_json::from_slice::<Value>(input.rest()) else { return };
    let Ok(request) = serde_json::from_value::<Create>(raw.clone()) else { return };
    let host = request.host_config.clone().unwrap_or_default();
    let _ = options::check(&request, &host);
    limits(&host);
    merged(&raw, &request, &host, &image);
}
