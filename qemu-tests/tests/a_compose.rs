//! Compose projects, by Debian's docker-compose, against the zone: come up, are used, change, go away.
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stderr)]

use qemu_tests::{Said, busybox, docker, folder, full, http_get, variable, wait_for};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A project in a folder of its own; it is taken down when the test ends, well or not.
struct Project {
    name: &'static str,
    dir: PathBuf,
}

impl Project {
    fn new(name: &'static str, files: &[(&str, &str)]) -> Self {
        let dir = folder(name);
        for (file, content) in files {
            std::fs::write(dir.join(file), content).unwrap();
        }
        let project = Self { name, dir };
        let _ = project.compose(&["down", "-v", "--remove-orphans", "-t", "1"]).ok();
        project
    }

    /// docker-compose of the tools that the zone was started with.
    fn command(&self, args: &[&str]) -> Command {
        let tools = PathBuf::from(variable("KRAUD_BUSYBOX"));
        let program = tools.parent().unwrap().parent().unwrap().join("libexec/docker/cli-plugins/docker-compose");
        assert!(program.is_file(), "there is no docker-compose at {}", program.display());
        let mut command = Command::new(program);
        command.args(["--progress", "plain", "-p", self.name, "--project-directory"]).arg(&self.dir).args(args);
        command.env("DOCKER_BUILDKIT", "0").env("PASSWORD", "se cret").stdin(Stdio::null());
        command
    }

    fn compose(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    fn ok(&self, args: &[&str]) -> String {
        let said = self.compose(args);
        assert_eq!(said.code, 0, "compose {args:?}: {}\n{}", said.out, said.err);
        said.out
    }

    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.name)
    }

    /// The ids of a service's containers that run.
    fn ids(&self, service: &str) -> Vec<String> {
        let service = format!("label=com.docker.compose.service={service}");
        let said = docker(&["ps", "-q", "--filter", &self.label(), "--filter", &service]).ok();
        let mut ids: Vec<_> = said.lines().map(str::to_owned).collect();
        ids.sort();
        ids
    }

    /// What of the project is in the zone: containers, volumes, networks.
    fn left(&self) -> String {
        let label = self.label();
        let lists: [&[&str]; 3] = [&["ps", "-aq"], &["volume", "ls", "-q"], &["network", "ls", "-q"]];
        lists.iter().map(|list| docker(&[list, &["--filter", &label][..]].concat()).ok()).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "-v", "--remove-orphans", "-t", "1"]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

const SHOP: &str = r#"
services:
  store:
    image: busybox
    command: sh -c 'echo the store opens; httpd -p 80 -h /data && touch /tmp/open && exec sleep 600'
    stop_grace_period: 1s
    volumes: ["data:/data"]
    networks: { back: { aliases: [shelf] } }
    secrets: [password]
    healthcheck: { test: ["CMD", "ls", "/tmp/open"], interval: 1s, retries: 60 }
  web:
    image: busybox
    command: sh -c 'echo the web opens; exec httpd -f -p 80 -h /www'
    stop_grace_period: 1s
    depends_on: { store: { condition: service_healthy } }
    environment: { GREETING: "hello ${WHO:-nobody}" }
    configs: [{ source: page, target: /www/index.html }]
    networks: [back, front]
    ports: ["18090:80"]
  tool:
    image: busybox
    profiles: [tools]
    command: sh -c 'cat /run/secrets/password; wget -qO- http://shelf/kept'
    secrets: [password]
    networks: [back]
volumes: { data: {} }
networks: { back: { internal: true }, front: {} }
secrets: { password: { environment: PASSWORD } }
configs: { page: { content: "a page of ${COMPOSE_PROJECT_NAME}" } }
"#;

#[test]
fn i05_a_compose_project_comes_up_once_is_used_and_goes_away() {
    busybox();
    let shop = Project::new("shop", &[("compose.yaml", SHOP)]);
    let _ = shop.ok(&["up", "-d"]);
    let (store, web) = (shop.ids("store"), shop.ids("web"));
    assert_eq!((store.len(), web.len(), shop.ids("tool").len()), (1, 1, 0));
    assert!(shop.ok(&["ps", "store"]).contains("(healthy)"));
    let page = wait_for("the page", || http_get("127.0.0.1:18090", "/index.html"));
    assert!(page.contains("a page of shop"), "{page}");
    assert_eq!(shop.ok(&["exec", "-T", "store", "cat", "/run/secrets/password"]), "se cret");
    let _ = shop.ok(&["exec", "-T", "store", "sh", "-c", "echo kept > /data/kept"]);
    assert_eq!(
        shop.ok(&["exec", "-T", "web", "sh", "-c", "echo $GREETING; wget -qO- http://store/kept"]),
        "hello nobody\nkept\n"
    );
    assert_eq!(shop.ok(&["run", "--rm", "tool"]), "se cretkept\n");

    let again = shop.compose(&["up", "-d"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!((shop.ids("store"), shop.ids("web")), (store, web), "up twice changed something: {}", again.err);

    let logs = shop.ok(&["logs", "--no-color"]);
    assert!(logs.contains("the store opens") && logs.contains("the web opens"), "{logs}");
    assert_eq!(shop.ok(&["port", "web", "80"]), "0.0.0.0:18090\n");
    let top = shop.ok(&["top"]);
    assert!(top.contains("httpd") && top.contains("sleep"), "{top}");
    let _ = shop.ok(&["cp", "web:/www/index.html", shop.dir.join("out").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(shop.dir.join("out")).unwrap(), "a page of shop");
    let _ = shop.ok(&["pause", "web"]);
    assert!(shop.ok(&["ps", "-a", "web"]).contains("(Paused)"));
    let _ = shop.ok(&["unpause", "web"]);

    let _ = shop.ok(&["down", "-v"]);
    assert_eq!(shop.left(), "", "down left something");
}

/// A child that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const BUILT: &str = r#"
services:
  web:
    build: { context: ., args: { WORD: "${WORD:-one}" } }
    stop_grace_period: 1s
    environment: { GREETING: "${GREETING:-hello}" }
    depends_on: { prepare: { condition: service_completed_successfully } }
    volumes: ["data:/www"]
    ports: ["18091:80"]
  prepare:
    image: busybox
    command: sh -c 'echo prepared > /data/index.html'
    volumes: ["data:/data"]
  worker:
    image: busybox
    command: sleep 600
    stop_grace_period: 1s
    network_mode: none
    deploy: { replicas: 2, resources: { limits: { memory: 128M, pids: 50 } } }
volumes: { data: {} }
"#;

const DOCKERFILE: &str = "FROM busybox\nARG WORD\nRUN echo $WORD > /word\nCMD [\"sh\", \"-c\", \"cat /word; exec httpd -f -p 80 -h /www\"]\n";

#[test]
fn i07_a_compose_project_is_built_changed_and_scaled() {
    if !full("it takes minutes") {
        return;
    }
    busybox();
    let project = Project::new("built", &[("compose.yaml", BUILT), ("Dockerfile", DOCKERFILE)]);
    let log = project.dir.join("events");
    let mut events = project.command(&["events", "--json"]);
    let events = Running(events.stdout(std::fs::File::create(&log).unwrap()).stderr(Stdio::null()).spawn().unwrap());
    let _ = project.ok(&["up", "-d"]);
    assert!(wait_for("the page", || http_get("127.0.0.1:18091", "/index.html")).contains("prepared"));
    assert_eq!((project.ids("worker").len(), project.ids("prepare").len()), (2, 0));
    wait_for("the events", || {
        let seen = std::fs::read_to_string(&log).unwrap();
        let all = ["\"create\"", "\"start\"", "\"die\""].iter().all(|what| seen.contains(what));
        if all && seen.contains("\"worker\"") { Ok(()) } else { Err(seen) }
    });
    drop(events);

    // What changes is made anew, the rest stays.
    let (web, workers) = (project.ids("web"), project.ids("worker"));
    let changed: Said = project.command(&["up", "-d"]).env("GREETING", "good day").output().unwrap().into();
    assert_eq!(changed.code, 0, "{}", changed.err);
    assert_ne!(project.ids("web"), web);
    assert_eq!(project.ids("worker"), workers);
    assert!(project.ok(&["exec", "-T", "web", "env"]).contains("GREETING=good day"));
    let built: Said = project.command(&["up", "-d", "--build"]).env("WORD", "two").output().unwrap().into();
    assert_eq!(built.code, 0, "{}", built.err);
    assert_eq!(project.ok(&["exec", "-T", "web", "cat", "/word"]), "two\n");
    assert!(wait_for("the page again", || http_get("127.0.0.1:18091", "/index.html")).contains("prepared"));

    let _ = project.ok(&["up", "-d", "--no-recreate", "--scale", "worker=3"]);
    assert_eq!(project.ids("worker").len(), 3);
    let _ = project.ok(&["up", "-d", "--no-recreate", "--scale", "worker=1"]);
    assert_eq!(project.ids("worker").len(), 1);
    let _ = project.ok(&["restart", "worker"]);
    let _ = project.ok(&["kill", "-s", "KILL", "worker"]);
    assert!(project.ok(&["ps", "-a", "worker"]).contains("Exited (137)"));
    let _ = project.ok(&["start", "worker"]);
    let _ = project.ok(&["stop", "worker"]);
    let _ = project.ok(&["rm", "-f", "worker"]);
    assert!(project.ok(&["ls", "-a"]).contains("built"));
    assert!(project.ok(&["images"]).contains("built-web"));
    let _ = project.ok(&["down", "-v", "--rmi", "local"]);
    assert_eq!(project.left(), "", "down left something");
    assert_ne!(docker(&["image", "inspect", "built-web"]).code, 0);
}
