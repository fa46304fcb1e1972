//! What a container wrote, by time and by log driver; and modes of networks that mean something else in a microVM.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, docker_command, inside, wait_for};

#[test]
fn l01_logs_end_at_the_time_that_until_names() {
    busybox();
    let _clean = CleanUp::containers(&["until"]);
    let _ = docker(&[
        "run",
        "-d",
        "--name",
        "until",
        "busybox",
        "sh",
        "-c",
        "echo first; sleep 2; echo second; exec sleep 600",
    ])
    .ok();
    let stamped = wait_for("the second line", || {
        let said = docker(&["logs", "-t", "until"]).ok();
        if said.contains("second") { Ok(said) } else { Err(said) }
    });
    let first = stamped.split_whitespace().next().unwrap();
    assert_eq!(docker(&["logs", "--until", first, "until"]).ok(), "first\n");
    assert_eq!(docker(&["logs", "--since", first, "--until", first, "until"]).ok(), "first\n");
    assert_eq!(docker(&["logs", "--since", "0", "--tail", "1", "until"]).ok(), "second\n");
    // Followed, it ends by itself when that time has come.
    let said = docker(&["logs", "-f", "--until", "1ms", "until"]).ok();
    assert!(said.contains("first"), "{said}");
}

#[test]
fn l02_each_log_driver_keeps_what_it_says() {
    busybox();
    let _clean = CleanUp::containers(&["driver"]);
    let written = |driver: &str| {
        let _ = docker(&["rm", "-f", "driver"]);
        let args = ["run", "--name", "driver", "--log-driver", driver, "busybox", "echo", "written"];
        assert_eq!(docker(&args).ok(), "written\n", "what is attached gets it with any driver");
        docker(&["logs", "driver"])
    };
    assert_eq!(written("local").ok(), "written\n");
    assert_eq!(docker(&["inspect", "-f", "{{.HostConfig.LogConfig.Type}}", "driver"]).ok(), "local\n");
    let none = written("none");
    assert!(none.code != 0 && none.err.contains("configured logging driver does not support reading"), "{}", none.err);
    let unknown = docker(&["run", "--rm", "--log-driver", "syslog", "busybox", "true"]);
    assert!(unknown.code == 125 && unknown.err.contains("error looking up logging plugin syslog"), "{}", unknown.err);
}

#[test]
fn l03_host_mode_publishes_what_is_exposed_and_a_containers_network_cannot_be_shared() {
    busybox();
    let _clean = CleanUp::containers(&["hostmode"]);
    let args = [
        "run",
        "-d",
        "--name",
        "hostmode",
        "--network",
        "host",
        "--expose",
        "8097",
        "busybox",
        "httpd",
        "-f",
        "-p",
        "8097",
        "-h",
        "/etc",
    ];
    let said = docker_command(&args).output().unwrap();
    let warned = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && warned.contains("each port that it exposes"), "{warned}");
    wait_for("the page", || {
        let said = inside(&["busybox", "wget", "-qO-", "http://127.0.0.1:8097/passwd"]);
        if said.out.contains("root:") { Ok(()) } else { Err(said.err) }
    });
    assert_eq!(docker(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", "hostmode"]).ok(), "host\n");
    let shared = docker(&["run", "--rm", "--network", "container:hostmode", "busybox", "true"]);
    assert!(shared.code == 125 && shared.err.contains("sharing another container's network"), "{}", shared.err);
}
