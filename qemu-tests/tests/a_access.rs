//! People and programs with certificates of their own: what each may see and do over the network, and how one is taken back.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, Said, appliance, busybox, docker, docker_command, folder};
use std::path::Path;

/// The docker CLI with the certificate in `folder`.
fn docker_as(folder: &Path, args: &[&str]) -> Said {
    docker_command(args).env("DOCKER_CERT_PATH", folder).output().unwrap().into()
}

#[test]
fn u01_a_user_has_one_project_a_reader_looks_and_what_is_taken_back_counts_no_more() {
    const NAMES: &[&str] = &["u01-shop", "u01-other"];
    busybox();
    let _clean = CleanUp::containers(NAMES);
    let dir = folder("access");
    let (user, reader) = (dir.join("user"), dir.join("reader"));
    let client = |args: &[&str], to: &Path| appliance(&[&["client"], args, &["--to", to.to_str().unwrap()]].concat());
    let _ = client(&["u01-ci", "--role", "user", "--project", "shop"], &user).ok();
    let _ = client(&["u01-graphs", "--role", "reader"], &reader).ok();
    let refused = client(&["u01-ci", "--role", "user"], &dir.join("none"));
    assert!(refused.code == 1 && refused.err.contains("a user needs a project"), "{}", refused.err);

    let _ = docker(&["run", "-d", "--name", "u01-other", "busybox", "sleep", "600"]).ok();
    let _ = docker_as(&user, &["run", "-d", "--name", "u01-shop", "busybox", "sleep", "600"]).ok();
    let label = docker(&["inspect", "-f", "{{index .Config.Labels \"kr.project\"}}", "u01-shop"]).ok();
    assert_eq!(label, "shop\n");
    assert_eq!(docker_as(&user, &["ps", "--format", "{{.Names}}"]).ok(), "u01-shop\n");
    let stranger = docker_as(&user, &["rm", "-f", "u01-other"]);
    assert!(stranger.err.contains("No such container"), "{}", stranger.err);
    assert!(docker_as(&user, &["rmi", "busybox"]).err.contains("only the zone's owner"));

    let seen = docker_as(&reader, &["ps", "--format", "{{.Names}}"]).ok();
    assert!(NAMES.iter().all(|name| seen.lines().any(|line| line == *name)), "{seen}");
    assert!(docker_as(&reader, &["stop", "u01-shop"]).err.contains("may only look"));

    let _ = appliance(&["client", "u01-ci", "--take-back"]).ok();
    let back = docker_as(&user, &["ps"]);
    assert!(back.code != 0 && back.err.contains("was taken back"), "{}", back.err);
    assert_eq!(docker_as(&reader, &["ps", "-q", "--filter", "name=none"]).code, 0, "only one name was taken back");
    let _ = std::fs::remove_dir_all(dir);
}
