//! Libraries that speak the Docker API, against the zone: docker-py.
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stderr)]

use qemu_tests::registry::{OPEN, Registries, settings};
use qemu_tests::{Said, busybox, docker, folder, full};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is done with docker-py.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/docker_py.py");

fn run(command: &mut Command) -> Said {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")).into()
}

/// A python that has docker-py: the one that `KRAUD_PYTHON` names, this computer's, else a new environment with it from PyPI.
fn python(dir: &Path) -> PathBuf {
    let own = [std::env::var_os("KRAUD_PYTHON").map(PathBuf::from), Some("python3".into())];
    for python in own.into_iter().flatten() {
        if Command::new(&python).args(["-c", "import docker"]).output().is_ok_and(|said| said.status.success()) {
            return python;
        }
    }
    let _ = run(Command::new("python3").args(["-m", "venv"]).arg(dir)).ok();
    let python = dir.join("bin/python");
    let _ = run(Command::new(&python).args(["-m", "pip", "-q", "install", "docker"])).ok();
    python
}

/// The release of docker-py whose source package ships its integration tests, and what it needs.
const SUITE: [&str; 6] = [
    "docker==6.1.3",
    "requests==2.31.0",
    "urllib3==1.26.20",
    "websocket-client==1.6.4",
    "paramiko==3.5.1",
    "pytest==8.4.2",
];
/// What of the suite passes, and what is left out with the reason.
const SUITE_LIST: &str = include_str!("../clients/docker_py_suite.list");

#[test]
fn p01_docker_py_does_what_it_does_with_docker_engine() {
    if !full("it takes minutes") {
        return;
    }
    busybox();
    let dir = folder("docker-py");
    let mut command = Command::new(python(&dir));
    // Authorities that this computer trusts otherwise would be asked instead of the zone's own.
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        command.env_remove(variable);
    }
    let said = run(command.arg(SCRIPT));
    println!("{}", said.out);
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    let _ = std::fs::remove_dir_all(dir);
}

/// The suite's source from PyPI, unpacked, and a python that can run it.
fn suite(dir: &Path) -> (PathBuf, PathBuf) {
    let _ = run(Command::new("python3").args(["-m", "venv"]).arg(dir)).ok();
    let python = dir.join("bin/python");
    let pip = |args: &[&str]| run(Command::new(&python).args(["-m", "pip", "-q"]).args(args).current_dir(dir)).ok();
    let _ = pip(&[&["install", "pytest-timeout==2.4.0"], SUITE.as_slice()].concat());
    let _ = pip(&["download", "--no-deps", "--no-binary", ":all:", SUITE[0]]);
    let _ = run(Command::new("tar").args(["-xzf", "docker-6.1.3.tar.gz"]).current_dir(dir)).ok();
    (dir.join("docker-6.1.3"), python)
}

#[test]
fn p02_what_passes_of_docker_pys_own_tests_goes_on_passing() {
    if !full("it takes a quarter of an hour and needs PyPI") {
        return;
    }
    busybox();
    let _registries = Registries::start();
    for image in ["alpine:3.10", "alpine:latest", "busybox:latest", "hello-world:latest"] {
        let name = format!("{OPEN}/library/{image}");
        let _ = docker(&["tag", "busybox", &name]).ok();
        let _ = docker(&["push", &name]).ok();
        let _ = docker(&["rmi", &name]).ok();
    }
    settings(&format!("{{\"registry-mirrors\": [\"http://{OPEN}\"]}}"));
    let dir = folder("docker-py-suite");
    let (source, python) = suite(&dir);
    let rows = || SUITE_LIST.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    let mut command = Command::new(python);
    command.args([
        "-m",
        "pytest",
        "-q",
        "--timeout=120",
        "-rA",
        "--tb=short",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]);
    command.env("DOCKER_TEST_API_VERSION", "1.45").current_dir(source).arg("tests/integration");
    for variable in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        command.env_remove(variable);
    }
    for (_, left_out) in rows().filter(|(word, _)| *word == "skip") {
        command.arg(format!("--deselect={}", left_out.split_once(' ').map_or(left_out, |(name, _)| name)));
    }
    let said = run(&mut command);
    let passed = |name: &str| said.out.lines().any(|line| line.strip_prefix("PASSED ").is_some_and(|p| p == name));
    let lost: Vec<_> = rows().filter(|(word, name)| *word == "pass" && !passed(name)).map(|(_, name)| name).collect();
    let now = said.out.lines().filter(|line| line.starts_with("PASSED ")).count();
    println!("{now} pass");
    assert!(lost.is_empty(), "{} are lost: {lost:#?}\n{}", lost.len(), said.out);
    let _ = std::fs::remove_dir_all(dir);
}
