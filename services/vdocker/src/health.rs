//! Health checks: runs a container's check again and again, and tells the host when the state changes.
//!
//! One thread per container that has a check. Rules and states are [`zone::health`]'s. Nothing is said after the
//! container's exit.

use crate::agent::{Agent, spawn};
use crate::container::Container;
use crate::exec;
use crate::log::now_ns;
use crate::stats::rfc3339;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zone::health::{Health, HealthCheck, Probe};
use zone::log::Data;

/// How much of a check's output is kept; five of them, escaped, fit into one record.
const MAX_OUTPUT: usize = 3000;

/// A container's health.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Health>);

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Docker's Health.
    pub fn inspect(&self) -> Value {
        let health = self.lock();
        let probe = |p: &Probe| json!({"Start": rfc3339(p.start_ns), "End": rfc3339(p.end_ns), "ExitCode": p.exit_code, "Output": p.output});
        let log: Vec<Value> = health.log.iter().map(probe).collect();
        json!({"Status": health.state.as_str(), "FailingStreak": health.failing_streak, "Log": log})
    }
}

/// Begins to check a container that has just been started, if it has a check.
pub fn start(agent: &Arc<Agent>, container: &Arc<Container>) {
    let Some(check) = container.spec.health.clone() else { return };
    let (agent, container) = (Arc::clone(agent), Arc::clone(container));
    spawn("health", move || watch(&agent, &container, &check));
}

fn watch(agent: &Arc<Agent>, container: &Arc<Container>, check: &HealthCheck) {
    let start = Instant::now();
    let since_start = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    while container.state().running {
        let pause = container.health.lock().pause_ms(check, since_start());
        std::thread::sleep(Duration::from_millis(pause));
        let state = container.state();
        if !state.running {
            return;
        }
        if state.paused {
            continue;
        }
        let at = since_start();
        let probe = run(agent, container, check);
        let mut health = container.health.lock();
        let changed = health.take(check, probe, at);
        let said = Data::Health(health.clone());
        drop(health);
        if changed && !container.while_running(|| agent.log.send(container.id(), said)) {
            return;
        }
    }
}

fn run(agent: &Arc<Agent>, container: &Arc<Container>, check: &HealthCheck) -> Probe {
    let start_ns = now_ns();
    let limit = Duration::from_millis(check.timeout_ms);
    let (exit_code, mut output) = match exec::run_alone(agent, container, &check.args, limit, MAX_OUTPUT + 1) {
        Ok((Some(code), output)) => (code, output),
        Ok((None, output)) => {
            let mut text = format!("Health check exceeded timeout ({})", seconds(check.timeout_ms)).into_bytes();
            if !output.is_empty() {
                text.extend_from_slice(b": ");
                text.extend_from_slice(&output);
            }
            (-1, text)
        }
        Err(message) => (-1, message.into_bytes()),
    };
    let cut = output.len() > MAX_OUTPUT;
    output.truncate(MAX_OUTPUT);
    let mut output = String::from_utf8_lossy(&output).into_owned();
    if cut {
        output.push_str("...");
    }
    Probe { start_ns, end_ns: now_ns(), exit_code, output }
}

/// A duration as Go writes it, as far as checks have them.
fn seconds(ms: u64) -> String {
    match (ms / 1000, ms % 1000) {
        (0, ms) => format!("{ms}ms"),
        (s, 0) if s < 60 => format!("{s}s"),
        (s, 0) => format!("{}m{}s", s / 60, s % 60),
        (s, ms) => format!("{s}.{}s", format!("{ms:03}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_gos() {
        for (ms, text) in [(30_000, "30s"), (1500, "1.5s"), (20, "20ms"), (90_000, "1m30s")] {
            assert_eq!(super::seconds(ms), text);
        }
    }
}
