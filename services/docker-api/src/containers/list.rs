//! `GET /containers/json`.

use super::{health, inspect};
use crate::App;
use crate::errors::{Failure, Result};
use crate::fields::{Answer, fit};
use crate::filters::{Filters, Params};
use crate::names::{human_duration, seconds};
use crate::state::{Container, World};
use crate::version::ApiVersion;
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use zone::pod::Phase;
use zone::time::now_ns;

const FILTERS: [&str; 16] = [
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// `GET /containers/json`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn list(State(app): State<Arc<App>>, version: ApiVersion, params: Params) -> Result<Json<Value>> {
    let filters = params.filters(&FILTERS)?;
    let limit = params.number("limit")?.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let world = app.store.world();
    let position = |name: &str| -> Result<Option<u64>> {
        let key = filters.values(name).first();
        key.map(|key| world.container(key).map(|c| c.pod.meta.created_ns)).transpose()
    };
    let (before, since) = (position("before")?, position("since")?);
    for status in filters.values("status") {
        if !["created", "restarting", "running", "removing", "paused", "exited", "dead"].contains(&status.as_str()) {
            return Err(Failure::invalid(format!("invalid filter 'status={status}'")));
        }
    }
    // Asking for a state or for the last few means all containers.
    let all = params.flag("all")
        || limit.is_some()
        || !filters.values("status").is_empty()
        || before.is_some()
        || since.is_some();
    check_values(&filters)?;
    let mut found: Vec<Container> = world
        .containers()
        .filter(|c| all || c.is_running() || c.state() == "restarting")
        .filter(|c| before.is_none_or(|b| c.pod.meta.created_ns < b) && since.is_none_or(|s| c.pod.meta.created_ns > s))
        .filter(|c| matches(&world, c, &filters))
        .collect();
    found.sort_by_key(|c| std::cmp::Reverse(c.pod.meta.created_ns));
    found.truncate(limit.unwrap_or(usize::MAX));
    let size = params.flag("size");
    let one = |container: &Container| {
        let mut summary = summary(&world, container, size);
        if size {
            super::size::fill(&app, &world, container, &mut summary);
        }
        fit(Answer::ContainerSummary, version, &mut summary);
        summary
    };
    Ok(Json(found.iter().map(one).collect()))
}

/// Filters that take only some values.
fn check_values(filters: &Filters) -> Result<()> {
    const HEALTH: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];
    for code in filters.values("exited") {
        code.parse::<i32>().map_err(|_| {
            Failure::invalid(format!(
                "invalid filter 'exited={code}': strconv.Atoi: parsing \"{code}\": invalid syntax"
            ))
        })?;
    }
    if let Some(unknown) = filters.values("health").iter().find(|h| !HEALTH.contains(&h.as_str())) {
        return Err(Failure::invalid(format!("unrecognized filter value for health: {unknown}")));
    }
    for filter in ["publish", "expose"] {
        for port in filters.values(filter) {
            let numbers = port.split('/').next().unwrap_or_default();
            if let Some(wrong) = numbers.split('-').find(|n| n.parse::<u16>().is_err()) {
                return Err(Failure::invalid(format!(
                    "error while looking up for {filter} {port}: strconv.ParseUint: parsing \"{wrong}\": invalid syntax"
                )));
            }
        }
    }
    Ok(())
}

/// The command as lists show it: words with blanks are quoted.
fn command(args: &[String]) -> String {
    let quoted = args
        .iter()
        .enumerate()
        .map(|(index, word)| if index > 0 && word.contains(' ') { format!("'{word}'") } else { word.clone() });
    quoted.collect::<Vec<_>>().join(" ")
}

fn matches(world: &World, container: &Container, filters: &Filters) -> bool {
    let spec = container.spec();
    let label = |key: &str| spec.docker["Labels"][key].as_str().map(str::to_owned);
    let exited = |code: &str| container.state() == "exited" && code.parse() == Ok(container.status().exit_code);
    let ancestor = |image: &str| {
        spec.image_ref == image
            || spec.image.as_str() == image
            || crate::images::find(world, image).is_ok_and(|i| i.meta.name == spec.image.as_str())
    };
    let port = |wanted: &str, keys: &Value| {
        let wanted = if wanted.contains('/') { wanted.to_owned() } else { format!("{wanted}/tcp") };
        keys.get(&wanted).is_some()
    };
    filters.labels(label)
        && filters.any("id", |id| spec.id.as_str().starts_with(id))
        && filters.any("name", |name| name_matches(&spec.name, name))
        && filters.any("status", |s| s == container.state())
        && filters.any("exited", exited)
        && filters.any("health", |h| h == health::word(container))
        && filters.any("is-task", |v| v == "false")
        && filters.any("ancestor", ancestor)
        && filters.any("network", |n| {
            inspect::endpoints(world, container).any(|(name, e)| name == n || e.spec.network.as_str().starts_with(n))
        })
        && filters.any("volume", |v| {
            spec.mounts.iter().any(|m| m.target() == v || m.volume().is_some_and(|volume| volume.as_str() == v))
        })
        && filters.any("expose", |p| port(p, &spec.docker["ExposedPorts"]))
        && filters.any("publish", |p| port(p, &spec.docker["HostConfig"]["PortBindings"]))
}

/// Docker takes a regular expression; anchors and plain text are what clients send.
fn name_matches(name: &str, pattern: &str) -> bool {
    let (start, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |p| (true, p));
    let (end, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |p| (true, p));
    let pattern = pattern.strip_prefix('/').unwrap_or(pattern).replace("\\.", ".");
    match (start, end) {
        (true, true) => name == pattern,
        (true, false) => name.starts_with(&pattern),
        (false, true) => name.ends_with(&pattern),
        (false, false) => name.contains(&pattern),
    }
}

/// A container as it stands in lists.
#[must_use]
pub fn summary(world: &World, container: &Container, size: bool) -> Value {
    let spec = container.spec();
    let networks: Map<String, Value> = inspect::endpoints(world, container)
        .map(|(name, endpoint)| {
            let mut json = inspect::endpoint_json(world, container, &name, endpoint);
            // Lists do not tell how a container is called on a network.
            json["Aliases"] = Value::Null;
            json["DNSNames"] = Value::Null;
            (name, json)
        })
        .collect();
    let mut json = json!({
        "Id": spec.id,
        "Names": [format!("/{}", spec.name)],
        "Image": spec.image_ref,
        "ImageID": spec.image,
        "Command": command(&spec.args),
        "Created": seconds(container.pod.meta.created_ns),
        "Ports": ports(world, container),
        "Labels": spec.docker["Labels"].as_object().cloned().unwrap_or_default(),
        "State": container.state(),
        "Status": status_text(container, now_ns()),
        "HostConfig": {"NetworkMode": spec.docker["HostConfig"]["NetworkMode"]},
        "NetworkSettings": {"Networks": networks},
        "Mounts": inspect::mounts(world, container),
    });
    if size {
        json["SizeRootFs"] = json!(world.images.get(spec.image.as_str()).map_or(0, |i| i.status.size));
    }
    json
}

fn ports(world: &World, container: &Container) -> Value {
    if !container.is_running() {
        return json!([]);
    }
    let mut bound: Vec<Value> = Vec::new();
    let mut published = Vec::new();
    for (_, endpoint) in inspect::endpoints(world, container) {
        for port in &endpoint.status.ports {
            published.push(format!("{}/{}", port.container_port, port.protocol.as_str()));
            bound.push(json!({
                "IP": port.host_ip.to_string(), "PrivatePort": port.container_port, "PublicPort": port.host_port, "Type": port.protocol.as_str(),
            }));
        }
    }
    for (key, _) in container.spec().docker["ExposedPorts"].as_object().into_iter().flatten() {
        if let (false, Some((number, protocol))) = (published.contains(key), key.split_once('/')) {
            bound.push(json!({"PrivatePort": number.parse::<u16>().unwrap_or_default(), "Type": protocol}));
        }
    }
    Value::Array(bound)
}

/// Docker's text about a container's state.
fn status_text(container: &Container, now: u64) -> String {
    let status = container.status();
    let since = |time: u64| human_duration(now.saturating_sub(time));
    match container.state() {
        "created" => "Created".into(),
        "paused" => format!("Up {} (Paused)", since(status.started_ns)),
        "running" => format!("Up {}{}", since(status.started_ns), health::suffix(container)),
        "restarting" => format!("Restarting ({}) {} ago", status.exit_code, since(status.finished_ns)),
        _ if container.pod.status.phase == Phase::Pending && status.finished_ns == 0 => "Created".into(),
        _ => format!("Exited ({}) {} ago", status.exit_code, since(status.finished_ns)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/list-1.51.json")).unwrap();
        let world = inspect::tests::sample();
        let container = world.containers().next().unwrap();
        inspect::tests::same_keys("", &golden[0], &summary(&world, &container, false), &[".ImageManifestDescriptor"]);
    }

    #[test]
    fn names_match_like_the_patterns_that_clients_send() {
        for (pattern, matching) in [("web", true), ("^/web1$", true), ("^web$", false), ("b1$", true), ("db", false)] {
            assert_eq!(name_matches("web1", pattern), matching, "{pattern}");
        }
    }
}
