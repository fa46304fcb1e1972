//! The agent in namespaces: what a container's life looks like from the host, without a VM.
//! Each test is skipped, saying so, where it has no root, no namespaces or no busybox.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking"
)]

mod guest;

use guest::{ID, boot, boot_with, can_run, output, unframe};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;

fn exited(code: i32) -> Value {
    json!({"exited": {"code": code, "oom_killed": false}})
}

#[test]
fn hello_comes_before_the_exit() {
    if !can_run() {
        return;
    }
    let records = boot(&["echo", "hello"], json!({})).finish();
    assert_eq!(
        records,
        [json!({"started": {"pid": records[0]["started"]["pid"]}}), json!({"out": "hello\n"}), exited(0)]
    );
}

#[test]
fn exit_codes_and_signals_are_told() {
    if !can_run() {
        return;
    }
    for (script, init, code) in [("exit 7", false, 7), ("exit 3", true, 3), ("kill -9 $$", true, 137)] {
        assert_eq!(boot(&["sh", "-c", script], json!({"init": init})).finish().last(), Some(&exited(code)), "{script}");
    }
}

#[test]
fn a_program_that_cannot_run_fails_in_dockers_words() {
    if !can_run() {
        return;
    }
    for (program, kind, message) in [
        ("nosuch", "not_found", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/bin", "not_executable", "exec: \"/bin\": permission denied"),
    ] {
        assert_eq!(boot(&[program], json!({})).finish(), [json!({"failed": {"kind": kind, "message": message}})]);
    }
    let records = boot(&["id"], json!({"user": "nobody"})).finish();
    assert_eq!(
        records,
        [
            json!({"failed": {"kind": "other", "message": "unable to find user nobody: no matching entries in passwd file"}})
        ]
    );
}

#[test]
fn the_container_sees_itself_alone() {
    if !can_run() {
        return;
    }
    let script = "echo $$; id -u; id -g; pwd; cat /etc/hostname; test -w /proc/sys/kernel/hostname || echo ro; ls /newroot 2>/dev/null; ls -a / | wc -l; echo x > /f && echo writable";
    let records = boot(&["sh", "-c", script], json!({"user": "5:6", "cwd": "/made/here"})).finish();
    let text = String::from_utf8(output(&records, "out").0).unwrap();
    assert!(text.starts_with("1\n5\n6\n/made/here\nguest\nro\n"), "{text}");
    assert!(!text.contains("writable"), "user 5 must not write to /: {text}");
    let records = boot(&["sh", "-c", "echo x > /f"], json!({"readonly_rootfs": true})).finish();
    assert_eq!(records.last(), Some(&exited(1)));
}

#[test]
fn the_interface_is_up_before_the_program() {
    if !can_run() {
        return;
    }
    let nic = json!({"ipv4": "10.1.2.3", "prefix": 24, "gateway": "10.1.2.1", "gateway_mac": "02:00:00:00:00:01", "default_route": true});
    let records =
        boot_with(&["sh", "-c", "ip -4 addr show eth0; ip route; ip neigh"], json!({}), json!({"nics": [nic]}), true)
            .finish();
    let text = String::from_utf8(output(&records, "out").0).unwrap();
    for want in [
        "inet 10.1.2.3/32",
        "default via 10.1.2.1 dev eth0",
        "10.1.2.0/24 via 10.1.2.1 dev eth0",
        "10.1.2.1 dev eth0 lladdr 02:00:00:00:00:01",
    ] {
        assert!(text.contains(want), "{want} in {text}");
    }
}

#[test]
fn ten_megabytes_arrive_whole_though_nobody_reads_at_first() {
    if !can_run() {
        return;
    }
    let script = "i=0; while [ $i -lt 10 ]; do yes 0123456789abcde | head -c 1048576; i=$((i+1)); done; echo end >&2";
    let guest = boot_with(&["sh", "-c", script], json!({}), json!({}), false);
    // The agent answers although the log is full: the container waits, not the agent.
    assert_eq!(guest.request("GET", "/v1/state", b"").json()["containers"][ID]["running"], true);
    let records = guest.finish();
    let (bytes, last) = output(&records, "out");
    assert_eq!((bytes.len(), last), (10 << 20, exited(0)));
    assert!(bytes.chunks(16).all(|line| line == b"0123456789abcde\n"));
    assert_eq!(output(&records, "err").0, b"end\n");
}

#[test]
fn an_attached_client_feeds_stdin_and_reads_everything() {
    if !can_run() {
        return;
    }
    let guest =
        boot(&["sh", "-c", "echo ready; cat; echo end >&2; exit 3"], json!({"open_stdin": true, "stdin_once": true}));
    guest.wait_for("ready");
    let mut stream = guest.upgrade("/containers/{id}/attach?stdin=1&stdout=1&stderr=1&resume=0", &json!({}), b"early ");
    stream.write_all(b"late").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let of =
        |wanted: u8| unframe(&bytes).into_iter().filter(|(s, _)| *s == wanted).flat_map(|(_, b)| b).collect::<Vec<_>>();
    assert_eq!((of(1), of(2)), (b"ready\nearly late".to_vec(), b"end\n".to_vec()));
    assert_eq!(guest.finish().last(), Some(&exited(3)));
}

#[test]
fn a_slow_attached_client_loses_nothing() {
    if !can_run() {
        return;
    }
    let script = "read go; yes 0123456789abcde | head -c 8388608";
    let guest = boot(&["sh", "-c", script], json!({"open_stdin": true}));
    let mut stream = guest.upgrade("/containers/{id}/attach?stdin=1&stdout=1&stderr=1", &json!({}), b"go\n");
    // Small reads with the container far ahead: the ring is full long before the end.
    let (mut bytes, mut buffer) = (Vec::new(), [0u8; 1000]);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(unframe(&bytes).iter().map(|(_, b)| b.len()).sum::<usize>(), 8 << 20);
    assert_eq!(guest.finish().last(), Some(&exited(0)));
}

#[test]
fn a_terminal_has_a_size_that_changes() {
    if !can_run() {
        return;
    }
    let script = "trap 'stty size; exit 0' WINCH; tty; echo ready; while true; do sleep 0.1; done";
    let guest = boot(&["sh", "-c", script], json!({"tty": true}));
    guest.wait_for("ready");
    assert_eq!(guest.request("POST", "/containers/{id}/resize?h=11&w=22", b"").status, 200);
    let records = guest.finish();
    assert_eq!(output(&records, "out"), (b"11 22\r\n".to_vec(), exited(0)));
}

#[test]
fn the_detach_keys_leave_the_terminal_running() {
    if !can_run() {
        return;
    }
    let guest =
        boot(&["sh", "-c", "echo ready; sleep 1000"], json!({"tty": true, "open_stdin": true, "stdin_once": true}));
    guest.wait_for("ready");
    let mut stream = guest.upgrade("/containers/{id}/attach?stdin=1&stdout=1", &json!({}), b"\x10");
    stream.write_all(b"\x11").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(guest.request("GET", "/v1/state", b"").json()["containers"][ID]["running"], true);
}

#[test]
fn execs_join_the_container() {
    if !can_run() {
        return;
    }
    let guest = boot(&["sh", "-c", "echo ready; sleep 1000"], json!({"env": ["A=1"]}));
    guest.wait_for("ready");
    let check = |config: Value, input: &str, want: (&str, i64)| {
        let (text, code) = guest.exec(config.clone(), input.as_bytes());
        assert_eq!((text.as_str(), code), want, "{config}");
    };
    check(
        json!({"Cmd": ["sh", "-c", "cat; echo $A$B; id -u; exit 4"], "Env": ["B=2"], "User": "7"}),
        "in ",
        ("in 12\n7\n", 4),
    );
    check(json!({"Cmd": ["pwd"], "WorkingDir": "/bin"}), "", ("/bin\n", 0));
    check(json!({"Cmd": ["stty", "size"], "Tty": true, "ConsoleSize": [30, 99]}), "", ("30 99\r\n", 0));
    check(json!({"Cmd": ["sh", "-c", "echo x; sleep 1000 &"]}), "", ("x\n", 0));
    check(json!({"Cmd": ["sh", "-c", "kill -9 $$"]}), "", ("", 137));
    let words = |text: &str| {
        format!("OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown\r\n")
    };
    check(json!({"Cmd": ["nosuch"]}), "", (&words("exec: \"nosuch\": executable file not found in $PATH"), 127));
    check(
        json!({"Cmd": ["pwd"], "WorkingDir": "/none"}),
        "",
        (&words("chdir to cwd (\"/none\") set in config.json failed: no such file or directory"), 126),
    );
    let (big, code) = guest.exec(json!({"Cmd": ["sh", "-c", "yes 0123456789abcde | head -c 3145728"]}), b"");
    assert_eq!((big.len(), code), (3 << 20, 0));
    assert_eq!(guest.request("POST", "/shutdown", b"").status, 204);
    assert_eq!(guest.finish().last(), Some(&exited(137)));
}

#[test]
fn a_detached_exec_is_inspected_and_cannot_start_twice() {
    if !can_run() {
        return;
    }
    let guest = boot(&["sleep", "1000"], json!({}));
    let created =
        guest.request("POST", "/containers/{id}/exec", json!({"Cmd": ["sleep", "1000"]}).to_string().as_bytes());
    let id = created.json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(guest.request("POST", &format!("/exec/{id}/start"), b"{\"Detach\":true}").status, 200);
    let inspected = guest.request("GET", &format!("/exec/{id}/json"), b"").json();
    assert_eq!((&inspected["Running"], &inspected["ExitCode"]), (&json!(true), &Value::Null));
    assert_eq!(guest.request("POST", &format!("/exec/{id}/start"), b"{\"Detach\":true}").status, 409);
    assert_eq!(guest.request("GET", "/exec/none/json", b"").status, 404);
}

#[test]
fn files_go_both_ways() {
    if !can_run() {
        return;
    }
    let guest = boot(&["sh", "-c", "mkdir /data; echo text > /data/a; echo ready; sleep 1000"], json!({}));
    guest.wait_for("ready");
    let got = guest.request("GET", "/containers/{id}/archive?path=/data", b"");
    assert!(got.status == 200 && got.head.contains("X-Docker-Container-Path-Stat: "), "{}", got.head);
    let mut archive = tar::Archive::new(got.body.as_slice());
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["data/", "data/a"]);
    // What was taken out goes back in elsewhere, owners kept, in chunks as the docker CLI sends it.
    let mut stream = guest.connect();
    write!(
        stream,
        "PUT /containers/{ID}/archive?path=/bin HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for piece in got.body.chunks(777) {
        write!(stream, "{:x}\r\n", piece.len()).unwrap();
        stream.write_all(piece).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(guest.exec(json!({"Cmd": ["cat", "/bin/data/a"]}), b""), ("text\n".into(), 0));
    let missing = guest.request("HEAD", "/containers/{id}/archive?path=/none", b"");
    assert_eq!((missing.status, missing.body.len()), (404, 0));
    assert_eq!(guest.request("PUT", "/containers/{id}/archive?path=/data/a", b"").status, 400);
    let changes = guest.request("GET", "/containers/{id}/changes", b"").json();
    let want = json!([{"Path": "/bin", "Kind": 0}, {"Path": "/bin/data", "Kind": 1}, {"Path": "/bin/data/a", "Kind": 1}, {"Path": "/data", "Kind": 1}, {"Path": "/data/a", "Kind": 1}]);
    assert_eq!(changes, want);
}

#[test]
fn files_of_a_container_that_does_not_run_can_be_read_but_not_into_a_read_only_root() {
    if !can_run() {
        return;
    }
    let guest = boot_with(&[], json!({"readonly_rootfs": true}), json!({"files_only": true}), true);
    assert_eq!(guest.request("GET", "/containers/{id}/archive?path=/bin/busybox", b"").status, 200);
    let refused = guest.request("PUT", "/containers/{id}/archive?path=/bin", b"");
    assert_eq!(
        (refused.status, refused.json()["message"].clone()),
        (403, json!("container rootfs is marked read-only"))
    );
    assert_eq!(guest.request("POST", "/containers/{id}/exec", b"{\"Cmd\":[\"id\"]}").status, 409);
    assert_eq!(guest.request("POST", "/shutdown", b"").status, 204);
    assert!(guest.finish().is_empty());
}

#[test]
fn an_agent_that_only_has_files_ends_when_nobody_asks_for_any() {
    if !can_run() {
        return;
    }
    let guest = boot_with(&[], json!({}), json!({"files_only": true}), true);
    let open = guest.connect();
    assert_eq!(guest.request("HEAD", "/containers/{id}/archive?path=/bin", b"").status, 200);
    drop(open);
    // No shutdown is asked for.
    assert!(guest.finish().is_empty());
}

#[test]
fn an_export_has_the_root_without_what_is_mounted_in_it() {
    if !can_run() {
        return;
    }
    let mounts = json!({"mounts": [{"type": "tmpfs", "target": "/mem", "size": 0, "mode": 0, "options": ""}]});
    let guest =
        boot(&["sh", "-c", "echo 1 > /mem/gone; mkdir /data; echo 2 > /data/kept; echo ready; sleep 1000"], mounts);
    guest.wait_for("ready");
    let got = guest.request("GET", "/containers/{id}/export", b"");
    let mut archive = tar::Archive::new(got.body.as_slice());
    let names: Vec<String> =
        archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    for (name, there) in [("data/kept", true), ("mem/", true), ("mem/gone", false), ("dev/", true), ("dev/null", false)]
    {
        assert_eq!(names.iter().any(|n| n == name), there, "{name} in {names:?}");
    }
    assert!(names.iter().all(|n| !n.starts_with('/')), "{names:?}");
}

#[test]
fn processes_are_listed_paused_and_killed() {
    if !can_run() {
        return;
    }
    let guest = boot(&["sh", "-c", "echo ready; sleep 1000; true"], json!({}));
    guest.wait_for("ready");
    let top = guest.request("GET", "/containers/{id}/top", b"").json();
    assert_eq!(top["Titles"], json!(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]));
    let commands: Vec<&str> = top["Processes"].as_array().unwrap().iter().map(|p| p[7].as_str().unwrap()).collect();
    assert!(commands.contains(&"sh -c echo ready; sleep 1000; true"), "{commands:?}");
    let stats = guest.request("GET", "/containers/{id}/stats", b"").json();
    assert!(
        stats["cpu_stats"]["system_cpu_usage"].as_u64().unwrap() > 0 && stats["networks"]["eth0"]["rx_bytes"].is_u64(),
        "{stats}"
    );
    assert_eq!(guest.request("POST", "/containers/{id}/pause", b"").status, 204);
    assert_eq!(guest.request("POST", "/containers/{id}/exec", b"{\"Cmd\":[\"id\"]}").status, 409);
    assert_eq!(guest.request("POST", "/containers/{id}/unpause", b"").status, 204);
    assert_eq!(guest.request("POST", "/containers/{id}/kill?signal=SIGNONE", b"").status, 400);
    assert_eq!(guest.request("POST", "/containers/{id}/kill?signal=KILL", b"").status, 204);
    assert_eq!(guest.finish().last(), Some(&exited(137)));
}

#[test]
fn an_empty_volume_gets_the_images_files() {
    if !can_run() {
        return;
    }
    let mounts = json!([
        {"type": "tmpfs", "target": "/scratch/deep", "size": 65536, "mode": 448, "options": ""},
        {"type": "block", "disk": 1, "target": "/bin", "read_only": true, "copy_up": true},
    ]);
    let script = "touch /bin/x || echo read-only; touch /scratch/deep/y && echo memory; ls /bin/busybox";
    let records = boot(&["sh", "-c", script], json!({"mounts": mounts})).finish();
    assert_eq!(output(&records, "out"), (b"read-only\nmemory\n/bin/busybox\n".to_vec(), exited(0)));
}

#[test]
fn a_disk_that_is_not_there_is_named() {
    if !can_run() {
        return;
    }
    let mounts = json!([{"type": "block", "disk": 7, "target": "/v", "read_only": false, "copy_up": false}]);
    let records = boot(&["id"], json!({"mounts": mounts})).finish();
    let message = records[0]["failed"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("mount the volume's disk /dev/vdh for /v"), "{records:?}");
}

#[test]
fn parts_of_an_image_and_a_docker_socket_are_mounted() {
    if !can_run() {
        return;
    }
    let mounts = json!([
        {"type": "image", "disk": 0, "target": "/one", "subpath": "bin/busybox"},
        {"type": "image", "disk": 0, "target": "/part", "subpath": "bin"},
        {"type": "docker_socket", "target": "/var/run/docker.sock"},
    ]);
    let script = "cmp /one /bin/busybox && echo one; test -e /part/busybox && echo part; touch /part/x || echo read-only; \
                  stat -c '%F %a' /var/run/docker.sock";
    let records = boot(&["sh", "-c", script], json!({"mounts": mounts})).finish();
    assert_eq!(output(&records, "out"), (b"one\npart\nread-only\nsocket 660\n".to_vec(), exited(0)), "{records:?}");
}

#[test]
fn a_part_that_leads_out_is_refused() {
    if !can_run() {
        return;
    }
    let mounts = json!([{"type": "image", "disk": 0, "target": "/v", "subpath": "../disk0/bin"}]);
    let records = boot(&["id"], json!({"mounts": mounts})).finish();
    let message = records[0]["failed"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("cannot access path ../disk0/bin of the volume"), "{records:?}");
}

#[test]
fn a_health_check_is_run_and_its_changes_are_told_before_the_exit() {
    if !can_run() {
        return;
    }
    let check = |args: &[&str]| json!({"health": {"args": args, "interval_ms": 20, "timeout_ms": 2000, "start_period_ms": 0, "start_interval_ms": 20, "retries": 2}});
    let guest = boot(&["sh", "-c", "echo ready; sleep 1000"], check(&["sh", "-c", "echo looked; test -e /well"]));
    guest.wait_for("ready");
    let unhealthy = guest.next();
    assert_eq!(unhealthy["health"]["state"], "unhealthy", "{unhealthy}");
    assert_eq!(unhealthy["health"]["log"][1]["output"], "looked\n");
    assert_eq!(guest.exec(json!({"Cmd": ["touch", "/well"]}), b"").1, 0);
    assert_eq!(guest.next()["health"]["state"], "healthy");
    let live = guest.request("GET", "/containers/{id}/health", b"").json();
    assert_eq!((&live["Status"], &live["FailingStreak"]), (&json!("healthy"), &json!(0)));
    assert!(live["Log"].as_array().is_some_and(|l| l.len() <= 5), "{live}");

    let guest = boot(&["sleep", "1000"], {
        let mut slow = check(&["sleep", "1000"]);
        (slow["health"]["timeout_ms"], slow["health"]["retries"]) = (json!(30), json!(1));
        slow
    });
    guest.next();
    let late = guest.next();
    assert_eq!(late["health"]["log"][0]["exit_code"], -1);
    assert_eq!(late["health"]["log"][0]["output"], "Health check exceeded timeout (30ms)");
}
