//! `POST /containers/{id}/rename` and `/update`: what may change about a container that is there.

use super::checks;
use super::create::name_taken;
use super::request::{HostConfig, RestartPolicyRequest};
use super::resources;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::names;
use crate::proxy;
use crate::state::Container;
use crate::{App, agent};
use axum::Json;
use axum::body::{Body, Bytes};
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

/// `POST /containers/{id}/update`: restart policy, quota and weight of the CPUs at once; memory and processes at once as far as
/// the guest is large enough, else from the next start on.
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
    let mut config = container.spec().docker["HostConfig"].clone();
    note(&mut config, &raw, named.is_some());
    let whole: HostConfig = serde_json::from_value(config.clone()).unwrap_or_default();
    let above = whole.memory_swap.is_some_and(|swap| swap > 0 && swap < whole.memory.unwrap_or_default());
    if above && wanted.memory_swap.unwrap_or_default() == 0 {
        return Err(Failure::invalid(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    resources::check(&whole)?;
    let memory = whole.memory.unwrap_or_default();
    let mut vcpus = 0;
    app.store
        .modify_spec::<Pod>(&container.pod.meta.name, |spec| {
            if let Some(policy) = named {
                spec.restart_policy = policy;
            }
            spec.memory_mib = resources::vm_memory_mib(memory);
            vcpus = resources::vcpus(&whole);
            (spec.vcpus, spec.cpu) = (vcpus, resources::cpu_limits(&whole));
            for one in spec.containers.iter_mut().filter(|c| c.id == *container.id()) {
                one.memory_limit = memory.max(0).unsigned_abs();
                one.pids_limit = whole.pids_limit.unwrap_or_default().max(0);
                one.docker["HostConfig"] = config.clone();
            }
            true
        })
        .await?;
    let mut warnings = Vec::new();
    if container.is_running() {
        if vcpus > container.pod.spec.vcpus {
            warnings.push(format!("the container has {} CPU(s) until its next start", container.pod.spec.vcpus));
        }
        limit_guest(&app, &container, &whole, &mut warnings).await?;
    }
    Ok(Json(json!({ "Warnings": (!warnings.is_empty()).then_some(warnings) })))
}

/// Memory and processes are bound inside the guest.
async fn limit_guest(app: &App, container: &Container, wanted: &HostConfig, warnings: &mut Vec<String>) -> Result<()> {
    let memory = wanted.memory.unwrap_or_default().max(0).unsigned_abs();
    let most = resources::most_memory(container.pod.spec.memory_mib);
    if memory > most {
        warnings.push(format!("the container has {} MiB of memory at most until its next start", most >> 20));
    }
    let limits = json!({"memory": memory.min(most), "pids": wanted.pids_limit.unwrap_or_default().max(0)});
    let answer = proxy::to_agent(app, container, "POST", "limits", None, Body::from(limits.to_string())).await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = agent::json(answer).await["message"].as_str().unwrap_or("no reason given").to_owned();
    Err(Failure { status, message: format!("Cannot update container {}: {text}", container.id()) })
}

/// What `inspect` shows.
fn note(config: &mut Value, raw: &Value, policy: bool) {
    const KEYS: [&str; 10] = [
        "Memory",
        "MemorySwap",
        "MemoryReservation",
        "NanoCpus",
        "CpuPeriod",
        "CpuQuota",
        "CpuShares",
        "CpusetCpus",
        "PidsLimit",
        "BlkioWeight",
    ];
    for key in KEYS {
        if raw[key].as_i64().is_some_and(|n| n != 0) || raw[key].as_str().is_some_and(|s| !s.is_empty()) {
            config[key] = raw[key].clone();
        }
    }
    // One way to say it replaces the other.
    if raw["NanoCpus"].as_i64().is_some_and(|n| n > 0) {
        (config["CpuPeriod"], config["CpuQuota"]) = (json!(0), json!(0));
    } else if raw["CpuQuota"].as_i64().is_some_and(|n| n != 0) {
        config["NanoCpus"] = json!(0);
    }
    if policy {
        config["RestartPolicy"] = raw["RestartPolicy"].clone();
        if config["RestartPolicy"]["MaximumRetryCount"].is_null() {
            config["RestartPolicy"]["MaximumRetryCount"] = json!(0);
        }
    }
}
