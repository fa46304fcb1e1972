//! What a container's user really talks to, the agent in its guest: files, health, limits, restarts.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, docker_with_input, folder, wait_for};

fn inspect(name: &str, format: &str) -> String {
    docker(&["inspect", "-f", format, name]).ok().trim().to_owned()
}

fn wait_until(name: &str, format: &str, wanted: &str) {
    wait_for(&format!("{name} {format} = {wanted}"), || {
        let seen = inspect(name, format);
        if seen == wanted { Ok(()) } else { Err(seen) }
    });
}

#[test]
fn v01_files_of_a_container_that_does_not_run_go_both_ways() {
    busybox();
    let _clean = CleanUp::containers(&["still"]);
    let script = "cat /data/in; echo made > /made; rm /etc/group; echo kept > /data/kept";
    let _ = docker(&["create", "--name", "still", "-v", "/data", "busybox", "sh", "-c", script]).ok();
    let folder = folder("still");
    let file = folder.join("in");
    std::fs::write(&file, "from outside\n").unwrap();
    // Never started.
    let _ = docker(&["cp", file.to_str().unwrap(), "still:/data/in"]).ok();
    let back = docker(&["cp", "still:/etc/passwd", "-"]).ok();
    assert!(back.contains("root:x:0:0"), "{back}");
    // The helper is there still when the start comes.
    assert_eq!(docker(&["start", "-a", "still"]).ok(), "from outside\n");
    wait_until("still", "{{.State.Status}}", "exited");
    let out = folder.join("out");
    let _ = docker(&["cp", "still:/data/kept", out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "kept\n");
    let diff = docker(&["diff", "still"]).ok();
    for line in ["A /made", "D /etc/group", "C /etc"] {
        assert!(diff.lines().any(|l| l == line), "{line}: {diff}");
    }
    let archive = folder.join("all.tar");
    let _ = docker(&["export", "-o", archive.to_str().unwrap(), "still"]).ok();
    let mut names = Vec::new();
    for entry in tar::Archive::new(std::fs::File::open(&archive).unwrap()).entries().unwrap() {
        names.push(entry.unwrap().path().unwrap().display().to_string());
    }
    for (name, there) in [("made", true), ("bin/busybox", true), ("etc/group", false), ("data/kept", false)] {
        assert_eq!(names.iter().any(|n| n == name), there, "{name}: {names:?}");
    }
    let _ = docker(&["commit", "still", "still-made"]).ok();
    assert_eq!(docker(&["run", "--rm", "still-made", "cat", "/made"]).ok(), "made\n");
    let _ = docker(&["rmi", "still-made"]).ok();
    let absent = docker(&["cp", "still:/none", "-"]);
    assert!(absent.code == 1 && absent.err.contains("Could not find the file /none"), "{}", absent.err);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn v02_a_health_check_goes_through_dockers_states() {
    busybox();
    let _clean = CleanUp::containers(&["well"]);
    let check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", "--health-retries", "2"];
    let _ = docker(&[&["run", "-d", "--name", "well"], &check[..], &["busybox", "sleep", "600"]].concat()).ok();
    wait_until("well", "{{.State.Health.Status}}", "unhealthy");
    let status = docker(&["ps", "--filter", "health=unhealthy", "--format", "{{.Names}} {{.Status}}"]).ok();
    assert!(status.starts_with("well Up") && status.trim_end().ends_with("(unhealthy)"), "{status}");
    let _ = docker(&["exec", "well", "touch", "/tmp/well"]).ok();
    wait_until("well", "{{.State.Health.Status}} {{.State.Health.FailingStreak}}", "healthy 0");
    let last = inspect("well", "{{(index .State.Health.Log 0).ExitCode}} {{len .State.Health.Log}}");
    // The oldest of them may still be a failure; five at most are kept.
    assert!(matches!(last.split_once(' '), Some(("0" | "1", "1" | "2" | "3" | "4" | "5"))), "{last}");
    // The state is asked of the guest, the event comes by way of the state engine: a moment later.
    wait_for("both events", || {
        let events = docker(&["events", "--since", "10m", "--until", "0s", "--filter", "container=well"]).ok();
        let told = |word: &str| events.contains(&format!("health_status: {word}"));
        if told("unhealthy ") && told("healthy ") { Ok(()) } else { Err(events) }
    });
    let off = docker(&["run", "--rm", "--no-healthcheck", "busybox", "echo", "hello"]).ok();
    assert_eq!(off, "hello\n");
}

#[test]
fn v03_limits_are_what_the_guest_sees_and_change_while_it_runs() {
    busybox();
    let _clean = CleanUp::containers(&["bound", "greedy"]);
    let limits = ["--cpus", "1.5", "--memory", "96m", "--pids-limit", "20"];
    let _ = docker(&[&["run", "-d", "--name", "bound"], &limits[..], &["busybox", "sleep", "600"]].concat()).ok();
    let seen = |file: &str| docker(&["exec", "bound", "cat", file]).ok().trim().to_owned();
    assert_eq!(docker(&["exec", "bound", "grep", "-c", "^processor", "/proc/cpuinfo"]).ok().trim(), "2");
    assert_eq!((seen("/sys/fs/cgroup/memory.max"), seen("/sys/fs/cgroup/pids.max")), ("100663296".into(), "20".into()));
    let _ =
        docker(&["update", "--memory", "64m", "--memory-swap", "64m", "--cpus", "0.5", "--pids-limit", "30", "bound"])
            .ok();
    assert_eq!((seen("/sys/fs/cgroup/memory.max"), seen("/sys/fs/cgroup/pids.max")), ("67108864".into(), "30".into()));
    let unit = format!("kraud-pod-{}.service", inspect("bound", "{{.Id}}"));
    wait_for("the monitor's quota", || {
        let said = qemu_tests::inside(&["systemctl", "show", "-p", "CPUQuotaPerSecUSec", &unit]).ok();
        if said.contains("=500ms") { Ok(()) } else { Err(said) }
    });
    let fill = ["dd", "if=/dev/zero", "of=/dev/shm/a", "bs=1M", "count=60"];
    let said = docker(&[&["run", "--name", "greedy", "-m", "32m", "busybox"], &fill[..]].concat());
    assert_eq!((said.code, inspect("greedy", "{{.State.OOMKilled}}")), (137, "true".into()), "{}", said.err);
}

#[test]
fn v04_a_restart_policy_starts_it_again_and_counts() {
    busybox();
    let _clean = CleanUp::containers(&["again", "broken"]);
    let _ = docker(&[
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo run; exit 3",
    ])
    .ok();
    wait_until("again", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "exited 2 3");
    assert_eq!(docker(&["logs", "again"]).ok(), "run\nrun\nrun\n");
    let _ = docker(&["run", "-d", "--name", "broken", "busybox", "sh", "-c", "echo before; sleep 600"]).ok();
    wait_for("the container's first line", || match docker(&["logs", "broken"]).ok() {
        text if text == "before\n" => Ok(()),
        text => Err(text),
    });
    let unit = format!("kraud-pod-{}.service", inspect("broken", "{{.Id}}"));
    let _ = qemu_tests::inside(&["systemctl", "kill", "-s", "KILL", &unit]).ok();
    wait_until("broken", "{{.State.Status}}", "exited");
    assert_eq!(docker(&["logs", "broken"]).ok(), "before\n");
    assert_ne!(inspect("broken", "{{.State.ExitCode}}"), "0");
}

#[test]
fn v05_input_is_half_closed_and_every_byte_comes_back() {
    busybox();
    let _clean = CleanUp::containers(&["pipe"]);
    let _ = docker(&["run", "-d", "--name", "pipe", "busybox", "sleep", "600"]).ok();
    for size in [0, 1, 65_537, 1_500_000] {
        let input: Vec<u8> = (0..size).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect();
        let said = docker_with_input(&["exec", "-i", "pipe", "cat"], &input);
        assert!(said.code == 0 && said.out.as_bytes() == input, "{size}: {} bytes came, {}", said.out.len(), said.err);
    }
}
