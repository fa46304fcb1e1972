//! `connect` and `disconnect`: a container's places on networks. A running one's come and go with spare interfaces, which
//! `pods` plugs and unplugs; the answer waits for that.

use super::{endpoint, find_for_container};
use crate::App;
use crate::containers::request::EndpointConfig;
use crate::errors::{Failure, Result};
use crate::state::World;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use zone::client::Operation;
use zone::endpoint::{Endpoint, EndpointSpec};
use zone::pod::{Phase, Pod};
use zone::{EndpointId, ErrorKind, NetworkId, PodId};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connect {
    container: String,
    endpoint_config: Option<EndpointConfig>,
}

/// How long a running guest may take to take an interface up or let go of it.
const DONE: Duration = Duration::from_secs(30);
/// How often a change is tried again that somebody else was faster with.
const ATTEMPTS: usize = 10;

/// `POST /networks/{id}/connect`.
///
/// # Errors
/// 403 when it runs and is on the network already, 500 when a running guest cannot take it up; then it is not connected.
pub async fn connect(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    let raw: Value = crate::body::json(&headers, &body)?.unwrap_or_else(|| json!({}));
    let request: Connect =
        serde_json::from_value(raw.clone()).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    for _ in 0..ATTEMPTS {
        let Some(place) = plan(&app.store.world(), &id, &request, &raw)? else { return Ok(StatusCode::OK) };
        match app.store.transact(place.operations).await {
            // Somebody else has changed the pod meanwhile.
            Err(error) if error.kind == ErrorKind::Conflict => app.store.barrier().await,
            Err(error) => return Err(error.into()),
            Ok(()) if !place.running => return Ok(StatusCode::OK),
            Ok(()) => {
                if let Err(failure) = taken_up(&app, &place.pod, &place.endpoint).await {
                    leave(&app, &place.pod, &place.endpoint).await?;
                    return Err(failure);
                }
                return Ok(StatusCode::OK);
            }
        }
    }
    Err(Failure::conflict(format!("container {} changes all the time: try again", request.container)))
}

/// A new place of a container on a network, and what makes it.
struct Place {
    pod: PodId,
    endpoint: EndpointId,
    running: bool,
    operations: Vec<Operation>,
}

/// None when there is nothing to do.
fn plan(world: &World, id: &str, request: &Connect, raw: &Value) -> Result<Option<Place>> {
    let network = find_for_container(world, id)?;
    let container = world.container(&request.container)?;
    let pod = PodId::new(&container.pod.meta.name);
    let endpoint_id = EndpointId::of(&pod, &NetworkId::new(&network.meta.name));
    // While a container is stopped, to connect it again changes how it is connected.
    let known =
        world.endpoints.get(endpoint_id.as_str()).filter(|_| container.pod.spec.endpoints.contains(&endpoint_id));
    if known.is_some() && container.is_active() {
        return Err(Failure::forbidden(format!(
            "endpoint with name {} already exists in network {}",
            container.spec().name,
            network.spec.name
        )));
    }
    if known.is_some() && request.endpoint_config.is_none() {
        return Ok(None);
    }
    let config = request.endpoint_config.clone().unwrap_or_default();
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
    Ok(Some(Place { pod, endpoint: endpoint_id, running: container.is_running(), operations }))
}

/// Waits until a running guest has the interface; says why not.
async fn taken_up(app: &App, pod: &PodId, endpoint: &EndpointId) -> Result<()> {
    let settled = app.store.wait(Some(DONE), |world| {
        let Some(pod) = world.pods.get(pod.as_str()) else { return Some(Err("the container was removed".to_owned())) };
        let failed = world.endpoints.get(endpoint.as_str()).and_then(|e| e.status.error.clone());
        if let Some(error) = failed {
            return Some(Err(error));
        }
        match pod.status.interfaces.get(endpoint) {
            Some(interface) => Some(interface.error.clone().map_or(Ok(()), Err)),
            // It has stopped: the next start brings it.
            None if pod.status.phase != Phase::Running => Some(Ok(())),
            None => None,
        }
    });
    match settled.await {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) if error.contains("already in use") => Err(Failure::forbidden(error)),
        Some(Err(error)) => Err(Failure::internal(format!("cannot connect the running container: {error}"))),
        None => Err(Failure::internal("the running container does not take the network up")),
    }
}

/// Takes an endpoint from its pod, whatever else has changed there.
async fn leave(app: &App, pod: &PodId, endpoint: &EndpointId) -> Result<()> {
    loop {
        let mut read = app.store.client.get::<Pod>(pod.as_str()).await?;
        let spec = read.spec.clone();
        read.spec.endpoints.retain(|e| e != endpoint);
        let changed = std::mem::replace(&mut read.spec, spec);
        let operations =
            vec![Operation::delete::<Endpoint>(endpoint.as_str()), Operation::update_spec::<Pod>(&read, &changed)?];
        match app.store.transact(operations).await {
            Err(error) if error.kind == ErrorKind::Conflict => {}
            other => return Ok(other?),
        }
    }
}

/// `POST /networks/{id}/disconnect`.
///
/// # Errors
/// 403 when it is not on the network.
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
    let pod = PodId::new(&container.pod.meta.name);
    leave(&app, &pod, &gone).await?;
    if container.is_running() {
        // A guest that holds on to it finds no tap behind it.
        let left = |world: &World| match world.pods.get(pod.as_str()) {
            Some(pod) if pod.status.phase == Phase::Running && pod.status.interfaces.contains_key(&gone) => None,
            _ => Some(()),
        };
        let _ = app.store.wait(Some(DONE), left).await;
    }
    Ok(StatusCode::OK)
}
