//! Libraries that speak the Docker API, against the zone: docker-py.
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stderr)]

use qemu_tests::{Said, busybox, folder, full};
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
