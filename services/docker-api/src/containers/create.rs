//! `POST /containers/create`: checks a request, merges it with the image, and writes the container in one transaction.
//!
//! Must not start anything. All or nothing: pod, name, endpoints and missing volumes are created together.

use super::merge::{self, Merged};
use super::request::{Create, EndpointConfig, HostConfig};
use super::{checks, health, mounts, options, resources};
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::state::World;
use crate::version::ApiVersion;
use crate::{App, images, names, networks, project};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use zone::client::Operation;
use zone::endpoint::{Endpoint, EndpointSpec};
use zone::health::HealthCheck;
use zone::network::DEFAULT_NETWORK;
use zone::pod::{ContainerName, ContainerNameSpec, ContainerSpec, Desired, Pod, PodSpec, RestartPolicy};
use zone::volume::Volume;
use zone::{ContainerId, EndpointId, ErrorKind, ImageId, PodId};

/// How often to try again when somebody else wrote in between, or a random name was taken.
const ATTEMPTS: u32 = 8;

/// `POST /containers/create`.
///
/// # Errors
/// 400 for what cannot be, 404 for an image or network that is not there, 409 for a name that is taken.
pub async fn create(
    State(app): State<Arc<App>>,
    version: ApiVersion,
    params: Params,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let mut raw: Value = crate::body::json(&headers, &body)?
        .ok_or_else(|| Failure::invalid("invalid JSON: got EOF while reading request body"))?;
    only_one_network(version, &raw)?;
    if let Some(project) = app.scope.project() {
        label(&mut raw, project)?;
    }
    let request: Create =
        serde_json::from_value(raw.clone()).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let wanted_name = params.get("name").map(names::container_name).transpose()?;
    let host = request.host_config.clone().unwrap_or_default();
    let mut warnings = checks::host_config(&host)?;
    warnings.extend(options::check(&request, &host)?);
    let reference = request.image.as_deref().unwrap_or_default();
    let image = images::find_or_refresh(&app, reference).await?;
    checks::platform(params.get("platform"), reference, &image)?;
    let merged = merge::merge(&image.status.config["config"], &request)?;
    let project = project::of_map(&merged.labels);
    let healthcheck = health::merge(&image.status.config["config"]["Healthcheck"], &raw["Healthcheck"])?;
    let health = health::check(&healthcheck, &image.status.config["config"]["Shell"]);
    let health = (healthcheck, health);
    for attempt in 0..ATTEMPTS {
        let world = app.store.world();
        let name = match wanted_name {
            Some(name) => name.to_owned(),
            None => names::random_container_name(attempt)?,
        };
        if let Some(holder) = world.names.get(&name) {
            if wanted_name.is_some() {
                return Err(name_taken(&name, holder.spec.container.as_str()));
            }
            continue;
        }
        let draft = Draft {
            world: &world,
            raw: &raw,
            request: &request,
            host: &host,
            merged: &merged,
            health: &health,
            image: ImageId::new(&image.meta.name),
            name,
            volumes: &app.config.volumes,
            project: &project,
            restricted: app.scope.project().is_some(),
        };
        let Written { id, operations, warnings: more } = draft.write().map_err(only_images_are_missing)?;
        match app.store.transact(operations).await {
            Ok(()) => {
                warnings.extend(more);
                return Ok((StatusCode::CREATED, axum::Json(json!({ "Id": id, "Warnings": warnings }))).into_response());
            }
            // A name or volume appeared meanwhile: look again.
            Err(error) if error.kind == ErrorKind::Conflict => app.store.barrier().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict("too many containers and volumes are being created at once; try again"))
}

/// What a restricted client makes belongs to its project, whatever it says.
fn label(raw: &mut Value, project: &str) -> Result<()> {
    let Some(request) = raw.as_object_mut() else { return Err(Failure::invalid("invalid JSON: an object is wanted")) };
    let labels = request.entry("Labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    let labels = labels.as_object_mut().ok_or_else(|| Failure::invalid("invalid JSON: Labels is not an object"))?;
    labels.insert(project::LABEL.into(), json!(project));
    Ok(())
}

/// Before 1.44 the other networks had to be connected after a container's creation.
fn only_one_network(version: ApiVersion, raw: &Value) -> Result<()> {
    let networks = raw["NetworkingConfig"]["EndpointsConfig"].as_object().filter(|n| n.len() > 1);
    match networks.filter(|_| version < ApiVersion(44)) {
        Some(networks) => {
            let names: std::collections::BTreeSet<&str> = networks.keys().map(String::as_str).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            Err(Failure::invalid(format!("Container cannot be created with multiple network endpoints: {names}")))
        }
        None => Ok(()),
    }
}

/// Clients pull the image when a create is answered with 404; so what else is missing is a wrong request.
fn only_images_are_missing(failure: Failure) -> Failure {
    match failure.status {
        StatusCode::NOT_FOUND => Failure::invalid(failure.message),
        _ => failure,
    }
}

/// The answer for a name that another container has.
#[must_use]
pub fn name_taken(name: &str, holder: &str) -> Failure {
    Failure::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    ))
}

struct Draft<'a> {
    world: &'a World,
    raw: &'a Value,
    request: &'a Create,
    host: &'a HostConfig,
    merged: &'a Merged,
    /// As `inspect` shows it, and as it is run.
    health: &'a (Value, Option<HealthCheck>),
    image: ImageId,
    name: String,
    volumes: &'a Path,
    project: &'a str,
    restricted: bool,
}

/// A container ready to be written.
struct Written {
    id: ContainerId,
    operations: Vec<Operation>,
    warnings: Vec<String>,
}

impl Draft<'_> {
    fn write(&self) -> Result<Written> {
        let id = ContainerId::new(names::new_id()?);
        let pod = PodId::new(id.as_str());
        let Self { world, volumes, project, restricted, .. } = *self;
        let place = mounts::Place { world, volumes, project, restricted };
        let plan = mounts::plan(place, self.request, &self.merged.volumes)?;
        let endpoints = self.endpoints(&id, &pod)?;
        let hostname = match self.request.hostname.as_deref() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => id.short().to_owned(),
        };
        let spec = PodSpec {
            containers: vec![self.container(&id, plan.mounts, &hostname)?],
            desired: Desired::Stopped,
            starts: 0,
            files_asks: 0,
            restart_policy: checks::restart_policy(self.host.restart_policy.as_ref())?,
            auto_remove: self.host.auto_remove.unwrap_or_default(),
            stop_grace_s: self.request.stop_timeout.unwrap_or(10),
            memory_mib: resources::vm_memory_mib(self.host.memory.unwrap_or_default()),
            vcpus: resources::vcpus(self.host),
            cpu: resources::cpu_limits(self.host),
            disk_read: checks::rate(
                self.host.blkio_device_read_bps.as_ref(),
                self.host.blkio_device_read_iops.as_ref(),
            ),
            disk_write: checks::rate(
                self.host.blkio_device_write_bps.as_ref(),
                self.host.blkio_device_write_iops.as_ref(),
            ),
            endpoints: endpoints.iter().map(|(id, _)| id.clone()).collect(),
            hostname,
            domainname: self.request.domainname.clone().unwrap_or_default(),
            extra_hosts: self.host.extra_hosts.clone().unwrap_or_default(),
            link_hosts: Vec::new(),
            dns: self.host.dns.clone().unwrap_or_default(),
            dns_search: self.host.dns_search.clone().unwrap_or_default(),
            dns_options: self.host.dns_options.clone().unwrap_or_default(),
        };
        debug_assert!(matches!(spec.restart_policy, RestartPolicy::No) || !spec.auto_remove);
        let holder = ContainerNameSpec { pod: pod.clone(), container: id.clone() };
        let mut operations = vec![
            Operation::create::<ContainerName>(&self.name, &holder, None)?,
            Operation::create::<Pod>(pod.as_str(), &spec, None)?,
        ];
        for (volume, spec) in &plan.create {
            operations.push(Operation::create::<Volume>(volume, spec, None)?);
        }
        for (endpoint, spec) in &endpoints {
            operations.push(Operation::create::<Endpoint>(endpoint.as_str(), spec, None)?);
        }
        Ok(Written { id, operations, warnings: plan.warnings })
    }

    fn container(&self, id: &ContainerId, mounts: Vec<zone::pod::Mount>, hostname: &str) -> Result<ContainerSpec> {
        let (request, host, merged) = (self.request, self.host, self.merged);
        let positive = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        let mut docker = merge::config_json(self.raw, merged, hostname);
        if !self.health.0.is_null() {
            docker.insert("Healthcheck".into(), self.health.0.clone());
        }
        let mut host_config = merge::host_config_json(&self.raw["HostConfig"]);
        let links = options::links(self.world, host, &self.name)?;
        if !links.is_empty() {
            host_config["Links"] = links.into_iter().map(Value::from).collect();
        }
        docker.insert("HostConfig".into(), host_config);
        docker.insert("NetworkingConfig".into(), self.raw["NetworkingConfig"].clone());
        Ok(ContainerSpec {
            id: id.clone(),
            name: self.name.clone(),
            image: self.image.clone(),
            image_ref: request.image.clone().unwrap_or_default(),
            args: merged.args(),
            env: merged.env.iter().filter(|entry| entry.contains('=')).cloned().collect(),
            cwd: merged.cwd.clone(),
            user: merged.user.clone(),
            group_add: host.group_add.clone().unwrap_or_default(),
            tty: request.tty.unwrap_or_default(),
            open_stdin: request.open_stdin.unwrap_or_default(),
            stdin_once: request.stdin_once.unwrap_or_default(),
            stop_signal: merged.stop_signal.clone(),
            readonly_rootfs: host.readonly_rootfs.unwrap_or_default(),
            init: host.init.unwrap_or_default(),
            privileged: host.privileged.unwrap_or_default(),
            cap_add: checks::capabilities(host.cap_add.clone()),
            cap_drop: checks::capabilities(host.cap_drop.clone()),
            no_new_privileges: checks::no_new_privileges(host),
            ulimits: checks::ulimits(host)?,
            sysctls: host.sysctls.clone().unwrap_or_default(),
            shm_size: positive(host.shm_size),
            memory_limit: positive(host.memory),
            pids_limit: host.pids_limit.unwrap_or_default().max(0),
            devices: options::devices(host)?,
            health: self.health.1.clone(),
            mounts,
            rootfs_size: checks::rootfs_size(host)?,
            log_max_bytes: checks::log_max_bytes(host)?,
            docker: Value::Object(docker),
        })
    }

    /// The container's places on networks: the network mode's first, then the others that the request names.
    fn endpoints(&self, id: &ContainerId, pod: &PodId) -> Result<Vec<(EndpointId, EndpointSpec)>> {
        let configs =
            self.request.networking_config.as_ref().and_then(|n| n.endpoints_config.clone()).unwrap_or_default();
        let mode = match self.host.network_mode.as_deref() {
            // "host": a place on the default network, with every port published under its own number.
            None | Some("" | "default" | "host") => DEFAULT_NETWORK,
            Some("none") => return Ok(Vec::new()),
            Some(mode) => mode,
        };
        let first = networks::find_for_container(self.world, mode)?;
        let mut wanted = vec![(first, EndpointConfig::default())];
        for (key, config) in configs {
            let host = self.host.network_mode.as_deref() == Some("host") && key == "host";
            let key = if key == "default" || host { DEFAULT_NETWORK } else { key.as_str() };
            let network = networks::find_for_container(self.world, key)?;
            let config = config.unwrap_or_default();
            match wanted.iter_mut().find(|(n, _)| n.meta.name == network.meta.name) {
                Some((_, same)) => *same = config,
                None => wanted.push((network, config)),
            }
        }
        let host_mode = self.host.network_mode.as_deref() == Some("host");
        let mut ports = match host_mode {
            true => checks::own_ports(&self.merged.exposed)?,
            false => checks::ports(self.host, &self.merged.exposed)?,
        };
        let mut endpoints = Vec::new();
        for (index, (network, mut config)) in wanted.into_iter().enumerate() {
            if index == 0 && config.mac_address.is_none() {
                config.mac_address.clone_from(&self.request.mac_address);
            }
            let hostname = self.request.hostname.clone().filter(|h| !h.is_empty());
            let mut spec = networks::endpoint(&network, pod, id, &self.name, hostname, &config)?;
            // Ports belong to the first network that leads out.
            if !network.spec.internal {
                spec.ports = std::mem::take(&mut ports);
            }
            endpoints.push((network.spec.internal, (EndpointId::of(pod, &spec.network), spec)));
        }
        // The way out goes by the first: answers to who came by a published port would get lost in an internal network.
        endpoints.sort_by_key(|(internal, _)| *internal);
        Ok(endpoints.into_iter().map(|(_, endpoint)| endpoint).collect())
    }
}
