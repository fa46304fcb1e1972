//! `connect` and `disconnect`: a stopped container's places on networks. A running one's come with spare interfaces.

use super::{endpoint, find_for_container};
use crate::App;
use crate::containers::request::EndpointConfig;
use crate::errors::{Failure, Result};
use crate::state::{Container, World};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use zone::client::Operation;
use zone::endpoint::{Endpoint, EndpointSpec};
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
/// 501 while the container runs.
pub async fn connect(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    let raw: Value = crate::body::json(&headers, &body)?.unwrap_or_else(|| json!({}));
    let request: Connect =
        serde_json::from_value(raw.clone()).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    let world = app.store.world();
    let network = find_for_container(&world, &id)?;
    let container = stopped(&world, &request.container)?;
    let pod = PodId::new(&container.pod.meta.name);
    let endpoint_id = EndpointId::of(&pod, &NetworkId::new(&network.meta.name));
    // While a container is stopped, to connect it again changes how it is connected.
    let known =
        world.endpoints.get(endpoint_id.as_str()).filter(|_| container.pod.spec.endpoints.contains(&endpoint_id));
    if known.is_some() && request.endpoint_config.is_none() {
        return Ok(StatusCode::OK);
    }
    let config = request.endpoint_config.unwrap_or_default();
    let made = endpoint(&network, &pod, container.id(), &container.spec().name, None, &config)?;
    let mut spec = container.pod.spec.clone();
    if known.is_none() {
        spec.endpoints.push(endpoint_id.clone());
    }
    for one in spec.containers.iter_mut().filter(|c| c.id == *container.id()) {
        if !one.docker["NetworkingConfig"]["EndpointsConfig"].is_object() {
            one.docker["NetworkingConfig"] = json!({"EndpointsConfig": {}});
        }
        one.docker["NetworkingConfig"]["EndpointsConfig"][&network.spec.name] = raw["EndpointConfig"].clone();
    }
    let place = match known {
        Some(known) => {
            Operation::update_spec::<Endpoint>(known, &EndpointSpec { ports: known.spec.ports.clone(), ..made })?
        }
        None => Operation::create::<Endpoint>(endpoint_id.as_str(), &made, None)?,
    };
    let operations = vec![place, Operation::update_spec::<Pod>(&container.pod, &spec)?];
    app.store.transact(operations).await?;
    Ok(StatusCode::OK)
}

/// `POST /networks/{id}/disconnect`.
///
/// # Errors
/// 501 while the container runs, 403 when it is not on the network.
pub async fn disconnect(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    let request: Connect = crate::body::json(&headers, &body)?.unwrap_or_default();
    let world = app.store.world();
    let network = world.network(&id)?;
    let container = world.container(&request.container)?;
    let gone = EndpointId::of(&PodId::new(&container.pod.meta.name), &NetworkId::new(&network.meta.name));
    if !container.pod.spec.endpoints.contains(&gone) {
        let the = if container.is_active() { "" } else { "the " };
        return Err(Failure::forbidden(format!(
            "container {} is not connected to {the}network {}",
            container.id(),
            network.spec.name
        )));
    }
    let container = stopped(&world, &request.container)?;
    let mut spec = container.pod.spec.clone();
    spec.endpoints.retain(|e| *e != gone);
    let operations =
        vec![Operation::delete::<Endpoint>(gone.as_str()), Operation::update_spec::<Pod>(&container.pod, &spec)?];
    app.store.transact(operations).await?;
    Ok(StatusCode::OK)
}
