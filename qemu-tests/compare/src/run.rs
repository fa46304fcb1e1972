//! Runs a table on both engines at once and compares what they answer.

use crate::differ::{Difference, differences};
use crate::http::{Answer, Request, ask};
use crate::normal;
use crate::table::{Compare, Step};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// How long a condition of a step may take to come true.
const PATIENCE: Duration = Duration::from_secs(90);
/// Headers that are compared, besides those of a path's description.
const HEADERS: [&str; 8] = [
    "content-type",
    "docker-experimental",
    "ostype",
    "builder-version",
    "swarm",
    "cache-control",
    "pragma",
    "location",
];

/// One engine and what was kept of its answers.
#[derive(Debug)]
pub struct Engine {
    socket: PathBuf,
    kept: BTreeMap<String, String>,
}

/// What a call showed.
#[derive(Debug)]
pub struct Outcome {
    /// The call, with its version.
    pub call: String,
    /// What differs.
    pub differences: Vec<Difference>,
}

impl Engine {
    /// An engine at a socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, kept: BTreeMap::new() }
    }

    fn fill(&self, text: &str) -> String {
        self.kept.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
    }

    fn request(&self, step: &Step, version: u32) -> Result<Request> {
        let (method, path) = step.method_and_path();
        let prefix = if version == 0 { String::new() } else { format!("/v1.{version}") };
        let mut headers: Vec<(String, String)> = step.headers.iter().map(|(n, v)| (n.clone(), self.fill(v))).collect();
        let body = match (&step.body, &step.text, &step.tar) {
            (Some(json), ..) => {
                if !step.headers.contains_key("Content-Type") {
                    headers.push(("Content-Type".into(), "application/json".into()));
                }
                self.fill(&json.to_string()).into_bytes()
            }
            (None, Some(text), _) => self.fill(text).into_bytes(),
            (None, None, Some(files)) => tar_of(files)?,
            (None, None, None) => Vec::new(),
        };
        let path = encoded(&format!("{prefix}{}", self.fill(path)));
        Ok(Request {
            method: method.into(),
            path,
            headers,
            body,
            stream: step.stream.clone(),
            websocket: step.websocket.clone(),
        })
    }

    /// Makes the call, again until the step's condition holds.
    fn call(&mut self, step: &Step, version: u32) -> Result<Value> {
        if let Some(name) = &step.clock {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is wrong")?;
            self.kept.insert(name.clone(), format!("{}.{:09}", now.as_secs(), now.subsec_nanos()));
        }
        let request = self.request(step, version)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(&self.socket, &request)?;
            let body = body_of(&answer);
            let seen = |pointer: &String| body.pointer(pointer).cloned().unwrap_or_default();
            if step.until.iter().all(|(pointer, wanted)| seen(pointer) == *wanted) {
                for (name, pointer) in &step.keep {
                    let value = match seen(pointer) {
                        Value::String(text) => text,
                        Value::Null => bail!("the answer has no {pointer} to keep: {body}"),
                        other => other.to_string(),
                    };
                    self.kept.insert(name.clone(), value);
                }
                return Ok(describe(&answer, &body));
            }
            if Instant::now() > deadline {
                bail!("{:?} does not come true; last answer: {body}", step.until);
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn normal(&self, mut answer: Value) -> Value {
        // Longest first, so that a value that holds another is replaced whole.
        let mut known: Vec<(String, String)> =
            self.kept.iter().filter(|(_, v)| v.len() > 11).map(|(n, v)| (n.clone(), v.clone())).collect();
        known.sort_by_key(|(_, v)| std::cmp::Reverse(v.len()));
        normal::normalise(&mut answer, &known);
        answer
    }
}

/// The tables have filters as JSON; on the wire they are encoded.
fn encoded(path: &str) -> String {
    let one = |c: char| match c {
        '"' | '{' | '}' | '[' | ']' | '<' | '>' | ' ' => format!("%{:02X}", u32::from(c)),
        other => other.to_string(),
    };
    path.chars().map(one).collect()
}

fn tar_of(files: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        header.set_mtime(1_767_225_600);
        tar.append_data(&mut header, path, text.as_bytes()).context("pack a body")?;
    }
    tar.into_inner().context("pack a body")
}

/// The body as JSON: a value, a list of lines that are JSON, or text.
fn body_of(answer: &Answer) -> Value {
    if answer.body.is_empty() {
        return Value::Null;
    }
    if let Ok(value) = serde_json::from_slice(&answer.body) {
        return value;
    }
    let lines: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(&answer.body).into_iter().collect();
    match lines {
        Ok(lines) if answer.body.starts_with(b"{") => Value::Array(lines),
        _ => Value::String(text_of(&answer.body)),
    }
}

/// Text; archives as the list of their members.
fn text_of(body: &[u8]) -> String {
    if body.len() > 512 && body[257..].starts_with(b"ustar") {
        let mut archive = tar::Archive::new(body);
        let names = archive.entries().into_iter().flatten().flatten().map(|e| {
            let header = e.header();
            let path = e.path().map(|p| p.display().to_string()).unwrap_or_default();
            format!("{path} {:o} {}", header.mode().unwrap_or_default(), header.size().unwrap_or_default())
        });
        return names.collect::<Vec<_>>().join("\n");
    }
    String::from_utf8_lossy(body).into_owned()
}

fn describe(answer: &Answer, body: &Value) -> Value {
    let mut headers = Map::new();
    for name in HEADERS {
        if let Some(value) = answer.header(name) {
            headers.insert(name.into(), json!(value));
        }
    }
    if let Some(stat) = answer.header("x-docker-container-path-stat") {
        let decoded = base64::engine::general_purpose::STANDARD.decode(stat).unwrap_or_default();
        headers.insert("stat".into(), serde_json::from_slice(&decoded).unwrap_or_else(|_| json!(stat)));
    }
    json!({"status": answer.status, "headers": headers, "body": body})
}

/// Runs one step on both engines; an outcome for each version.
///
/// # Errors
/// When an engine breaks the connection or a condition does not come true.
pub fn step(peer: &mut Engine, ours: &mut Engine, step: &Step) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for version in step.versions() {
        let (theirs, own) = std::thread::scope(|scope| {
            let theirs = scope.spawn(|| peer.call(step, version));
            let own = ours.call(step, version).context("the zone");
            (theirs.join(), own)
        });
        let theirs = theirs.map_err(|_| anyhow::anyhow!("the thread of Docker Engine panicked"))?;
        let theirs = theirs.context("Docker Engine");
        let (theirs, own) = match (theirs, own) {
            (Ok(theirs), Ok(own)) => (theirs, own),
            (Err(theirs), Err(own)) => bail!("both: {theirs:#}; {own:#}"),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let (mut theirs, mut own) = (peer.normal(theirs), ours.normal(own));
        if step.compare == Compare::Nothing {
            continue;
        }
        if step.compare == Compare::Status {
            for answer in [&mut theirs, &mut own] {
                answer["body"] = Value::Null;
            }
        }
        let prefix = if version == 0 { String::new() } else { format!(" (1.{version})") };
        outcomes.push(Outcome {
            call: format!("{}{prefix}", step.call),
            differences: differences(&theirs, &own, step.compare == Compare::Shape),
        });
    }
    Ok(outcomes)
}
