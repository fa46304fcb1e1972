//! Projects: what keeps one user's containers, networks, volumes and files apart from another's.
//!
//! A container's project is its label `kr.project`; without one its Compose project; without that `default`. Networks and
//! volumes likewise, by their own labels. A volume that a project's container uses is the project's too. Images and the
//! network `bridge` belong to all.
//!
//! Pure functions. Must not: decide who may do what; that is `access`.

use crate::errors::{Failure, Result};
use crate::state::World;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use zone::network::DEFAULT_NETWORK;
use zone::pod::PodSpec;

/// The label that names a project.
pub const LABEL: &str = "kr.project";
/// The label that Compose gives.
const COMPOSE: &str = "com.docker.compose.project";
/// What has neither label belongs to this one.
pub const DEFAULT: &str = "default";
/// What the volume of a project's file area begins with.
const AREA: &str = "files-";
/// The longest name: it stands in a volume's name.
const MAX_NAME: usize = 63;

/// The project that labels name.
pub fn of(label: impl Fn(&str) -> Option<String>) -> String {
    [LABEL, COMPOSE].into_iter().find_map(|key| label(key).filter(|v| !v.is_empty())).unwrap_or_else(|| DEFAULT.into())
}

/// The project of something with these labels.
#[must_use]
pub fn of_map(labels: &BTreeMap<String, String>) -> String {
    of(|key| labels.get(key).cloned())
}

/// The project of something with these labels, as a request or `inspect` has them.
#[must_use]
pub fn of_json(labels: &Value) -> String {
    of(|key| labels[key].as_str().map(str::to_owned))
}

/// A pod's project.
#[must_use]
pub fn of_pod(pod: &PodSpec) -> String {
    pod.containers.first().map_or_else(|| DEFAULT.into(), |c| of_json(&c.docker["Labels"]))
}

/// Checks a project's name.
///
/// # Errors
/// 400 when it cannot be one.
pub fn check(name: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.bytes().all(legal) && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if good && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "invalid project name \"{name}\" ({LABEL}): 1 to {MAX_NAME} letters, digits, '_', '.' and '-', a letter or digit first"
    )))
}

/// The volume that is a project's file area: what bind sources are paths in.
#[must_use]
pub fn area(project: &str) -> String {
    format!("{AREA}{project}")
}

/// The project whose file area a volume is, by its name.
#[must_use]
pub fn of_area(volume: &str) -> Option<&str> {
    volume.strip_prefix(AREA)
}

/// What one project sees of the zone. Names of containers stay whole: they are the zone's, and a taken one is taken.
#[must_use]
pub fn view(world: &World, project: &str) -> World {
    let mine = |pods: &crate::state::Map<zone::pod::Pod>| {
        pods.iter().filter(|(_, p)| of_pod(&p.spec) == project).map(|(n, p)| (n.clone(), p.clone())).collect()
    };
    let pods: crate::state::Map<zone::pod::Pod> = mine(&world.pods);
    let gone = mine(&world.gone);
    let containers = || pods.values().flat_map(|p| &p.spec.containers);
    let used: BTreeSet<&str> =
        containers().flat_map(|c| &c.mounts).filter_map(|m| Some(m.volume()?.as_str())).collect();
    let own_volume = |name: &str, labels: &BTreeMap<String, String>| match of_area(name) {
        Some(owner) => owner == project,
        None => used.contains(name) || of_map(labels) == project,
    };
    let volumes = world.volumes.iter().filter(|(name, v)| own_volume(name, &v.spec.labels));
    let networks =
        world.networks.iter().filter(|(_, n)| n.spec.name == DEFAULT_NETWORK || of_map(&n.spec.labels) == project);
    let endpoints = world.endpoints.iter().filter(|(_, e)| pods.contains_key(e.spec.pod.as_str()));
    World {
        loaded: world.loaded,
        revision: world.revision,
        names: world.names.clone(),
        endpoints: endpoints.map(|(n, e)| (n.clone(), e.clone())).collect(),
        networks: networks.map(|(n, v)| (n.clone(), v.clone())).collect(),
        images: world.images.clone(),
        volumes: volumes.map(|(n, v)| (n.clone(), v.clone())).collect(),
        nodes: world.nodes.clone(),
        revocations: world.revocations.clone(),
        gone,
        gone_order: world.gone_order.clone(),
        pods,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_zones_own_label_goes_before_composes() {
        for (labels, project) in [
            (json!({}), "default"),
            (json!(null), "default"),
            (json!({"com.docker.compose.project": "shop"}), "shop"),
            (json!({"com.docker.compose.project": "shop", "kr.project": "team"}), "team"),
            (json!({"kr.project": ""}), "default"),
        ] {
            assert_eq!(of_json(&labels), project, "{labels}");
        }
    }

    #[test]
    fn names_that_could_not_stand_in_a_volumes_name_are_refused() {
        for (name, good) in
            [("shop", true), ("a.b-c_1", true), ("", false), ("-a", false), ("a/b", false), ("..", false)]
        {
            assert_eq!(check(name).is_ok(), good, "{name}");
        }
        assert!(check(&"a".repeat(64)).is_err());
    }

    #[test]
    fn a_project_sees_its_own_and_what_belongs_to_all() {
        let world = crate::containers::sample();
        let all = view(&world, DEFAULT);
        assert_eq!((all.pods.len(), all.volumes.len()), (world.pods.len(), world.volumes.len()));
        let other = view(&world, "other");
        assert!(other.pods.is_empty() && other.volumes.is_empty() && other.endpoints.is_empty());
        assert_eq!(other.images.len(), world.images.len());
        assert!(other.networks.values().all(|n| n.spec.name == DEFAULT_NETWORK));
        assert_eq!(other.names.len(), world.names.len());
    }
}
