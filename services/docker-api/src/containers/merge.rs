//! An image's configuration and a request become one: what runs, and what `inspect` shows.
//!
//! Pure functions. The rules are Docker Engine's: a request's entrypoint discards the image's command; environment is
//! merged by name; labels, volumes and ports are joined.

use super::request::{Create, Words};
use crate::errors::{Failure, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The merged configuration.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub env: Vec<String>,
    pub user: String,
    pub cwd: String,
    pub labels: BTreeMap<String, String>,
    pub volumes: BTreeSet<String>,
    pub exposed: BTreeSet<String>,
    pub stop_signal: String,
}

impl Merged {
    /// Program and arguments.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().flatten().chain(self.cmd.iter().flatten()).cloned().collect()
    }
}

/// A list of words; none when it is no list.
pub fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn keys(value: &Value) -> impl Iterator<Item = String> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.clone())
}

/// Merges the image's configuration (`image` is the OCI image configuration's `config`) with a request.
///
/// # Errors
/// 400 when there is nothing to run.
pub fn merge(image: &Value, request: &Create) -> Result<Merged> {
    let text = |wanted: &Option<String>, key: &str| {
        wanted.clone().filter(|v| !v.is_empty()).unwrap_or_else(|| image[key].as_str().unwrap_or_default().to_owned())
    };
    let list = |words: &Option<Words>| words.clone().map(Words::list);
    let (mut entrypoint, mut cmd) = (list(&request.entrypoint), list(&request.cmd).filter(|l| !l.is_empty()));
    if entrypoint.as_ref().is_none_or(Vec::is_empty) {
        cmd = cmd.or_else(|| strings(&image["Cmd"]));
        // An empty list says: no entrypoint; null says: the image's.
        entrypoint = if entrypoint.is_none() { strings(&image["Entrypoint"]) } else { None };
    }
    entrypoint = entrypoint.filter(|l| !l.is_empty());
    // One empty word is how clients say: no entrypoint, not even the image's.
    if entrypoint.as_deref() == Some(&[String::new()]) {
        entrypoint = None;
    }
    let mut labels: BTreeMap<String, String> = image["Labels"]
        .as_object()
        .into_iter()
        .flatten()
        // What concerns the zone is for who makes the container to say, not for an image.
        .filter(|(k, _)| !k.starts_with("kr."))
        .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect();
    labels.extend(request.labels.clone().unwrap_or_default());
    let merged = Merged {
        entrypoint,
        cmd,
        env: merge_env(strings(&image["Env"]).unwrap_or_default(), request.env.clone().unwrap_or_default()),
        user: text(&request.user, "User"),
        cwd: text(&request.working_dir, "WorkingDir"),
        labels,
        volumes: keys(&image["Volumes"]).chain(request.volumes.iter().flat_map(|v| v.keys().cloned())).collect(),
        exposed: keys(&image["ExposedPorts"])
            .chain(request.exposed_ports.iter().flat_map(|v| v.keys().cloned()))
            .map(|port| if port.contains('/') { port } else { format!("{port}/tcp") })
            .collect(),
        stop_signal: text(&request.stop_signal, "StopSignal"),
    };
    match merged.args().first() {
        None => Err(Failure::invalid("no command specified")),
        Some(program) if program.is_empty() => Err(Failure::invalid("the program to run has an empty name")),
        Some(_) => Ok(merged),
    }
}

/// The request first, then what the image has besides; a name without `=` takes the image's away, and stands for that.
fn merge_env(image: Vec<String>, request: Vec<String>) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let wanted: BTreeSet<String> = request.iter().map(|e| name(e)).collect();
    let kept = image.into_iter().filter(|e| !wanted.contains(&name(e)));
    let mut merged: Vec<String> = Vec::new();
    for entry in request.into_iter().chain(kept) {
        match merged.iter_mut().find(|e| name(e) == name(&entry)) {
            Some(same) => *same = entry,
            None => merged.push(entry),
        }
    }
    merged
}

/// `Config` as `inspect` shows it.
#[must_use]
pub fn config_json(raw: &Value, merged: &Merged, hostname: &str) -> Map<String, Value> {
    let set = |keys: &BTreeSet<String>| keys.iter().map(|k| (k.clone(), json!({}))).collect::<Map<_, _>>();
    let mut config = Map::new();
    for key in ["AttachStderr", "AttachStdin", "AttachStdout", "OpenStdin", "StdinOnce", "Tty"] {
        config.insert(key.into(), Value::Bool(raw[key].as_bool().unwrap_or_default()));
    }
    for key in ["Healthcheck", "StopTimeout", "Shell", "NetworkDisabled", "MacAddress"] {
        if !raw[key].is_null() {
            config.insert(key.into(), raw[key].clone());
        }
    }
    config.insert("Cmd".into(), json!(merged.cmd));
    config.insert("Entrypoint".into(), json!(merged.entrypoint));
    config.insert("Env".into(), json!(merged.env));
    config.insert("User".into(), json!(merged.user));
    config.insert("WorkingDir".into(), json!(merged.cwd));
    config.insert("Labels".into(), json!(merged.labels));
    config.insert("Hostname".into(), json!(hostname));
    config.insert("Domainname".into(), json!(raw["Domainname"].as_str().unwrap_or_default()));
    config.insert("Image".into(), raw["Image"].clone());
    config.insert(
        "Volumes".into(),
        if merged.volumes.is_empty() { Value::Null } else { Value::Object(set(&merged.volumes)) },
    );
    if !merged.exposed.is_empty() {
        config.insert("ExposedPorts".into(), Value::Object(set(&merged.exposed)));
    }
    if !merged.stop_signal.is_empty() {
        config.insert("StopSignal".into(), json!(merged.stop_signal));
    }
    config
}

/// `HostConfig` as `inspect` shows it: every key of Docker's, with the request's values where it has any.
#[must_use]
pub fn host_config_json(raw: &Value) -> Value {
    const OPTIONAL: [&str; 8] =
        ["Annotations", "Init", "Mounts", "StorageOpt", "Sysctls", "Tmpfs", "KernelMemoryTCP", "CDIDevices"];
    let mut config: Map<String, Value> = serde_json::from_str(include_str!("defaults.json")).unwrap_or_default();
    for (key, value) in raw.as_object().into_iter().flatten() {
        if !value.is_null() && (config.contains_key(key) || OPTIONAL.contains(&key.as_str())) {
            config.insert(key.clone(), value.clone());
        }
    }
    if config["NetworkMode"] == "default" || config["NetworkMode"] == "" {
        config.insert("NetworkMode".into(), json!("bridge"));
    }
    for (key, default) in [("IpcMode", "private"), ("CgroupnsMode", "private"), ("Runtime", "kcradle")] {
        if config[key] == "" {
            config.insert(key.into(), json!(default));
        }
    }
    if config["RestartPolicy"]["Name"] == "" {
        config.insert("RestartPolicy".into(), json!({"Name": "no", "MaximumRetryCount": 0}));
    }
    if config["LogConfig"]["Type"] == "" || config["LogConfig"]["Type"].is_null() {
        let options = config["LogConfig"]["Config"].as_object().cloned().unwrap_or_default();
        config.insert("LogConfig".into(), json!({"Type": "json-file", "Config": options}));
    }
    // Memory and swap together; the guest has no swap, but this is what without a word of it is meant.
    if let (Some(memory @ 1..), Some(0)) = (config["Memory"].as_i64(), config["MemorySwap"].as_i64()) {
        config.insert("MemorySwap".into(), json!(memory.saturating_mul(2)));
    }
    if config["ShmSize"] == 0 {
        config.insert("ShmSize".into(), json!(64 << 20));
    }
    Value::Object(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &Value, args: &[&str]) {
        let image = json!({"Entrypoint": ["/init"], "Cmd": ["serve"], "Env": ["PATH=/bin", "A=1"]});
        let merged = merge(&image, &serde_json::from_value(request.clone()).unwrap()).unwrap();
        assert_eq!(merged.args(), args, "{request}");
    }

    #[test]
    fn entrypoint_and_command_merge_like_dockers() {
        check(&json!({}), &["/init", "serve"]);
        check(&json!({"Cmd": ["sh", "-c", "x"]}), &["/init", "sh", "-c", "x"]);
        check(&json!({"Entrypoint": ["/bin/sh"]}), &["/bin/sh"]);
        check(&json!({"Entrypoint": [""], "Cmd": ["ls"]}), &["ls"]);
        check(&json!({"Entrypoint": null, "Cmd": null}), &["/init", "serve"]);
        check(&json!({"Entrypoint": [], "Cmd": null}), &["serve"]);
        check(&json!({"Entrypoint": "/one"}), &["/one"]);
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert_eq!(merge(&json!({}), &Create::default()).unwrap_err().message, "no command specified");
    }

    #[test]
    fn the_requests_environment_wins_by_name() {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(merge_env(own(&["P=1", "A=1", "B=1"]), own(&["A=2", "C=3", "B"])), ["A=2", "C=3", "B", "P=1"]);
    }

    #[test]
    fn host_config_has_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/inspect-1.51.json")).unwrap();
        let ours = host_config_json(&json!({"Binds": ["gv:/d"], "NetworkMode": "default"}));
        let names = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&ours), names(&golden["HostConfig"]));
        assert_eq!(ours["NetworkMode"], "bridge");
    }
}
