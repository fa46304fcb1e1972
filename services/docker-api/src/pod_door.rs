//! The Docker API for programs in pods: a container with `-v /var/run/docker.sock:…` gets it, restricted to its project.
//!
//! ```text
//! program ─ docker.sock ─ agent ══ agent.sock ══ here ─> Doors, with the scope of the pod's project
//! ```
//! The agent never connects to us: we open connections ahead, and each waits for a program. So there is no doubt whose they
//! are, and a restart of this service or of the pod needs nothing but to open them again.

use crate::access::Scope;
use crate::agent::{self, Raw, Upgrade};
use crate::errors::{Failure, Result};
use crate::project;
use crate::serve::{Client, Doors};
use crate::state::{Container, World};
use axum::body::Body;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zone::ContainerId;
use zone::pod::{Mount, Phase};

/// How many connections wait for programs.
const SPARE: usize = 2;
/// How many connections of a container are served at a time.
const SERVED: usize = 64;
/// Pauses after an agent did not answer.
const RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// Keeps connections open to every running container with a socket, without end.
pub async fn run(doors: Arc<Doors>) {
    let mut changes = doors.app.store.subscribe();
    let mut serving: HashMap<(ContainerId, u32), JoinSet<()>> = HashMap::new();
    loop {
        let wanted = with_socket(&changes.borrow_and_update());
        // Dropping a set ends its tasks, not the connections that they handed on.
        serving.retain(|key, _| wanted.contains_key(key));
        for (key, container) in wanted {
            serving.entry(key).or_insert_with(|| {
                let slots = Arc::new(Semaphore::new(SERVED));
                let mut tasks = JoinSet::new();
                for _ in 0..SPARE {
                    tasks.spawn(serve(doors.clone(), container.clone(), slots.clone()));
                }
                tasks
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Running containers with a socket, each with the number of its run.
fn with_socket(world: &World) -> HashMap<(ContainerId, u32), Container> {
    let has_socket = |c: &Container| c.spec().mounts.iter().any(|m| matches!(m, Mount::DockerSocket { .. }));
    world
        .containers()
        .filter(|c| c.pod.status.phase == Phase::Running && has_socket(c))
        .map(|c| ((c.id().clone(), c.pod.status.run), c))
        .collect()
}

async fn serve(doors: Arc<Doors>, container: Container, slots: Arc<Semaphore>) {
    let client = Client {
        who: format!("pod:{}", container.spec().name),
        peer: container.id().short().to_owned(),
        scope: Scope::of_project(&project::of_pod(&container.pod.spec)),
        certificate: None,
    };
    let mut pause = RETRY;
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match next(&doors, &container).await {
            Ok(stream) => {
                pause = RETRY;
                let (doors, client) = (doors.clone(), client.clone());
                tokio::spawn(async move {
                    doors.connection(stream, client).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(container = %container.id(), %error, "cannot serve a pod's docker socket");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY);
            }
        }
    }
}

/// Waits for the next program.
async fn next(doors: &Doors, container: &Container) -> Result<Raw> {
    let request = agent::request("POST", &format!("/v1/docker/{}", container.id()), Body::empty())?;
    match agent::upgrade(&doors.app.agent_socket(container), request).await? {
        Upgrade::Raw(mut raw) => {
            // One byte says that a program is there.
            raw.read_u8().await.map_err(|e| Failure::unavailable(format!("the agent closed the connection: {e}")))?;
            Ok(raw)
        }
        Upgrade::Refused(answer) => Err(Failure::unavailable(format!("the agent answered {}", answer.status()))),
    }
}
