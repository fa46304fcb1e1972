//! `connect` and `disconnect`: a stopped container's places on networks. A running one's come with spare interfaces.

use super::{endpoint, find_for_container};
use crate::App;
use crate::containers::request::EndpointConfig;
use crate::errors::{Failure, Result};
use crate::state::{Container, World};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use zone::client::Operation;
use zone::endpoint::Endpoint;
use zone::pod::Pod;
use zone::{EndpointId, NetworkId, PodId};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connect {
    container: String,
    endpoint_config: Option<EndpointConfig>,
}

fn stopped(world: &World, key: &str) -> Result<Container> {
    let container = world.container(key)?;
    if !container.is_active() {
        return Ok(container);
    }
    Err(Failure::not_implemented(format!(
        "container {} runs, and the networks of a running container cannot be changed yet; stop it first",
        container.spec().name
    )))
}

/// `POST /networks/{id}/connect`.
///
/// # Errors
/// 501 while the container runs, 403 when it is on the network already.
pub async fn connect(State(app): State<Arc<App>>, Path(id): Path<String>, body: Bytes) -> Result<StatusCode> {
    let raw: Value = serde_json::from_slice(&body).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let request: Connect =
        serde_json::from_value(raw.clone()).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let world = app.store.world();
    let network = find_for_container(&world, &id)?;
    let container = stopped(&world, &request.container)?;
    let pod = PodId::new(&container.pod.meta.name);
    let endpoint_id = EndpointId::of(&pod, &NetworkId::new(&network.meta.name));
    if container.pod.spec.endpoints.contains(&endpoint_id) {
        return Err(Failure::forbidden(format!(
            "endpoint with name {} already exists in network {}",
            container.spec().name,
            network.spec.name
        )));
    }
    let config = request.endpoint_config.unwrap_or_default();
    let made = endpoint(&network, &pod, container.id(), &container.spec().name, None, &config)?;
    let mut spec = container.pod.spec.clone();
    spec.endpoints.push(endpoint_id.clone());
    for one in spec.containers.iter_mut().filter(|c| c.id == *container.id()) {
        if !one.docker["NetworkingConfig"]["EndpointsConfig"].is_object() {
            one.docker["NetworkingConfig"] = json!({"EndpointsConfig": {}});
        }
        one.docker["NetworkingConfig"]["EndpointsConfig"][&network.spec.name] = raw["EndpointConfig"].clone();
    }
    let operations = vec![
        Operation::create::<Endpoint>(endpoint_id.as_str(), &made, None)?,
        Operation::update_spec::<Pod>(&container.pod, &spec)?,
    ];
    app.store.transact(operations).await?;
    Ok(StatusCode::OK)
}

/// `POST /networks/{id}/disconnect`.
///
/// # Errors
/// 501 while the container runs, 403 when it is not on the network.
pub async fn disconnect(State(app): State<Arc<App>>, Path(id): Path<String>, body: Bytes) -> Result<StatusCode> {
    let request: Connect = serde_json::from_slice(&body).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let world = app.store.world();
    let network = world.network(&id)?;
    let container = stopped(&world, &request.container)?;
    let gone = EndpointId::of(&PodId::new(&container.pod.meta.name), &NetworkId::new(&network.meta.name));
    if !container.pod.spec.endpoints.contains(&gone) {
        return Err(Failure::forbidden(format!(
            "container {} is not connected to network {}",
            container.id(),
            network.spec.name
        )));
    }
    let mut spec = container.pod.spec.clone();
    spec.endpoints.retain(|e| *e != gone);
    let operations =
        vec![Operation::delete::<Endpoint>(gone.as_str()), Operation::update_spec::<Pod>(&container.pod, &spec)?];
    app.store.transact(operations).await?;
    Ok(StatusCode::OK)
}
