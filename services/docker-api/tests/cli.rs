//! The real docker CLI against this service with a real state engine. In the place of the reconcilers stands a small
//! double that "runs" a pod by writing its log and status, and answers for the agent; so everything between the CLI
//! and the state engine's resources is what is in the image.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zone::client::{Client, Event, Operation};
use zone::image::{Image, ImageSpec, ImageStatus};
use zone::log::{Data, Record};
use zone::network::{Network, NetworkName, NetworkSpec, NetworkStatus};
use zone::pod::{ContainerName, ContainerStatus, Desired, Phase, Pod, StartError, StartErrorKind};
use zone::time::now_ns;
use zone::volume::{Volume, VolumeStatus};
use zone::{ContainerId, Kind, Resource};

/// Longest wait for anything here; a loaded machine needs seconds, never this.
const DEADLINE: Duration = Duration::from_secs(60);

struct Zone {
    dir: tempfile::TempDir,
    children: Vec<Child>,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Zone {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn state_engine() -> PathBuf {
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_docker-api"));
    let path = ours.with_file_name("kraud-macro");
    if !path.exists() {
        let built =
            Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "kraud-macro"]).status().unwrap();
        assert!(built.success(), "the state engine cannot be built");
    }
    path
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

impl Zone {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let engine = Command::new(state_engine())
            .args([Path::new("--socket"), &path("macro.sock"), Path::new("--state"), &path("state")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the state engine listens", || std::os::unix::net::UnixStream::connect(path("macro.sock")).is_ok());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let double = Arc::new(Double { client: Client::new(path("macro.sock")), dir: dir.path().to_owned() });
        runtime.block_on(double.furnish());
        runtime.spawn(double.run());
        let api = Command::new(env!("CARGO_BIN_EXE_docker-api"))
            .args(["--listen", "none"])
            .args([Path::new("--socket"), &path("docker.sock"), Path::new("--macro-socket"), &path("macro.sock")])
            .args([
                Path::new("--pods-run"),
                &path("run"),
                Path::new("--pods-data"),
                &path("data"),
                Path::new("--images-socket"),
                &path("images.sock"),
            ])
            .stderr(std::fs::File::create(path("api.log")).unwrap())
            .spawn()
            .unwrap();
        let zone = Self { dir, children: vec![engine, api], runtime };
        until("the API answers", || zone.docker(&["version"], "").status.success());
        zone
    }

    fn docker(&self, arguments: &[&str], stdin: &str) -> Output {
        let socket = format!("unix://{}", self.dir.path().join("docker.sock").display());
        let mut child = Command::new("docker")
            .args(["-H", &socket])
            .args(arguments)
            .env("DOCKER_CONFIG", self.dir.path())
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs docker, which has to succeed, and gives its output without the last newline.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments, "");
        assert!(output.status.success(), "docker {arguments:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout).trim_end().to_owned()
    }

    /// Runs docker, which has to fail with `code`, and gives its error.
    fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.docker(arguments, "");
        assert_eq!(
            output.status.code(),
            Some(code),
            "docker {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("api.log")).unwrap_or_default()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Stands for pods, vpc, storage and the agent: `echo` writes its arguments, `cat` what it reads, `sleep` waits for a
/// stop, `false` exits with 1, and there is no other program.
struct Double {
    client: Client,
    dir: PathBuf,
}

impl Double {
    async fn furnish(&self) {
        let id = format!("sha256:{}", "a".repeat(64));
        let config = json!({"architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}});
        let image = ImageSpec { tags: vec!["docker.io/library/busybox:latest".into()], repo_digests: Vec::new() };
        let image_status = ImageStatus { ready: true, config, ..ImageStatus::default() };
        let network = NetworkSpec { name: "bridge".into(), driver: "bridge".into(), ..NetworkSpec::default() };
        let network_id = "7".repeat(64);
        let ready = NetworkStatus { ready: true, subnet: "10.1.0.0/16".into(), ..NetworkStatus::default() };
        self.client
            .transact(vec![
                Operation::create::<Image>(&id, &image, Some(&image_status)).unwrap(),
                Operation::create::<NetworkName>("bridge", &network_id, None).unwrap(),
                Operation::create::<Network>(&network_id, &network, Some(&ready)).unwrap(),
            ])
            .await
            .unwrap();
    }

    async fn run(self: Arc<Self>) {
        let mut watch = self.client.watch(&[Pod::NAME, Volume::NAME, Network::NAME], 0).await.unwrap();
        while let Ok(Some(changes)) = watch.next().await {
            for event in changes.events.iter().filter(|e| matches!(e, Event::Put { .. })) {
                if let Some(pod) = event.resource::<Pod>() {
                    let starts = pod.spec.desired == Desired::Running && pod.spec.starts > pod.status.starts;
                    let stops = pod.spec.desired == Desired::Stopped && pod.status.phase == Phase::Running;
                    if starts {
                        tokio::spawn(self.clone().start(pod));
                    } else if stops {
                        self.exit(&pod, 143).await;
                    }
                }
                if let Some(volume) = event.resource::<Volume>().filter(|v| !v.status.ready) {
                    let ready = VolumeStatus { ready: true, ..VolumeStatus::default() };
                    let _ = self.client.update_status(&volume, &ready).await;
                }
                if let Some(network) = event.resource::<Network>().filter(|n| !n.status.ready) {
                    let ready = NetworkStatus { ready: true, subnet: "10.2.0.0/16".into(), ..NetworkStatus::default() };
                    let _ = self.client.update_status(&network, &ready).await;
                }
            }
        }
    }

    fn record(&self, pod: &Resource<Pod>, data: Data) {
        let dir = self.dir.join("data").join(&pod.meta.name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log.0")).unwrap();
        if file.metadata().unwrap().len() == 0 {
            file.write_all(b"{\"file\":1}\n").unwrap();
        }
        let run = u32::try_from(pod.spec.starts).unwrap();
        let record = Record { run, number: 0, time_ns: now_ns(), container: pod.meta.name.clone(), data };
        file.write_all(&record.to_line()).unwrap();
    }

    async fn status(&self, pod: &Resource<Pod>, phase: Phase, change: impl Fn(&mut ContainerStatus)) {
        let starts = pod.spec.starts;
        self.client
            .modify_status::<Pod>(&pod.meta.name, |status| {
                status.phase = phase;
                status.starts = starts;
                status.run = u32::try_from(starts).unwrap();
                change(status.containers.entry(ContainerId::new(&pod.meta.name)).or_default());
                true
            })
            .await
            .unwrap();
    }

    async fn start(self: Arc<Self>, pod: Resource<Pod>) {
        let args = pod.spec.containers[0].args.clone();
        if !["echo", "cat", "sleep", "false"].contains(&args[0].as_str()) {
            let error = StartError { kind: StartErrorKind::NotFound, message: "not found".into() };
            self.record(&pod, Data::Failed(error.clone()));
            self.status(&pod, Phase::Exited, |c| {
                c.error = Some(error.clone());
                c.exit_code = 127;
            })
            .await;
            return self.removed(&pod).await;
        }
        self.record(&pod, Data::Started { pid: 2 });
        if args[0] == "cat" || args[0] == "sleep" {
            let state = (self.clone(), Arc::new(pod.clone()));
            let router = axum::Router::new()
                .route("/containers/{id}/attach", post(attached))
                .route(
                    "/containers/{id}/exec",
                    post(async || (StatusCode::CREATED, axum::Json(json!({"Id": "e".repeat(64)})))),
                )
                .route(
                    "/containers/{id}/top",
                    get(async || axum::Json(json!({"Titles": ["PID"], "Processes": [["7"]]}))),
                )
                .route("/exec/{id}/start", post(executed))
                .route("/exec/{id}/json", get(async || axum::Json(json!({"Running": false, "ExitCode": 3}))))
                .with_state(state);
            let _ = std::fs::remove_file(self.dir.join("run").join(&pod.meta.name).join("agent.sock"));
            let dir = self.dir.join("run").join(&pod.meta.name);
            std::fs::create_dir_all(&dir).unwrap();
            let listener = tokio::net::UnixListener::bind(dir.join("agent.sock")).unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        let started = now_ns();
        self.status(&pod, Phase::Running, |c| {
            c.started_ns = started;
            c.pid = 2;
        })
        .await;
        match args[0].as_str() {
            "echo" => {
                self.record(&pod, Data::Out(format!("{}\n", args[1..].join(" "))));
                self.record(&pod, Data::Err("done\n".into()));
                self.exit(&pod, 0).await;
            }
            "false" => self.exit(&pod, 1).await,
            _ => {}
        }
    }

    async fn exit(&self, pod: &Resource<Pod>, code: i32) {
        self.record(pod, Data::Exited { code, oom_killed: false });
        let finished = now_ns();
        self.status(pod, Phase::Exited, |c| {
            c.exit_code = code;
            c.finished_ns = finished;
        })
        .await;
        self.removed(pod).await;
    }

    async fn removed(&self, pod: &Resource<Pod>) {
        if !pod.spec.auto_remove {
            return;
        }
        let mut operations = vec![
            Operation::delete::<Pod>(&pod.meta.name),
            Operation::delete::<ContainerName>(&pod.spec.containers[0].name),
        ];
        operations.extend(pod.spec.endpoints.iter().map(|e| Operation::delete::<zone::endpoint::Endpoint>(e.as_str())));
        self.client.transact(operations).await.unwrap();
    }
}

/// What the agent does for `cat`: its input becomes its output, and its end the exit.
async fn attached(
    State((double, pod)): State<(Arc<Double>, Arc<Resource<Pod>>)>,
    mut request: Request,
) -> impl IntoResponse {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut input = String::new();
        stream.read_to_string(&mut input).await.unwrap();
        double.record(&pod, Data::Out(input));
        double.exit(&pod, 0).await;
    });
    (StatusCode::SWITCHING_PROTOCOLS, [("connection", "Upgrade"), ("upgrade", "tcp")])
}

/// An exec gives back its input, as a frame of standard output.
async fn executed(mut request: Request) -> impl IntoResponse {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        let mut input = Vec::new();
        stream.read_to_end(&mut input).await.unwrap();
        let length = u32::try_from(input.len()).unwrap().to_be_bytes();
        stream.write_all(&[&[1, 0, 0, 0][..], &length, &input].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    (StatusCode::SWITCHING_PROTOCOLS, [("connection", "Upgrade"), ("upgrade", "tcp")])
}

#[test]
fn an_exec_carries_both_ways_and_tells_its_exit_code() {
    let zone = Zone::start();
    zone.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "60"]);
    let output = zone.docker(&["exec", "-i", "box", "cat"], "there and back\n");
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("there and back\n", Some(3)),
        "{}{}",
        text(&output.stderr),
        zone.log()
    );
    assert_eq!(zone.ok(&["top", "box"]).lines().collect::<Vec<_>>(), ["PID", "7"]);
    zone.ok(&["rm", "-f", "box"]);
    assert!(zone.fails(&["exec", "box", "true"], 1).contains("No such container: box"));
    let now = format!("{}.{:09}", now_ns() / 1_000_000_000, now_ns() % 1_000_000_000);
    let events =
        zone.ok(&["events", "--since", "1h", "--until", &now, "--filter", "type=container", "--format", "{{.Action}}"]);
    let actions: Vec<&str> = events.lines().collect();
    for action in ["create", "start", "exec_create: cat", "die", "destroy"] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
}

#[test]
fn a_run_shows_all_output_and_the_exit_code_and_leaves_nothing() {
    let zone = Zone::start();
    let output = zone.docker(&["run", "--rm", "busybox", "echo", "hello", "zone"], "");
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("hello zone\n".into(), "done\n".into()),
        "{}",
        zone.log()
    );
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(zone.fails(&["run", "--rm", "busybox", "false"], 1), "");
    assert!(zone.fails(&["run", "--rm", "busybox", "nope"], 127).contains("executable file not found in $PATH"));
    let piped = zone.docker(&["run", "-i", "--rm", "busybox", "cat"], "through the pipe\n");
    assert_eq!(text(&piped.stdout), "through the pipe\n", "{}\n{}", text(&piped.stderr), zone.log());
    assert_eq!(zone.ok(&["ps", "-aq"]), "");
}

#[test]
fn a_container_lives_from_create_to_remove() {
    let zone = Zone::start();
    let id = zone.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "8080:80",
        "-v",
        "data:/data",
        "-l",
        "a=b",
        "busybox",
        "sleep",
        "60",
    ]);
    assert_eq!(id.len(), 64);
    assert_eq!(
        zone.ok(&["ps", "--filter", "label=a=b", "--format", "{{.Names}} {{.State}} {{.Image}}"]),
        "web running busybox"
    );
    let format = "{{.State.Running}} {{.HostConfig.NetworkMode}} {{(index .Mounts 0).Name}} {{.Config.Env}}";
    assert_eq!(zone.ok(&["inspect", "--format", format, &id[..12]]), "true bridge data [PATH=/bin]");
    assert!(zone.fails(&["run", "--name", "web", "busybox"], 125).contains("is already in use by container"));
    assert!(zone.fails(&["rm", "web"], 1).contains("container is running"));
    zone.ok(&["rename", "web", "site"]);
    assert_eq!(zone.ok(&["stop", "-t", "1", "site"]), "site");
    assert_eq!(zone.ok(&["wait", "site"]), "143");
    zone.ok(&["start", "site"]);
    zone.ok(&["kill", "site"]);
    assert_eq!(zone.ok(&["ps", "-a", "--filter", "status=exited", "--format", "{{.Names}}"]), "site");
    assert!(zone.fails(&["volume", "rm", "data"], 1).contains("volume is in use"));
    zone.ok(&["rm", "site"]);
    zone.ok(&["volume", "rm", "data"]);
    assert!(zone.fails(&["inspect", "site"], 1).contains("No such object"));
    let left = zone
        .runtime
        .block_on(Client::new(zone.dir.path().join("macro.sock")).list::<zone::endpoint::Endpoint>())
        .unwrap();
    assert!(left.items.is_empty(), "{:?}", left.items);
}

#[test]
fn logs_come_by_line_with_tail_and_end_when_followed() {
    let zone = Zone::start();
    zone.ok(&["run", "--name", "log1", "busybox", "echo", "one\ntwo"]);
    let output = zone.docker(&["logs", "-f", "log1"], "");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("one\ntwo\n".into(), "done\n".into()));
    assert_eq!(zone.ok(&["logs", "--tail", "2", "log1"]), "two");
    assert!(zone.ok(&["logs", "-t", "log1"]).starts_with("20"));
}

#[test]
fn what_is_not_there_is_said_in_dockers_words() {
    let zone = Zone::start();
    assert!(zone.ok(&["version"]).contains("API version:      1.51 (minimum version 1.24)"));
    assert!(zone.ok(&["info"]).contains("Server Version: 28.5.2+kraudbox"));
    let missing = zone.docker(&["create", "--pull", "never", "alpine"], "");
    assert!(text(&missing.stderr).contains("No such image: alpine:latest"), "{}", text(&missing.stderr));
    assert!(zone.fails(&["logs", "nope"], 1).contains("No such container: nope"));
    assert!(zone.fails(&["node", "ls"], 1).contains("This node is not a swarm manager"));
    assert!(
        zone.fails(&["run", "--mount", "type=bind,source=/etc,target=/x", "busybox"], 125)
            .contains("bind source path does not exist: /etc")
    );
    assert!(zone.fails(&["run", "--network", "nope", "busybox"], 125).contains("network nope not found"));
    zone.ok(&["network", "create", "back"]);
    assert_eq!(zone.ok(&["network", "ls", "--format", "{{.Name}}"]).lines().count(), 4);
    assert!(zone.fails(&["network", "create", "back"], 1).contains("already exists"));
    zone.ok(&["network", "rm", "back"]);
    zone.ok(&["tag", "busybox", "mine:1"]);
    assert_eq!(zone.ok(&["rmi", "mine:1"]), "Untagged: mine:1");
    assert_eq!(zone.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]), "busybox:latest");
    assert_eq!(zone.ok(&["volume", "create", "vol"]), "vol");
}
