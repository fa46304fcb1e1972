//! `_ping`, `version`, `info`, `auth`, `system/df`, and what this engine does not have: plugins, swarm, sessions.

use crate::App;
use crate::errors::{Failure, Result};
use crate::version::{ENGINE, MAX, MIN};
use crate::{containers, events, images, volumes};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
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
        .route("/auth", post(auth))
        .route("/system/df", get(df))
        .route("/plugins", get(async || Json(json!([]))))
        .route("/session", any(no_buildkit))
        .route("/grpc", any(no_buildkit));
    for path in ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"] {
        routes =
            routes.route(path, any(async || no_swarm())).route(&format!("{path}/{{*rest}}"), any(async || no_swarm()));
    }
    routes
}

/// The answer to everything about swarms.
#[must_use]
pub fn no_swarm() -> Failure {
    Failure::unavailable(
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}

async fn no_buildkit() -> Failure {
    Failure::not_found("page not found")
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

async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(describe_info(&app, &node(&app)))
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
        "Plugins": {"Volume": ["local", "lv2", "nfs"], "Network": ["bridge", "null"], "Authorization": null, "Log": ["json-file", "local"]},
        "MemoryLimit": true,
        "SwapLimit": false,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": false,
        "CPUSet": false,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "Debug": false,
        "NFd": 0,
        "OomKillDisable": false,
        "NGoroutines": 0,
        "SystemTime": crate::names::time(zone::time::now_ns()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "systemd",
        "CgroupVersion": "2",
        "NEventsListener": 0,
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
        "SecurityOptions": ["name=microvm"],
        "FirewallBackend": {"Driver": "nftables"},
        "CDISpecDirs": [],
        "Warnings": null,
    })
}

/// Checks a login: there is nothing to check it against until an image is pulled, so it only has to be one.
async fn auth(body: Bytes) -> Result<Json<Value>> {
    let login: Value = serde_json::from_slice(&body).map_err(|e| Failure::invalid(format!("invalid JSON: {e}")))?;
    if !login.is_object() {
        return Err(Failure::invalid("a login is wanted"));
    }
    Ok(Json(json!({"Status": "Login Succeeded", "IdentityToken": ""})))
}

async fn df(State(app): State<Arc<App>>) -> Json<Value> {
    let world = app.store.world();
    // Layers count once, however many images have them.
    let layers: std::collections::BTreeMap<&str, u64> =
        world.images.values().flat_map(|i| &i.status.layers).map(|l| (l.id.as_str(), l.size)).collect();
    Json(json!({
        "LayersSize": layers.values().sum::<u64>(),
        "Images": world.images.values().map(|i| images::summary(&world, i)).collect::<Vec<_>>(),
        "Containers": world.containers().map(|c| containers::summary(&world, &c, true)).collect::<Vec<_>>(),
        "Volumes": world.volumes.values().map(|v| volumes::with_usage(&world, v)).collect::<Vec<_>>(),
        "BuildCache": [],
    }))
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
