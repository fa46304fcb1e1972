//! Where the time of one `docker run` goes: what becomes of the pod in the state engine, seen by a watch of our own.
//!
//! The times of the container's process are the guest's (its clock is set from the host's when it starts).

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use zone::time::now_ns;

/// What is seen of a run, in its order: each phase ends there.
pub const PHASES: [&str; 9] = [
    "CLI, API: the pod is written",
    "its files are made (pods)",
    "the start is asked for (CLI, API)",
    "the start is decided (pods)",
    "unit, monitor, guest: the process runs",
    "the process ends (guest)",
    "the end is known (log, monitor, pods)",
    "the pod is removed",
    "the CLI ends",
];

/// Events as the state engine's watch tells them, and when they came.
type Seen = Arc<Mutex<Vec<(u64, Value)>>>;

/// A watch of pods.
#[derive(Debug)]
pub struct Phases {
    seen: Seen,
}

impl Phases {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the state engine does not answer.
    pub fn begin() -> Result<Self> {
        let mut list = String::new();
        ask("/v1/pod")?.read_to_string(&mut list).context("list the pods")?;
        let list: Value = serde_json::from_str(&list).context("read the list of pods")?;
        let from = list.get("revision").and_then(Value::as_u64).context("the list of pods has no revision")?;
        let lines = ask(&format!("/v1/watch?kinds=pod&from={from}"))?;
        let seen = Seen::default();
        let all = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // A line is a transaction.
                let Ok(Value::Object(mut changes)) = serde_json::from_str(&line) else { continue };
                let Some(Value::Array(events)) = changes.remove("events") else { continue };
                let now = now_ns();
                all.lock().unwrap_or_else(PoisonError::into_inner).extend(events.into_iter().map(|event| (now, event)));
            }
        });
        Ok(Self { seen })
    }

    /// The phases of the run of one container that began and ended then, milliseconds each; forgets what was seen.
    ///
    /// # Errors
    /// When no pod, or not all of one, was seen.
    pub fn of_run(&self, began_ns: u64, ended_ns: u64) -> Result<[f64; PHASES.len()]> {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let mut marks = marks(&seen).context("the watch has not seen all of a pod")?;
        marks.push(ended_ns);
        ensure!(marks.len() == PHASES.len(), "the watch has not seen all of a pod");
        let mut last = began_ns;
        Ok(std::array::from_fn(|index| {
            let at = marks.get(index).copied().unwrap_or(last);
            let took = (at as f64 - last as f64) / 1e6;
            last = at;
            took
        }))
    }
}

fn ask(path: &str) -> Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(zone::paths::MACRO_SOCKET).context("connect to the state engine")?;
    // Version 1.0: the answer is not in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: macro\r\n\r\n").context("ask the state engine")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line).context("read the state engine's answer")? > 2 {
        line.clear();
    }
    Ok(reader)
}

fn marks(seen: &[(u64, Value)]) -> Option<Vec<u64>> {
    let is = |event: &Value, what: &str| event.get("type").and_then(Value::as_str) == Some(what);
    let put = |wanted: &dyn Fn(&Value) -> bool| {
        let mut puts = seen.iter().filter(|(_, event)| is(event, "put"));
        puts.find_map(|(at, event)| event.get("object").filter(|object| wanted(object)).map(|object| (*at, object)))
    };
    let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let phase = |name: &'static str| put(&move |object| text(object, "/status/phase").as_deref() == Some(name));
    let time = |object: &Value, field: &str| {
        let containers = object.pointer("/status/containers")?.as_object()?;
        containers.values().next()?.get(field)?.as_u64()
    };
    let (ended, last) = phase("exited")?;
    Some(vec![
        put(&|_| true)?.0,
        phase("created")?.0,
        put(&|object| text(object, "/spec/desired").as_deref() == Some("running"))?.0,
        phase("starting")?.0,
        time(last, "started_ns")?,
        time(last, "finished_ns")?,
        ended,
        seen.iter().find(|(_, event)| is(event, "delete"))?.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_phases_of_a_run_are_between_what_was_seen_of_its_pod() {
        let put = |at: u64, phase: &str, desired: &str, containers: Value| {
            let object = json!({"spec": {"desired": desired}, "status": {"phase": phase, "containers": containers}});
            (at, json!({"type": "put", "revision": at, "object": object}))
        };
        let mut seen = vec![
            put(1_000_000, "pending", "stopped", json!({})),
            put(3_000_000, "created", "stopped", json!({})),
            put(6_000_000, "created", "running", json!({})),
            put(10_000_000, "starting", "running", json!({})),
            put(25_000_000, "exited", "running", json!({"c": {"started_ns": 15_000_000, "finished_ns": 20_000_000}})),
        ];
        assert!(marks(&seen).is_none());
        seen.push((30_000_000, json!({"type": "delete", "revision": 9, "object": {}})));
        let phases = Phases { seen: Arc::new(Mutex::new(seen)) };
        let took = phases.of_run(0, 36_000_000).unwrap();
        assert_eq!(took.map(|ms| ms.round() as u64), [1, 2, 3, 4, 5, 5, 5, 5, 6]);
    }
}
