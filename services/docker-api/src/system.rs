//! `_ping`, `version`, `info`, `system/df`, and what this engine does not have: plugins, swarm.

use crate::App;
use crate::errors::{Failure, Result};
use crate::fields::{Answer, fit};
use crate::filters::Params;
use crate::version::{ApiVersion, ENGINE, MAX, MIN};
use crate::{containers, events, images, volumes};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use zone::service::NodeStatus;

/// The routes of the system.
pub fn routes() -> Router<Arc<App>> {
    let mut routes = Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/events", get(events::events))
        .route("/system/df", get(df))
        .route("/plugins", get(async || Json(json!([]))))
        .route("/plugins/privileges", any(no_plugin_installation))
        .route("/plugins/pull", any(no_plugin_installation))
        .route("/plugins/create", any(no_plugin_installation))
        .route("/plugins/{*rest}", any(no_such_plugin))
        .route("/containers/{id}/checkpoints", any(no_checkpoints))
        .route("/containers/{id}/checkpoints/{*rest}", any(no_checkpoints));
    for path in ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"] {
        routes = routes.route(path, any(not_in_swarm)).route(&format!("{path}/{{*rest}}"), any(not_in_swarm));
    }
    routes
}

/// The body is read, so that the client can read the answer.
async fn not_in_swarm(uri: axum::http::Uri, body: Bytes) -> Failure {
    drop(body);
    match uri.path() {
        "/swarm/leave" => Failure::unavailable("This node is not part of a swarm"),
        "/swarm/init" | "/swarm/join" => Failure::not_implemented(
            "this engine does not take part in swarms: run it as it is, or use Docker Engine for a swarm",
        ),
        _ => no_swarm(),
    }
}

async fn no_such_plugin(uri: axum::http::Uri, body: Bytes) -> Failure {
    drop(body);
    let rest = uri.path().trim_start_matches("/plugins/");
    let words = ["/json", "/enable", "/disable", "/set", "/push", "/upgrade"];
    let name = words.iter().find_map(|w| rest.strip_suffix(w)).unwrap_or(rest);
    Failure::not_found(format!("plugin \"{name}\" not found"))
}

async fn no_plugin_installation(body: Bytes) -> Failure {
    drop(body);
    Failure::not_implemented(
        "this engine takes no plugins: volumes, networks and logs have the drivers that `docker info` shows",
    )
}

async fn no_checkpoints(body: Bytes) -> Failure {
    drop(body);
    Failure::not_implemented(
        "This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.",
    )
}

/// The answer to everything about swarms.
#[must_use]
pub fn no_swarm() -> Failure {
    Failure::unavailable(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}

async fn ping() -> impl IntoResponse {
    let headers = [
        (header::CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
        (header::PRAGMA.as_str(), "no-cache"),
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
        ("builder-version", "1"),
        ("swarm", "inactive"),
    ];
    (headers, "OK")
}

fn node(app: &App) -> NodeStatus {
    app.store.world().nodes.get("self").map(|n| n.status.clone()).unwrap_or_default()
}

async fn version(State(app): State<Arc<App>>) -> Json<Value> {
    Json(describe_version(&node(&app)))
}

fn describe_version(node: &NodeStatus) -> Value {
    let own = env!("CARGO_PKG_VERSION");
    json!({
        "Platform": {"Name": "kraudbox"},
        "Version": ENGINE,
        "ApiVersion": format!("1.{MAX}"),
        "MinAPIVersion": format!("1.{MIN}"),
        "Os": "linux",
        "Arch": "amd64",
        "Components": [
            {"Name": "Engine", "Version": ENGINE, "Details": {
                "ApiVersion": format!("1.{MAX}"), "Arch": "amd64", "BuildTime": "", "Experimental": "false", "GitCommit": "", "GoVersion": "",
                "KernelVersion": node.kernel, "MinAPIVersion": format!("1.{MIN}"), "Os": "linux"}},
            {"Name": "kcradle", "Version": own, "Details": {"GitCommit": ""}},
        ],
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": node.kernel,
        "BuildTime": "",
    })
}

async fn info(State(app): State<Arc<App>>, version: ApiVersion) -> Json<Value> {
    let mut answer = describe_info(&app, &node(&app));
    fit(Answer::Info, version, &mut answer);
    Json(answer)
}

/// What `docker info` shows under Security Options; a profile gets a line there.
fn security_options(node: &NodeStatus) -> Vec<String> {
    let secure_boot = (!node.secure_boot.is_empty()).then(|| format!("name=secure-boot,profile={}", node.secure_boot));
    std::iter::once("name=microvm".to_owned()).chain(secure_boot).collect()
}

/// How many files this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn describe_info(app: &App, node: &NodeStatus) -> Value {
    let world = app.store.world();
    let count = |state: &str| world.containers().filter(|c| c.state() == state).count();
    let (running, paused, all) = (count("running"), count("paused"), world.containers().count());
    json!({
        "ID": node.machine_id,
        "Containers": all,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": all - running - paused,
        "Images": world.images.len(),
        "Driver": "overlayfs",
        "DriverStatus": [["Layers", "EROFS"], ["Pool", node.pool_health]],
        "Plugins": {"Volume": ["local", "lv2", "nfs"], "Network": ["bridge", "host", "null"], "Authorization": null, "Log": ["json-file", "local"]},
        "MemoryLimit": true,
        "SwapLimit": false,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": false,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "Debug": false,
        "NFd": open_files(),
        "OomKillDisable": false,
        "NGoroutines": tokio::runtime::Handle::try_current().map_or(0, |h| h.metrics().num_alive_tasks()),
        "SystemTime": crate::names::time(zone::time::now_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "systemd",
        "CgroupVersion": "2",
        "NEventsListener": app.events.listeners(),
        "KernelVersion": node.kernel,
        "OperatingSystem": format!("kraudbox {} ({})", node.version, node.variant),
        "OSVersion": node.version,
        "OSType": "linux",
        "Architecture": "x86_64",
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": {"docker.io": {"Name": "docker.io", "Mirrors": [], "Secure": true, "Official": true}},
            "Mirrors": null,
        },
        "NCPU": node.cpus,
        "MemTotal": node.memory_bytes,
        "GenericResources": null,
        "DockerRootDir": zone::paths::POOL_MOUNT,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": node.hostname,
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": ENGINE,
        "Runtimes": {"kcradle": {"path": "kcradle"}},
        "DefaultRuntime": "kcradle",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null},
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "vdocker",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security_options(node),
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": [],
        "Warnings": null,
    })
}

async fn df(State(app): State<Arc<App>>, version: ApiVersion, params: Params) -> Result<Json<Value>> {
    const KINDS: [&str; 4] = ["container", "image", "volume", "build-cache"];
    let kinds: Vec<&str> = if version < ApiVersion(42) { Vec::new() } else { params.all("type").collect() };
    if let Some(unknown) = kinds.iter().find(|k| !KINDS.contains(k)) {
        return Err(Failure::invalid(format!("unknown object type: {unknown}")));
    }
    // What is not asked for is null, not empty.
    let asked = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let world = app.store.world();
    // Layers count once, however many images have them.
    let layers: std::collections::BTreeMap<&str, u64> =
        world.images.values().flat_map(|i| &i.status.layers).map(|l| (l.id.as_str(), l.size)).collect();
    let images = || {
        let one = |i: &Arc<zone::Resource<zone::image::Image>>| {
            let mut summary = images::summary(&world, i);
            images::share(&world, i, &mut summary);
            if summary["RepoDigests"] == json!([]) {
                summary["RepoDigests"] = Value::Null;
            }
            summary
        };
        world.images.values().map(one).collect::<Vec<_>>()
    };
    let containers = || world.containers().map(|c| containers::summary(&world, &c, true)).collect::<Vec<_>>();
    let mut answer = json!({
        "LayersSize": if asked("image") { layers.values().sum::<u64>() } else { 0 },
        "Images": asked("image").then(images),
        "Containers": asked("container").then(containers),
        "Volumes": asked("volume").then(|| world.volumes.values().map(|v| volumes::with_usage(&world, v)).collect::<Vec<_>>()),
        "BuildCache": asked("build-cache").then(Vec::<Value>::new),
    });
    fit(Answer::DiskUsage, version, &mut answer);
    for container in answer["Containers"].as_array_mut().into_iter().flatten() {
        fit(Answer::ContainerSummary, version, container);
    }
    Ok(Json(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_and_version_have_dockers_keys() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/info-1.51.json")).unwrap();
        let app = crate::tests::app();
        let absent = [
            ".Containerd",
            ".Runtimes.runc",
            ".Runtimes.io.containerd.runc.v2",
            ".FirewallBackend.Info",
            ".RegistryConfig.IndexConfigs.127.0.0.1:5000",
        ];
        let mut ours = describe_info(&app, &NodeStatus::default());
        // The runtimes are data.
        ours["Runtimes"] = json!({});
        containers::same_keys("", &golden, &ours, &absent);
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/version-1.51.json")).unwrap();
        containers::same_keys("", &golden, &describe_version(&NodeStatus::default()), &[]);
    }
}
