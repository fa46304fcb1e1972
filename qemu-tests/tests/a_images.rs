//! Images from source to a registry, as a docker user sees it: build, commit, push, pull, and a compose project.
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stderr)]

use qemu_tests::{
    CleanUp, Said, busybox, docker, docker_command, docker_with_input, folder, inside, variable, wait_for,
};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// `docker build` as clients without BuildKit do it.
fn build(args: &[&str]) -> Said {
    let mut command = docker_command(&[&["build"], args].concat());
    command.env("DOCKER_BUILDKIT", "0").output().unwrap().into()
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

const DOCKERFILE: &str = r#"
ARG BASE=busybox
FROM ${BASE} AS build
ARG WHO=nobody
WORKDIR /src/work
COPY --chmod=0640 src/ .
RUN <<END
mkdir out
echo "hello $WHO" > out/greeting
ln out/greeting out/second
rm /etc/group
touch /etc/passwd
END
FROM scratch AS unused
COPY none /

FROM busybox
COPY --from=build --chown=7:8 /src/work/out /app
COPY <<conf <<more /etc/app/
key=${KEY}
conf
second
more
ENV KEY=value
RUN ["sh", "-c", "id -u > /uid; cat /app/greeting"]
USER 65534
HEALTHCHECK --interval=5s CMD true
ENTRYPOINT ["cat"]
CMD ["/app/greeting"]
"#;

#[test]
fn i01_a_dockerfile_is_built_in_microvms_and_again_from_the_cache() {
    busybox();
    let dir = folder("build");
    write(
        &dir,
        &[("Dockerfile", DOCKERFILE), ("src/a.txt", "a"), ("src/secret", "s"), (".dockerignore", "src/secret\n")],
    );
    let path = dir.to_str().unwrap();
    let args = ["-t", "built", "--build-arg", "WHO=zone", "--label", "made=here", path];
    let first = build(&args).ok();
    assert!(first.contains("Successfully tagged built:latest") && first.contains("hello zone"), "{first}");
    assert!(!first.contains("unused"), "a stage that nothing needs was built: {first}");
    assert_eq!(docker(&["run", "--rm", "built"]).ok(), "hello zone\n");
    let facts = docker(&[
        "run",
        "--rm",
        "--entrypoint",
        "sh",
        "built",
        "-c",
        "stat -c '%u:%g %h' /app/second; cat /uid /etc/app/conf; id -u",
    ]);
    assert_eq!(facts.ok(), "7:8 1\n0\nkey=\n65534\n");
    let label = docker(&["inspect", "-f", "{{.Config.Labels.made}} {{.Config.Env}}", "built"]).ok();
    assert!(label.starts_with("here ") && label.contains("KEY=value"), "{label}");
    let id = docker(&["inspect", "-f", "{{.Id}}", "built"]).ok();
    let again = build(&args).ok();
    assert_eq!(again.matches("Using cache").count(), again.matches("Step ").count() - 2, "{again}");
    assert_eq!(docker(&["inspect", "-f", "{{.Id}}", "built"]).ok(), id);
    let ignored = build(&["-q", "--target", "build", path]).ok();
    let seen = docker(&["run", "--rm", ignored.trim(), "ls", "/src/work", "/etc"]).ok();
    assert!(seen.contains("a.txt") && !seen.contains("secret") && !seen.contains("group"), "{seen}");
    // The last step's container goes while the answer is on its way.
    wait_for("the end of the steps' containers", || {
        let left = docker(&["ps", "-aq", "--filter", "label=io.kraudbox.build"]).ok();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn i02_a_step_that_fails_says_which_and_buildkit_is_told_what_to_do() {
    busybox();
    let dir = folder("build-bad");
    write(&dir, &[("Dockerfile", "FROM busybox\nRUN echo before; exit 3\n")]);
    let failed = build(&[dir.to_str().unwrap()]);
    assert_ne!(failed.code, 0);
    assert!(failed.err.contains("returned a non-zero code: 3"), "{}", failed.err);
    write(&dir, &[("Dockerfile", "FROM busybox\nCOPY nothing /\n")]);
    let failed = build(&[dir.to_str().unwrap()]);
    assert!(failed.err.contains("nothing") && failed.code != 0, "{}", failed.err);
}

#[test]
fn i03_a_containers_changes_become_an_image() {
    busybox();
    let _clean = CleanUp::containers(&["change"]);
    let script = "rm /etc/group; mkdir /new; echo x > /new/file; chmod 700 /home; exec sleep 600";
    let _ = docker(&["run", "-d", "--name", "change", "busybox", "sh", "-c", script]).ok();
    wait_for("the change", || {
        let said = docker(&["exec", "change", "cat", "/new/file"]);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
    let id = docker(&["commit", "-m", "changed", "-c", "CMD [\"cat\",\"/new/file\"]", "change", "changed:1"]).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(docker(&["run", "--rm", "changed:1"]).ok(), "x\n");
    let seen = docker(&["run", "--rm", "changed:1", "sh", "-c", "ls /etc; stat -c %a /home /tmp"]).ok();
    assert_eq!(seen, "hostname\nhosts\npasswd\nresolv.conf\n700\n1777\n");
    assert!(docker(&["history", "changed:1"]).ok().contains("changed"));
    assert_eq!(docker(&["inspect", "-f", "{{.State.Status}}", "change"]).ok(), "running\n");
}

/// A registry that the zone reaches; none where there is no docker-registry.
struct Registry {
    name: String,
    _child: Option<Running>,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const UNIT: &str = "test-registry";

fn registry() -> Option<Registry> {
    if let Some(program) = std::env::var_os("KRAUD_DOCKER_REGISTRY") {
        // On the developer's machine, which the zone sees at 10.0.2.2.
        let dir = folder("registry");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        write(&dir, &[("registry.yml", &config(port, &dir.join("files")))]);
        let mut command = Command::new(program);
        command.arg("serve").arg(dir.join("registry.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Running(command.spawn().unwrap());
        wait_for("the registry's start", || TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string()));
        let name = format!("10.0.2.2:{port}");
        let settings = format!("echo '{{\"insecure-registries\": [\"{name}\"]}}' > /zone/images/registries.json");
        let _ = inside(&["sh", "-c", &settings]).ok();
        return Some(Registry { name, _child: Some(child) });
    }
    if inside(&["sh", "-c", "command -v docker-registry"]).code != 0 {
        eprintln!("skipped: there is no docker-registry, neither in KRAUD_DOCKER_REGISTRY nor in the image");
        return None;
    }
    let script = format!("printf '%s' '{}' > /run/{UNIT}.yml", config(5000, Path::new("/run/test-registry")));
    let _ = inside(&["sh", "-c", &script]).ok();
    let _ = inside(&["systemctl", "stop", UNIT]);
    let _ =
        inside(&["systemd-run", "--collect", "-u", UNIT, "docker-registry", "serve", &format!("/run/{UNIT}.yml")]).ok();
    Some(Registry { name: "127.0.0.1:5000".into(), _child: None })
}

fn config(port: u16, files: &Path) -> String {
    format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
        files.display()
    )
}

#[test]
fn i04_images_are_pushed_to_a_registry_and_pulled_by_tag_digest_and_platform() {
    busybox();
    let Some(registry) = registry() else { return };
    let name = format!("{}/team/box:1", registry.name);
    let _ = docker(&["tag", "busybox", &name]).ok();
    let pushed = wait_for("the push", || {
        let said = docker(&["push", &name]);
        if said.code == 0 { Ok(said.out) } else { Err(said.err) }
    });
    let digest = pushed.split("digest: ").nth(1).and_then(|d| d.split_whitespace().next()).unwrap().to_owned();
    let _ = docker(&["rmi", &name]).ok();
    let pulled = docker(&["pull", &name]).ok();
    assert!(pulled.contains(&digest) && pulled.contains("Status: "), "{pulled}");
    let by_digest = format!("{}/team/box@{digest}", registry.name);
    let _ = docker(&["pull", &by_digest]).ok();
    assert_eq!(docker(&["run", "--rm", &by_digest, "echo", "from the registry"]).ok(), "from the registry\n");
    assert!(docker(&["pull", &format!("{}/team/none:1", registry.name)]).code != 0);
    let other = docker(&["pull", "--platform", "linux/arm64", &name]);
    assert!(other.code != 0 && other.err.contains("linux/arm64"), "{}", other.err);
    let _ = docker(&["rmi", &name]).ok();
}

/// docker-compose of the tools that the zone was started with.
fn compose(project: &Path, args: &[&str]) -> Option<Said> {
    let tools = PathBuf::from(variable("KRAUD_BUSYBOX"));
    let program = tools.parent()?.parent()?.join("libexec/docker/cli-plugins/docker-compose");
    if !program.is_file() {
        eprintln!("skipped: there is no docker-compose");
        return None;
    }
    let mut command = Command::new(program);
    command.arg("compose").args(["-p", "shop", "--project-directory"]).arg(project).args(args);
    Some(command.env("DOCKER_BUILDKIT", "0").stdin(Stdio::null()).output().unwrap().into())
}

const PROJECT: &str = r#"
services:
  store:
    image: busybox
    command: sh -c 'httpd -p 80 -h /data && exec sleep 600'
    volumes: ["data:/data"]
    networks: [back]
  web:
    build: .
    depends_on: [store]
    environment: { GREETING: "hello ${WHO:-compose}" }
    networks: [back, front]
    ports: ["18090:80"]
volumes: { data: {} }
networks: { back: { internal: true }, front: {} }
"#;

#[test]
fn i05_a_compose_project_comes_up_once_is_used_and_goes_away() {
    if std::env::var_os("KRAUD_FULL").is_none_or(|full| full != "1") {
        eprintln!("skipped: it takes minutes; `cargo appliance test --full` runs it");
        return;
    }
    busybox();
    let dir = folder("compose");
    let dockerfile = "FROM busybox\nRUN mkdir /www\nCMD [\"sh\", \"-c\", \"echo $GREETING > /www/index.html; exec httpd -f -p 80 -h /www\"]\n";
    write(&dir, &[("compose.yaml", PROJECT), ("Dockerfile", dockerfile)]);
    let Some(down) = compose(&dir, &["down", "-v", "-t", "1"]) else { return };
    assert_eq!(down.code, 0, "{}", down.err);
    let run = |args: &[&str]| compose(&dir, args).unwrap();
    let up = run(&["up", "-d"]);
    assert_eq!(up.code, 0, "{} {}", up.out, up.err);
    let ids = run(&["ps", "-q"]).ok();
    assert_eq!(ids.lines().count(), 2, "{ids}");
    assert!(wait_for("the page", || qemu_tests::http_get("127.0.0.1:18090", "/index.html")).contains("hello compose"));
    let said = run(&["exec", "-T", "store", "sh", "-c", "echo kept > /data/file; echo done"]);
    assert_eq!(said.ok(), "done\n");
    let said = run(&["exec", "-T", "web", "sh", "-c", "wget -qO- http://store/file"]);
    assert_eq!(said.ok(), "kept\n");
    let _ = run(&["up", "-d"]).ok();
    assert_eq!(run(&["ps", "-q"]).ok(), ids, "up twice changed something");
    assert_eq!(run(&["port", "web", "80"]).ok(), "0.0.0.0:18090\n");
    assert_eq!(run(&["up", "-d", "--scale", "store=2"]).code, 0);
    assert_eq!(run(&["ps", "-q", "store"]).ok().lines().count(), 2);
    let down = run(&["down", "-v", "-t", "1"]);
    assert_eq!(down.code, 0, "{}", down.err);
    assert_eq!(docker(&["ps", "-aq", "--filter", "label=com.docker.compose.project=shop"]).ok(), "");
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", "label=com.docker.compose.project=shop"]).ok(), "");
    assert_eq!(docker(&["network", "ls", "-q", "--filter", "label=com.docker.compose.project=shop"]).ok(), "");
}

#[test]
fn i06_a_root_file_system_is_imported_and_an_image_saved_and_loaded() {
    busybox();
    let archive = docker_command(&["save", "busybox"]).output().unwrap().stdout;
    let said = docker_with_input(&["load"], &archive).ok();
    assert!(said.contains("Loaded image: busybox:latest"), "{said}");
    let cut = docker_with_input(&["load"], &archive[..archive.len() / 2]);
    assert!(cut.code != 0 && cut.err.contains("ends"), "{} {}", cut.out, cut.err);
}
