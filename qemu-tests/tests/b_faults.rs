//! Any service may be killed at any moment: running pods never notice, and their logs go on.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, inside, monitors, shell, wait_for};

const SERVICES: [&str; 8] = ["macro", "images", "storage", "vpc", "pods", "node", "web-ui", "docker-api"];

fn lines(name: &str) -> Vec<u64> {
    docker(&["logs", name]).ok().lines().map(|l| l.parse().unwrap()).collect()
}

#[test]
fn a_pod_runs_on_and_its_log_has_no_gap_while_each_service_is_killed_in_turn() {
    busybox();
    let _clean = CleanUp::containers(&["counter"]);
    let script = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";
    let _ = docker(&["run", "-d", "--name", "counter", "busybox", "sh", "-c", script]).ok();
    let monitor = monitors();
    for service in SERVICES {
        let unit = format!("kraud-{service}.service");
        let _ = inside(&["systemctl", "kill", "--signal=SIGKILL", &unit]).ok();
        wait_for(&format!("{unit} after its kill"), || {
            let state = inside(&["systemctl", "is-active", &unit]).out;
            if state == "active\n" { Ok(()) } else { Err(state) }
        });
        let seen = wait_for("the docker API", || {
            let said = docker(&["logs", "counter"]);
            if said.code == 0 { Ok(said.out.lines().count()) } else { Err(said.err) }
        });
        wait_for(&format!("new lines after {unit} was killed"), || {
            let now = lines("counter").len();
            if now > seen { Ok(()) } else { Err(format!("{now} lines")) }
        });
    }
    assert_eq!(monitors(), monitor, "the monitor is another one");
    let all = lines("counter");
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    assert_eq!(docker(&["exec", "counter", "echo", "alive"]).ok(), "alive\n");
}

#[test]
fn a_tampered_service_image_does_not_start_and_says_why() {
    let script = "cp /usr/lib/kraud/services/node.tar.gz /tmp/bad.tar.gz && printf x >> /tmp/bad.tar.gz && \
                  /usr/bin/bali run /tmp/bad.tar.gz -- --help";
    let said = shell(script);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("/tmp/bad.tar.gz"), "{}", said.err);
}
