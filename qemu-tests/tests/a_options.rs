//! Options of create that reach from the client into the guest: bind mounts, parts of volumes, the Docker socket, links.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, docker_with_input, variable, wait_for};

/// Puts a file into a volume.
fn put(volume: &str, path: &str, content: &[u8]) {
    let script = format!("mkdir -p /v/$(dirname {path}) && cat > /v/{path}");
    let said = docker_with_input(
        &["run", "--rm", "-i", "-v", &format!("{volume}:/v"), "busybox", "sh", "-c", &script],
        content,
    );
    assert_eq!(said.code, 0, "{}", said.err);
}

#[test]
fn o1_a_bind_source_is_a_path_in_the_projects_file_area() {
    busybox();
    let missing = docker(&["run", "--rm", "--mount", "type=bind,source=/srv/none,target=/x", "busybox", "true"]);
    assert_eq!(missing.code, 125, "{}", missing.err);
    assert!(missing.err.contains("bind source path does not exist: /srv/none"), "{}", missing.err);
    assert!(missing.err.contains("docker client's machine cannot be mounted"), "{}", missing.err);

    put("files-default", "srv/www/page", b"from the area\n");
    let read = ["run", "--rm", "-v", "/srv/www:/w", "busybox", "sh", "-c", "cat /w/page; echo back > /w/answer; ls /w"];
    assert_eq!(docker(&read).ok(), "from the area\nanswer\npage\n");
    // A single file, not writable: the host's side refuses, whatever the guest thinks.
    let file =
        ["run", "--rm", "-v", "/srv/www/page:/etc/page:ro", "busybox", "sh", "-c", "cat /etc/page; echo x > /etc/page"];
    let said = docker(&file);
    assert_eq!((said.out.as_str(), said.code), ("from the area\n", 1), "{}", said.err);
    // Nothing else of the area is there, even for who may mount.
    let escape = "mkdir /m && mount -t virtiofs vol0 /m && ls /m; ls /w/.. | grep -c srv";
    let said = docker(&["run", "--rm", "--privileged", "-v", "/srv/www:/w", "busybox", "sh", "-c", escape]);
    assert_eq!(said.out, "answer\npage\n0\n", "{}", said.err);
}

#[test]
fn o2_a_link_in_the_file_area_leads_nowhere() {
    busybox();
    let make =
        ["run", "--rm", "-v", "files-default:/v", "busybox", "sh", "-c", "ln -sfn /etc /v/out; ln -sfn ../.. /v/up"];
    let _ = docker(&make).ok();
    for source in ["/out", "/up", "/out/systemd"] {
        let said = docker(&["run", "--rm", "-v", &format!("{source}:/x"), "busybox", "ls", "/x"]);
        assert!(said.code != 0 && said.out.is_empty(), "{source}: {} {}", said.out, said.err);
    }
}

#[test]
fn o3_v_makes_a_folder_and_says_so() {
    busybox();
    let said = docker(&["run", "--rm", "-v", "/made/here:/x", "busybox", "sh", "-c", "ls -A /x | wc -l; touch /x/a"]);
    assert_eq!((said.code, said.out.trim()), (0, "0"), "{}", said.err);
    assert_eq!(
        docker(&["run", "--rm", "--mount", "type=bind,source=/made/here,target=/x", "busybox", "ls", "/x"]).ok(),
        "a\n"
    );
}

#[test]
fn o4_a_part_of_a_volume_and_another_images_files_are_mounted() {
    busybox();
    put("o4", "a/b/f", b"part\n");
    let part = "type=volume,source=o4,target=/p,volume-subpath=a/b";
    assert_eq!(
        docker(&["run", "--rm", "--mount", part, "busybox", "sh", "-c", "ls -A /p; cat /p/f"]).ok(),
        "f\npart\n"
    );
    let _ = docker(&["volume", "rm", "o4"]).ok();
}

#[test]
fn o5_a_pod_with_the_docker_socket_sees_its_project_and_no_other() {
    const NAMES: &[&str] = &["o5-inside", "o5-other"];
    busybox();
    let _clean = CleanUp::containers(NAMES);
    let cli = std::fs::read(variable("KRAUD_DOCKER")).unwrap();
    put("files-o5", "bin/docker", &cli);
    let _ = docker(&["run", "-d", "--name", "o5-other", "busybox", "sleep", "600"]).ok();
    let run = [
        "run",
        "-d",
        "--name",
        "o5-inside",
        "--label",
        "kr.project=o5",
        "-v",
        "/bin/docker:/docker-cli",
        "-v",
        "/var/run/docker.sock:/var/run/docker.sock",
        "--memory",
        "512m",
        "busybox",
        "sleep",
        "600",
    ];
    let _ = docker(&run).ok();
    let _ = docker(&["exec", "o5-inside", "sh", "-c", "cp /docker-cli /cli && chmod 755 /cli"]).ok();
    let inside =
        |args: &str| docker(&["exec", "o5-inside", "sh", "-c", &format!("/cli -H unix:///var/run/docker.sock {args}")]);
    let names = wait_for("the API in the pod", || {
        let said = inside("ps -a --format {{.Names}}");
        if said.code == 0 { Ok(said.out) } else { Err(said.err) }
    });
    assert_eq!(names, "o5-inside\n");
    let refused = inside("rm -f o5-other");
    assert!(refused.err.contains("No such container"), "{}", refused.err);
    assert!(inside("rmi busybox").err.contains("only the zone's owner"), "images are everybody's");
    // What it makes belongs to its project, and streams work both ways.
    assert_eq!(inside("run --rm busybox echo from a pod").ok(), "from a pod\n");
    let _ = inside("volume create o5-made").ok();
    let label = docker(&["volume", "inspect", "o5-made", "--format", "{{index .Labels \"kr.project\"}}"]).ok();
    assert_eq!(label, "o5\n");
    let _ = docker(&["volume", "rm", "o5-made"]).ok();
}

#[test]
fn o6_links_hosts_devices_and_tmpfs_are_in_the_guest() {
    const NAMES: &[&str] = &["o6-db"];
    busybox();
    let _clean = CleanUp::containers(NAMES);
    let _ = docker(&["run", "-d", "--name", "o6-db", "busybox", "sleep", "600"]).ok();
    let look = "grep -c ' db\\|\tdb' /etc/hosts; grep -c gate /etc/hosts; stat -c %F /dev/mine; mount | grep -c 'on /t .*size=1024k'";
    let run = [
        "run",
        "--rm",
        "--link",
        "o6-db:db",
        "--add-host",
        "gate:host-gateway",
        "--device",
        "/dev/fuse:/dev/mine",
        "--tmpfs",
        "/t:size=1m,mode=700",
        "busybox",
        "sh",
        "-c",
        look,
    ];
    assert_eq!(docker(&run).ok(), "1\n1\ncharacter special file\n1\n");
    let gpu = docker(&["run", "--rm", "--gpus", "all", "busybox", "true"]);
    assert!(gpu.code == 125 && gpu.err.contains("could not select device driver"), "{}", gpu.err);
}
