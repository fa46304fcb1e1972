//! What the page shows, taken from the watch caches: rows of text, nothing that a template has to compute.

use std::net::IpAddr;
use zone::cache::Cache;
use zone::client::Client;
use zone::endpoint::{BoundPort, Endpoint};
use zone::image::Image;
use zone::network::Network;
use zone::pod::{Phase, Pod, PodStatus};
use zone::service::{Node, Service};
use zone::volume::{Snapshot, Volume, VolumeAccess};
use zone::{NetworkId, Resource};

/// A copy of everything that the page shows.
#[derive(Clone, Debug)]
pub struct Model {
    pub pods: Cache<Pod>,
    pub endpoints: Cache<Endpoint>,
    pub images: Cache<Image>,
    pub volumes: Cache<Volume>,
    pub snapshots: Cache<Snapshot>,
    pub networks: Cache<Network>,
    pub services: Cache<Service>,
    pub nodes: Cache<Node>,
}

impl Model {
    /// Follows the state engine.
    pub fn follow(client: &Client) -> Self {
        Self {
            pods: Cache::follow(client.clone()),
            endpoints: Cache::follow(client.clone()),
            images: Cache::follow(client.clone()),
            volumes: Cache::follow(client.clone()),
            snapshots: Cache::follow(client.clone()),
            networks: Cache::follow(client.clone()),
            services: Cache::follow(client.clone()),
            nodes: Cache::follow(client.clone()),
        }
    }
}

/// How a thing stands: a word, and the class that gives it shape and colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub word: String,
    pub class: &'static str,
}

impl State {
    fn new(word: impl Into<String>, class: &'static str) -> Self {
        Self { word: word.into(), class }
    }

    /// Of a thing that is ready, waits or cannot be.
    pub fn ready(ready: bool, error: Option<&String>) -> Self {
        match (ready, error) {
            (_, Some(error)) => Self::new(error, "bad"),
            (true, None) => Self::new("ready", "good"),
            (false, None) => Self::new("waiting", "busy"),
        }
    }
}

/// A row of the table of pods.
#[derive(Debug)]
pub struct PodRow {
    pub name: String,
    pub id: String,
    pub image: String,
    pub command: String,
    pub state: State,
    pub address: String,
    pub ports: Vec<String>,
    pub memory: String,
}

/// A row of any other table.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub state: State,
    pub cells: Vec<String>,
}

/// The numbers at the top.
#[derive(Debug, Default)]
pub struct Summary {
    pub hostname: String,
    pub version: String,
    pub kernel: String,
    pub secure_boot: String,
    pub addresses: String,
    pub cpus: u32,
    pub memory: String,
    pub memory_percent: u64,
    pub pool: String,
    pub pool_percent: u64,
    pub pool_health: String,
    pub pool_troubles: Vec<String>,
}

impl Model {
    /// The rows of the table of pods, in the order of their names.
    pub fn pod_rows(&self) -> Vec<PodRow> {
        let mut rows: Vec<_> = self.pods.all().iter().flat_map(|pod| self.rows_of(pod)).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    fn rows_of(&self, pod: &Resource<Pod>) -> Vec<PodRow> {
        let endpoints: Vec<_> = pod.spec.endpoints.iter().filter_map(|e| self.endpoints.get(e.as_str())).collect();
        let address =
            endpoints.iter().filter_map(|e| e.status.ipv4).map(|a| a.to_string()).collect::<Vec<_>>().join(", ");
        let ports = endpoints.iter().flat_map(|e| e.status.ports.iter().map(port)).collect::<Vec<_>>();
        let row = |container: &zone::pod::ContainerSpec| PodRow {
            name: container.name.clone(),
            id: container.id.short().to_owned(),
            image: container.image_ref.clone(),
            command: container.args.join(" "),
            state: pod_state(&pod.status, container),
            address: address.clone(),
            ports: ports.clone(),
            memory: format!("{} MiB", pod.spec.memory_mib),
        };
        pod.spec.containers.iter().map(row).collect()
    }

    /// The rows of the table of images.
    pub fn image_rows(&self) -> Vec<Row> {
        let row = |image: &Resource<Image>| Row {
            name: image.spec.tags.first().map_or_else(|| "(no tag)".to_owned(), |t| short_tag(t)),
            state: State::ready(image.status.ready, None),
            cells: vec![
                image.meta.name.trim_start_matches("sha256:").chars().take(12).collect(),
                bytes(image.status.size),
                image.status.layers.len().to_string(),
            ],
        };
        sorted(self.images.all().iter().map(|i| row(i)).collect())
    }

    /// The rows of the table of volumes.
    pub fn volume_rows(&self) -> Vec<Row> {
        let snapshots = self.snapshots.all();
        let row = |volume: &Resource<Volume>| {
            let mine = snapshots.iter().filter(|s| s.spec.volume.as_str() == volume.meta.name);
            Row {
                name: volume.meta.name.clone(),
                state: State::ready(volume.status.ready, volume.status.error.as_ref()),
                cells: vec![
                    volume.spec.driver.clone(),
                    match volume.status.access {
                        Some(VolumeAccess::Directory { .. }) => "files".to_owned(),
                        Some(VolumeAccess::Block { .. }) => "block device".to_owned(),
                        None => "–".to_owned(),
                    },
                    bytes(volume.status.used_bytes),
                    mine.count().to_string(),
                ],
            }
        };
        sorted(self.volumes.all().iter().map(|v| row(v)).collect())
    }

    /// The rows of the table of networks.
    pub fn network_rows(&self) -> Vec<Row> {
        let endpoints = self.endpoints.all();
        let row = |network: &Resource<Network>| {
            let id = NetworkId::new(network.meta.name.clone());
            Row {
                name: network.spec.name.clone(),
                state: State::ready(network.status.ready, network.status.error.as_ref()),
                cells: vec![
                    network.status.subnet.clone(),
                    network.status.gateway.map(|g| g.to_string()).unwrap_or_default(),
                    if network.spec.internal { "internal" } else { "routed" }.to_owned(),
                    endpoints.iter().filter(|e| e.spec.network == id).count().to_string(),
                ],
            }
        };
        sorted(self.networks.all().iter().map(|n| row(n)).collect())
    }

    /// The rows of the table of services.
    pub fn service_rows(&self) -> Vec<Row> {
        let row = |service: &Resource<Service>| {
            let status = &service.status;
            let class = match status.active.as_str() {
                "active" => "good",
                "failed" => "bad",
                _ => "busy",
            };
            Row {
                name: service.meta.name.clone(),
                state: State::new(&status.active, class),
                cells: vec![
                    bytes(status.memory_bytes),
                    status.restarts.to_string(),
                    status.image_id.trim_start_matches("sha256:").chars().take(12).collect(),
                ],
            }
        };
        sorted(self.services.all().iter().map(|s| row(s)).collect())
    }

    /// The numbers at the top.
    pub fn summary(&self) -> Summary {
        let Some(node) = self.nodes.all().into_iter().next() else { return Summary::default() };
        let n = &node.status;
        let used = n.memory_bytes.saturating_sub(n.memory_available_bytes);
        let pool_used = n.pool_bytes.saturating_sub(n.pool_free_bytes);
        Summary {
            hostname: n.hostname.clone(),
            version: n.version.clone(),
            kernel: n.kernel.clone(),
            secure_boot: match n.secure_boot.as_str() {
                "" => "unknown".into(),
                "setup" => "off: the firmware has no keys".into(),
                "absent" => "off: the firmware has none".into(),
                known => known.to_owned(),
            },
            addresses: n.addresses.join(", "),
            cpus: n.cpus,
            memory: format!("{} of {}", bytes(used), bytes(n.memory_bytes)),
            memory_percent: percent(used, n.memory_bytes),
            pool: format!("{} of {}", bytes(pool_used), bytes(n.pool_bytes)),
            pool_percent: percent(pool_used, n.pool_bytes),
            pool_health: n.pool_health.clone(),
            pool_troubles: n.pool_troubles.clone(),
        }
    }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn pod_state(status: &PodStatus, container: &zone::pod::ContainerSpec) -> State {
    let container = status.containers.get(&container.id);
    let code = container.map_or(0, |c| c.exit_code);
    match status.phase {
        Phase::Pending => State::new(status.message.clone().unwrap_or_else(|| "pending".into()), "busy"),
        Phase::Created => State::new("created", "idle"),
        Phase::Starting => State::new("starting", "busy"),
        Phase::Running if container.is_some_and(|c| c.paused) => State::new("paused", "idle"),
        Phase::Running => State::new("running", "good"),
        Phase::Stopping => State::new("stopping", "busy"),
        Phase::Restarting => State::new(format!("restarting ({code})"), "busy"),
        Phase::Exited if code == 0 => State::new("exited (0)", "idle"),
        Phase::Exited => State::new(format!("exited ({code})"), "bad"),
    }
}

fn port(port: &BoundPort) -> String {
    let BoundPort { protocol, container_port, host_ip, host_port } = port;
    let host = match host_ip {
        IpAddr::V4(ip) if ip.is_unspecified() => String::new(),
        IpAddr::V6(ip) if ip.is_unspecified() => String::new(),
        ip => format!("{ip}:"),
    };
    format!("{host}{host_port} → {container_port}/{}", protocol.as_str())
}

fn short_tag(tag: &str) -> String {
    tag.trim_start_matches("docker.io/").trim_start_matches("library/").to_owned()
}

fn percent(part: u64, whole: u64) -> u64 {
    (part * 100).checked_div(whole).unwrap_or(0)
}

/// Bytes in the unit that leaves two or three digits before the point.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::{bytes, short_tag};

    #[test]
    fn sizes_are_short_and_have_a_unit() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (300 << 30, "300 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_tag_is_shown_as_people_write_it() {
        assert_eq!(short_tag("docker.io/library/busybox:latest"), "busybox:latest");
        assert_eq!(short_tag("registry.local:5000/a/b:1"), "registry.local:5000/a/b:1");
    }
}
