//! The zone as a docker user sees it: the ordinary CLI on the developer's machine, and nothing else.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{
    CleanUp, busybox, docker, docker_command, docker_with_input, folder, http_get, image, inside, monitors, wait_for,
};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

#[test]
fn t01_the_cli_and_the_zone_agree_on_a_version() {
    let version = docker(&["version", "--format", "{{.Server.APIVersion}} {{.Server.Os}}/{{.Server.Arch}}"]).ok();
    assert!(version.contains("linux/amd64"), "{version}");
    let info = docker(&["info"]).ok();
    assert!(info.contains("Operating System: kraudbox"), "{info}");
}

#[test]
fn t02_an_image_made_on_the_spot_is_loaded_and_listed() {
    busybox();
    let images = docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    assert!(images.lines().any(|l| l == "busybox:latest"), "{images}");
    let history = docker(&["history", "busybox"]).ok();
    assert_eq!(history.lines().count(), 2, "{history}");
}

#[test]
fn t03_run_prints_what_the_container_prints_and_leaves_nothing() {
    busybox();
    let before = docker(&["ps", "-aq"]).ok();
    assert_eq!(docker(&["run", "--rm", "busybox", "echo", "hello"]).ok(), "hello\n");
    let removed = wait_for("the container's removal", || {
        let now = docker(&["ps", "-aq"]).ok();
        if now == before { Ok(true) } else { Err(now) }
    });
    assert!(removed);
}

#[test]
fn t04_a_container_has_a_kernel_and_a_monitor_of_its_own() {
    busybox();
    let _clean = CleanUp::containers(&["kernel"]);
    let _ = docker(&["run", "-d", "--name", "kernel", "busybox", "sleep", "600"]).ok();
    let guest = docker(&["exec", "kernel", "uname", "-r"]).ok();
    let host = inside(&["uname", "-r"]).ok();
    assert_ne!(guest, host);
    assert!(!monitors().is_empty());
}

#[test]
fn t05_exit_codes_are_the_ones_that_docker_gives() {
    busybox();
    assert_eq!(docker(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]).code, 7);
    let absent = docker(&["run", "--rm", "busybox", "nosuchprogram"]);
    assert_eq!(absent.code, 127, "{}", absent.err);
    assert!(absent.err.contains("executable file not found in $PATH"), "{}", absent.err);
    let folder = docker(&["run", "--rm", "busybox", "/etc"]);
    assert_eq!(folder.code, 126, "{}", folder.err);
}

#[test]
fn t06_standard_input_output_and_error_stay_apart_and_whole() {
    busybox();
    let said =
        docker_with_input(&["run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo problem >&2"], b"some\ninput");
    assert_eq!((said.code, said.out.as_str()), (0, "some\ninput"));
    assert!(said.err.contains("problem"), "{}", said.err);
    let lines = docker(&["run", "--rm", "busybox", "seq", "1", "20000"]).ok();
    assert!(lines == (1..=20_000).map(|n| format!("{n}\n")).collect::<String>(), "{} bytes came", lines.len());
}

#[test]
fn t07_a_published_port_answers_on_the_developers_machine() {
    busybox();
    let _clean = CleanUp::containers(&["web"]);
    let _ =
        docker(&["run", "-d", "--name", "web", "-p", "18080:80", "busybox", "httpd", "-f", "-p", "80", "-h", "/etc"])
            .ok();
    let answer = wait_for("the web server's answer", || {
        http_get("127.0.0.1:18080", "/passwd").and_then(|a| if a.contains("200 OK") { Ok(a) } else { Err(a) })
    });
    assert!(answer.contains("root:x:0:0"), "{answer}");
    assert!(docker(&["port", "web"]).ok().contains("80/tcp -> 0.0.0.0:18080"));
}

#[test]
fn t08_logs_follow_a_container_to_its_end() {
    busybox();
    let _clean = CleanUp::containers(&["talk"]);
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done";
    let _ = docker(&["run", "-d", "--name", "talk", "busybox", "sh", "-c", script]).ok();
    let expected: String = (1..=5).map(|n| format!("line {n}\n")).collect();
    assert_eq!(docker(&["logs", "-f", "talk"]).ok(), expected);
    assert_eq!(docker(&["logs", "--tail", "2", "talk"]).ok(), "line 4\nline 5\n");
    let stamped = docker(&["logs", "-t", "--tail", "1", "talk"]).ok();
    assert!(stamped.starts_with("20") && stamped.ends_with("Z line 5\n"), "{stamped}");
}

#[test]
fn t09_exec_runs_beside_the_container_and_tells_its_exit_code() {
    busybox();
    let _clean = CleanUp::containers(&["ex"]);
    let _ = docker(&["run", "-d", "--name", "ex", "busybox", "sleep", "600"]).ok();
    assert_eq!(docker(&["exec", "ex", "echo", "inside"]).ok(), "inside\n");
    assert_eq!(docker(&["exec", "ex", "sh", "-c", "exit 3"]).code, 3);
    assert_eq!(docker_with_input(&["exec", "-i", "ex", "cat"], b"through").ok(), "through");
    let terminal = docker(&["exec", "-t", "-e", "A=b", "-w", "/tmp", "ex", "sh", "-c", "tty; pwd; echo $A"]).ok();
    assert_eq!(terminal, "/dev/pts/0\r\n/tmp\r\nb\r\n");
    let absent = docker(&["exec", "ex", "nosuchprogram"]);
    assert_eq!(absent.code, 127, "{} {}", absent.out, absent.err);
}

#[test]
fn t10_files_are_copied_in_and_out() {
    busybox();
    let _clean = CleanUp::containers(&["files"]);
    let _ = docker(&["run", "-d", "--name", "files", "busybox", "sleep", "600"]).ok();
    let folder = folder("cp");
    let file = folder.join("file");
    std::fs::write(&file, vec![b'x'; 300_000]).unwrap();
    let _ = docker(&["cp", file.to_str().unwrap(), "files:/tmp/"]).ok();
    assert_eq!(docker(&["exec", "files", "stat", "-c", "%s", "/tmp/file"]).ok(), "300000\n");
    let back = folder.join("back");
    let _ = docker(&["cp", "files:/tmp/file", back.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&file).unwrap());
    let tar = docker(&["cp", "files:/etc/passwd", "-"]).ok();
    assert!(tar.starts_with("passwd") && tar.contains("root:x:0:0"), "{} bytes", tar.len());
}

#[test]
fn t11_attach_shows_what_comes_and_gives_what_is_typed() {
    busybox();
    let _clean = CleanUp::containers(&["cat"]);
    let _ = docker(&["run", "-d", "-i", "--name", "cat", "busybox", "cat"]).ok();
    let mut attached = docker_command(&["attach", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = attached.stdin.take().unwrap();
    input.write_all(b"typed\n").unwrap();
    let mut line = String::new();
    BufReader::new(attached.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "typed\n");
    // What is not asked for again goes on: the container outlives its client.
    attached.kill().unwrap();
    attached.wait().unwrap();
    assert_eq!(docker(&["inspect", "-f", "{{.State.Running}}", "cat"]).ok(), "true\n");
}

#[test]
fn t12_stop_start_kill_wait_and_rm_do_what_they_say() {
    busybox();
    let _clean = CleanUp::containers(&["life"]);
    let script = "trap 'exit 5' TERM; echo up; while true; do sleep 0.1; done";
    let _ = docker(&["run", "-d", "--name", "life", "busybox", "sh", "-c", script]).ok();
    wait_for("the container's first line", || {
        let logs = docker(&["logs", "life"]).ok();
        if logs == "up\n" { Ok(()) } else { Err(logs) }
    });
    let _ = docker(&["stop", "life"]).ok();
    assert_eq!(docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "life"]).ok(), "exited 5\n");
    let _ = docker(&["start", "life"]).ok();
    assert_eq!(docker(&["inspect", "-f", "{{.State.Running}}", "life"]).ok(), "true\n");
    let waiting = docker_command(&["wait", "life"]).spawn().unwrap();
    let _ = docker(&["kill", "life"]).ok();
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(waited.stdout).unwrap(), "137\n");
    assert!(docker(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok().contains("life Exited (137)"));
    let _ = docker(&["rm", "life"]).ok();
    assert_ne!(docker(&["inspect", "life"]).code, 0);
}

#[test]
fn t13_top_and_stats_tell_of_the_processes_in_the_guest() {
    busybox();
    let _clean = CleanUp::containers(&["busy"]);
    let _ = docker(&["run", "-d", "--name", "busy", "busybox", "sleep", "600"]).ok();
    let top = docker(&["top", "busy"]).ok();
    assert!(top.contains("sleep 600"), "{top}");
    let stats = docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "busy"]).ok();
    assert!(stats.starts_with("busy ") && stats.trim_end().ends_with(" 1"), "{stats}");
}

#[test]
fn t14_a_volume_keeps_files_beyond_the_container() {
    busybox();
    let _clean = CleanUp::containers(&["writer"]);
    let _ = docker(&["volume", "rm", "-f", "kept"]);
    let _ = docker(&["volume", "create", "kept"]).ok();
    let _ = docker(&["run", "--rm", "-v", "kept:/data", "busybox", "sh", "-c", "echo kept > /data/file"]).ok();
    assert_eq!(docker(&["run", "--rm", "-v", "kept:/data", "busybox", "cat", "/data/file"]).ok(), "kept\n");
    assert!(inside(&["zfs", "list", "-H", "-o", "name"]).ok().contains("zone/volumes/kept"));
    let _ = docker(&["run", "-d", "--name", "writer", "-v", "kept:/data", "busybox", "sleep", "600"]).ok();
    assert_ne!(docker(&["volume", "rm", "kept"]).code, 0, "a volume in use must not be removable");
    let _ = docker(&["rm", "-f", "writer"]).ok();
    let _ = docker(&["volume", "rm", "kept"]).ok();
}

#[test]
fn t14b_a_block_volume_keeps_files_and_is_one_pods_at_a_time() {
    busybox();
    let _clean = CleanUp::containers(&["holder"]);
    let _ = docker(&["volume", "rm", "-f", "blocks"]);
    let _ = docker(&["volume", "create", "--driver", "lv2", "-o", "size=1G", "blocks"]).ok();
    let _ = docker(&["run", "--rm", "-v", "blocks:/data", "busybox", "sh", "-c", "echo kept > /data/file"]).ok();
    let _ = docker(&[
        "run",
        "-d",
        "--name",
        "holder",
        "-v",
        "blocks:/data",
        "busybox",
        "sh",
        "-c",
        "cat /data/file; sleep 600",
    ])
    .ok();
    wait_for("the file's text", || {
        let logs = docker(&["logs", "holder"]).ok();
        if logs == "kept\n" { Ok(()) } else { Err(logs) }
    });
    let second = docker(&["run", "--rm", "-v", "blocks:/data", "busybox", "true"]);
    assert!(second.code != 0 && second.err.contains("blocks"), "{} {}", second.code, second.err);
    let _ = docker(&["rm", "-f", "holder"]).ok();
    let _ = docker(&["volume", "rm", "blocks"]).ok();
}

#[test]
fn t15_containers_on_a_network_find_each_other_by_name_and_others_do_not() {
    busybox();
    let _clean = CleanUp::containers(&["one", "stranger"]);
    let _ = docker(&["network", "rm", "n1"]);
    let _ = docker(&["network", "create", "n1"]).ok();
    let _ =
        docker(&["run", "-d", "--name", "one", "--network", "n1", "busybox", "httpd", "-f", "-p", "80", "-h", "/etc"])
            .ok();
    let fetched =
        docker(&["run", "--rm", "--network", "n1", "busybox", "wget", "-q", "-O", "-", "http://one/passwd"]).ok();
    assert!(fetched.contains("root:x:0:0"), "{fetched}");
    let address = docker(&["inspect", "-f", "{{.NetworkSettings.Networks.n1.IPAddress}}", "one"]).ok();
    let url = format!("http://{}/passwd", address.trim());
    let stranger = docker(&["run", "--rm", "--name", "stranger", "busybox", "wget", "-q", "-T", "3", "-O", "-", &url]);
    assert_ne!(stranger.code, 0, "a container on another network reached it: {}", stranger.out);
    let _ = docker(&["rm", "-f", "one"]).ok();
    let _ = docker(&["network", "rm", "n1"]).ok();
}

#[test]
fn t16_bad_input_gets_a_clear_answer() {
    busybox();
    let _clean = CleanUp::containers(&["taken"]);
    let _ = docker(&["create", "--name", "taken", "busybox", "true"]).ok();
    let again = docker(&["create", "--name", "taken", "busybox", "true"]);
    assert!(again.err.contains("is already in use"), "{}", again.err);
    let unknown = docker(&["start", "unknown"]);
    assert!(unknown.err.contains("No such container: unknown"), "{}", unknown.err);
    let archive = image::busybox("cut:latest");
    let cut = docker_with_input(&["load"], &archive[..archive.len() / 2]);
    assert_ne!(cut.code, 0, "{}", cut.out);
    assert_ne!(docker(&["image", "inspect", "cut"]).code, 0, "half an image was kept");
    let empty = image::archive("empty:latest", &serde_json::json!({}), &[]);
    let _ = docker_with_input(&["load"], &empty);
    let nothing = docker(&["run", "--rm", "empty"]);
    assert_ne!(nothing.code, 0, "an image without an entrypoint was run");
}

#[test]
fn t17_the_web_page_answers_over_tls() {
    let web = qemu_tests::variable("KRAUD_WEB");
    let said = std::process::Command::new("curl").args(["-sk", "--max-time", "20", &web]).output().unwrap();
    let page = String::from_utf8_lossy(&said.stdout);
    assert!(page.contains("Pairing code"), "{page}");
}

#[test]
fn t18_events_tell_what_happens() {
    busybox();
    let _clean = CleanUp::containers(&["seen"]);
    let mut events = docker_command(&["events", "--format", "{{.Type}} {{.Action}}", "--filter", "container=seen"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let _ = docker(&["run", "--name", "seen", "busybox", "true"]).ok();
    let told: Vec<String> = lines.map_while(Result::ok).take_while(|l| l != "container die").collect();
    events.kill().unwrap();
    events.wait().unwrap();
    assert!(told.contains(&"container start".to_owned()), "{told:?}");
}
