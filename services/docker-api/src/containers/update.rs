//! `POST /containers/{id}/rename` and `/update`: what may change about a container that is there.

use super::checks;
use super::create::name_taken;
use super::request::{HostConfig, RestartPolicyRequest};
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;
use zone::ErrorKind;
use zone::client::Operation;
use zone::endpoint::Endpoint;
use zone::pod::{ContainerName, ContainerNameSpec, Pod};

/// How often to try again when somebody else wrote in between.
const ATTEMPTS: u32 = 8;

/// `POST /containers/{id}/rename`.
///
/// # Errors
/// 409 when the name is taken.
pub async fn rename(State(app): State<Arc<App>>, Path(id): Path<String>, params: Params) -> Result<StatusCode> {
    let wanted = params.get("name").ok_or_else(|| Failure::invalid("Neither old nor new names may be empty"))?;
    let wanted = names::container_name(wanted).map_err(|failure| {
        Failure::invalid(format!("Error when allocating new name: {}", failure.message.replacen('(', "(/", 1)))
    })?;
    for _ in 0..ATTEMPTS {
        let world = app.store.world();
        let container = world.container(&id)?;
        let old = container.spec().name.clone();
        if old == wanted {
            return Err(Failure::invalid("Renaming a container with the same name as its current name"));
        }
        if let Some(holder) = world.names.get(wanted) {
            return Err(name_taken(wanted, holder.spec.container.as_str()));
        }
        let mut spec = container.pod.spec.clone();
        for one in spec.containers.iter_mut().filter(|c| c.id == *container.id()) {
            wanted.clone_into(&mut one.name);
        }
        let holder =
            ContainerNameSpec { pod: zone::PodId::new(&container.pod.meta.name), container: container.id().clone() };
        let mut operations = vec![
            Operation::create::<ContainerName>(wanted, &holder, None)?,
            Operation::delete::<ContainerName>(&old),
            Operation::update_spec(&container.pod, &spec)?,
        ];
        for endpoint in container.pod.spec.endpoints.iter().filter_map(|e| world.endpoints.get(e.as_str())) {
            let mut spec = endpoint.spec.clone();
            spec.names.iter_mut().filter(|n| **n == old).for_each(|n| wanted.clone_into(n));
            operations.push(Operation::update_spec::<Endpoint>(endpoint, &spec)?);
        }
        match app.store.transact(operations).await {
            Ok(()) => return Ok(StatusCode::NO_CONTENT),
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => app.store.barrier().await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::conflict(format!("container {id} is being changed by somebody else; try again")))
}

/// `POST /containers/{id}/update`: restart policy at once; memory and CPUs from the next start on.
///
/// # Errors
/// 400 for what is wrong.
pub async fn update(State(app): State<Arc<App>>, Path(id): Path<String>, body: Bytes) -> Result<Json<Value>> {
    let raw: Value = serde_json::from_slice(&body).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let wanted: HostConfig =
        serde_json::from_value(raw.clone()).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let container = app.store.world().container(&id)?;
    let policy: Option<&RestartPolicyRequest> =
        wanted.restart_policy.as_ref().filter(|p| p.name.as_deref().is_some_and(|n| !n.is_empty()));
    let named = policy.map(|p| checks::restart_policy(Some(p))).transpose()?;
    if named.is_some() && container.pod.spec.auto_remove {
        return Err(Failure::invalid(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        ));
    }
    // The limits belong together, so what is not given is taken from what is there.
    checks::host_config(&HostConfig { restart_policy: None, ..wanted.clone() })?;
    let memory = wanted.memory.filter(|m| *m > 0);
    let cpus = wanted.nano_cpus.unwrap_or_default() > 0 || wanted.cpu_quota.unwrap_or_default() > 0;
    app.store
        .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
            if let Some(policy) = named {
                spec.restart_policy = policy;
            }
            if let Some(memory) = memory {
                spec.memory_mib = checks::vm_memory_mib(memory);
            }
            if cpus {
                spec.vcpus = checks::vcpus(&wanted);
            }
            for one in spec.containers.iter_mut().filter(|c| c.id == *container.id()) {
                if let Some(memory) = memory {
                    one.memory_limit = memory.unsigned_abs();
                }
                if let Some(pids) = wanted.pids_limit {
                    one.pids_limit = pids.max(0);
                }
                note(&mut one.docker["HostConfig"], &raw, named.is_some());
            }
            true
        })
        .await?;
    let later = container.is_active() && (memory.is_some() || cpus);
    let warnings = later.then_some(["memory and CPUs change with the container's next start"]);
    Ok(Json(json!({ "Warnings": warnings })))
}

/// What `inspect` shows.
fn note(config: &mut Value, raw: &Value, policy: bool) {
    const KEYS: [&str; 6] = ["Memory", "MemorySwap", "NanoCpus", "CpuPeriod", "CpuQuota", "PidsLimit"];
    for key in KEYS {
        if raw[key].as_i64().is_some_and(|n| n != 0) {
            config[key] = raw[key].clone();
        }
    }
    if policy {
        config["RestartPolicy"] = raw["RestartPolicy"].clone();
        if config["RestartPolicy"]["MaximumRetryCount"].is_null() {
            config["RestartPolicy"]["MaximumRetryCount"] = json!(0);
        }
    }
}
