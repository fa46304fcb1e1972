//! A step of a build, as the agent sees it: the idle program, an exec beside it, and the layer of what that changed.
//! Skipped, saying so, where it has no root, no namespaces or no busybox.

#![allow(dead_code, clippy::print_stderr, reason = "a skipped test says so; the harness has more than this file needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking"
)]

mod guest;

use guest::{boot, can_run};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Read as _;

#[test]
fn what_an_exec_beside_the_idle_program_changes_is_the_layer() {
    if !can_run() {
        return;
    }
    let guest = boot(&[zone::guest::IDLE_PROGRAM], json!({}));
    assert!(guest.next()["started"]["pid"].as_u64().unwrap() > 1);
    let script = "mkdir -p /opt/new; echo content > /opt/new/file; rm /bin/yes; (sleep 0 &); id -u; exit 3";
    let (said, code) = guest.exec(json!({"Cmd": ["sh", "-c", script], "User": "5:6", "WorkingDir": "/"}), b"");
    assert_ne!(code, 0, "user 5 may not write to /: {said}");
    let (said, code) = guest.exec(json!({"Cmd": ["sh", "-c", script], "Env": ["A=b"]}), b"");
    assert_eq!((said.as_str(), code), ("0\n", 3));
    let answer = guest.request("GET", "/containers/{id}/layer", b"");
    assert_eq!(answer.status, 200, "{}", answer.head);
    let mut layer = BTreeMap::new();
    for entry in tar::Archive::new(&answer.body[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        layer.insert(entry.path().unwrap().display().to_string(), content);
    }
    let names: Vec<&str> = layer.keys().map(String::as_str).collect();
    assert_eq!(names, ["bin/", "bin/.wh.yes", "opt/", "opt/new/", "opt/new/file"]);
    assert_eq!(layer["opt/new/file"], "content\n");
    // It ends when it is told to, like any other.
    assert_eq!(guest.request("POST", "/containers/{id}/kill?signal=SIGTERM", b"").status, 204);
    assert_eq!(guest.finish().last(), Some(&json!({"exited": {"code": 0, "oom_killed": false}})));
}
