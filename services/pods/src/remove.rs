//! Deletes a pod's resources after it has exited (`docker run --rm`).

use crate::world::View;
use zone::client::{Client, Operation};
use zone::endpoint::Endpoint;
use zone::pod::{ContainerName, Mount, Pod};
use zone::volume::Volume;
use zone::{ApiError, ErrorKind, Kind};

/// Deletes the pod, its containers' names, its endpoints and its anonymous volumes, all at once.
///
/// # Errors
/// When the state engine cannot be reached.
pub async fn remove(client: &Client, view: &View) -> Result<(), ApiError> {
    let operations = deletes(view);
    match client.transact(operations.clone()).await {
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {}
        other => return other.map(|_| ()),
    }
    // Somebody else has deleted a part of it: what is left goes one by one, the pod last, so that this is not cut short.
    for operation in operations.into_iter().rev() {
        match client.transact(vec![operation]).await {
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {}
            other => other.map(|_| ())?,
        }
    }
    Ok(())
}

fn delete<K: Kind>(name: &str) -> Operation {
    Operation::delete::<K>(name)
}

fn deletes(view: &View) -> Vec<Operation> {
    let mut operations = vec![delete::<Pod>(&view.pod.meta.name)];
    for container in &view.pod.spec.containers {
        operations.push(delete::<ContainerName>(&container.name));
        for mount in &container.mounts {
            if let Mount::Volume { volume, anonymous: true, .. } = mount
                && view.volumes.contains_key(volume)
            {
                operations.push(delete::<Volume>(volume.as_str()));
            }
        }
    }
    operations.extend(view.endpoints.keys().map(|id| delete::<Endpoint>(id.as_str())));
    operations
}
