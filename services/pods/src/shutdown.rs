//! The machine goes down: every pod is asked to stop as `docker stop` would, all at once, and given its time.
//!
//! The units of pods are ordered before this service's, so systemd stops them only when this has ended. Nothing is written
//! down: what was running is known, how it ended stands in its log, and after the boot the restart policy decides as ever.

use crate::shared::Shared;
use crate::systemd::UnitEnd;
use crate::{agent, unit};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use zone::pod::Pod;
use zone::{PodId, Resource};

/// A machine that goes down waits for nobody for ever; systemd's own limit for this service is a little longer.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a guest whose containers have ended, or whose monitor was killed, may take to be gone.
const LINGER: Duration = Duration::from_secs(5);

/// Whether the machine goes down; false when systemd does not say.
pub async fn is_coming(shared: &Shared) -> bool {
    match shared.systemd.system_state().await {
        Ok(state) => state == "stopping",
        Err(error) => {
            tracing::warn!(%error, "cannot ask systemd whether the machine goes down");
            false
        }
    }
}

/// Stops all pods; returns when they are gone or their time is over.
pub async fn run(shared: &Shared, ends: &mut mpsc::Receiver<UnitEnd>) {
    let began = Instant::now();
    let (units, pods) = (shared.systemd.list(&[unit::POD_UNITS]).await, shared.client.list::<Pod>().await);
    let (Ok(units), Ok(pods)) = (units, pods) else {
        tracing::error!("cannot find the pods that run; systemd ends them");
        return;
    };
    let mut left: BTreeSet<String> = units.into_iter().collect();
    let mut deadlines: Vec<(Instant, String)> = Vec::new();
    for pod in &pods.items {
        let name = unit::pod_unit(&PodId::new(&pod.meta.name));
        if left.contains(&name) {
            signal(shared, pod);
            let grace = u64::try_from(pod.spec.stop_grace_s).map_or(LONGEST, Duration::from_secs).min(LONGEST);
            deadlines.push((began + grace + LINGER, name));
        }
    }
    tracing::info!(pods = left.len(), "the machine goes down; pods are asked to stop");
    deadlines.sort();
    for (deadline, name) in deadlines {
        while left.contains(&name) {
            match tokio::time::timeout_at(deadline, ends.recv()).await {
                Ok(Some(end)) => drop(left.remove(&end.unit)),
                Ok(None) => return,
                Err(_) => {
                    tracing::warn!(unit = name, "a pod did not stop in its time");
                    if let Err(error) = shared.systemd.kill(&name).await {
                        tracing::warn!(unit = name, %error, "cannot kill a monitor");
                    }
                    break;
                }
            }
        }
    }
    tracing::info!(killed = left.len(), took = ?began.elapsed(), "pods have stopped");
}

/// The stop signal, to every container of a pod. Not waited for: the end of its unit is.
fn signal(shared: &Shared, pod: &Resource<Pod>) {
    let socket = shared.places(&PodId::new(&pod.meta.name)).run.join("agent.sock");
    for container in &pod.spec.containers {
        let (socket, id, wanted) = (socket.clone(), container.id.clone(), container.stop_signal.clone());
        tokio::spawn(async move {
            let signal = if wanted.is_empty() { "SIGTERM" } else { &wanted };
            if let Err(error) = agent::kill(&socket, &id, signal).await {
                tracing::warn!(container = id.short(), error = format!("{error:#}"), "cannot send the stop signal");
            }
        });
    }
}
