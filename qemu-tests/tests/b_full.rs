//! Full disks: what is new is refused with a reason, what was acknowledged stays, and freed space is enough to go on.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, docker_with_input, folder, image, inside, shell, wait_for};

const SERVICES: [&str; 8] = ["macro", "images", "storage", "vpc", "pods", "node", "web-ui", "docker-api"];

/// How often each service has been started again: none may be in a crash loop.
fn restarts() -> String {
    let units = SERVICES.map(|name| format!("kraud-{name}.service"));
    let mut argv = vec!["systemctl", "show", "--value", "-p", "NRestarts"];
    argv.extend(units.iter().map(String::as_str));
    inside(&argv).ok()
}

/// Does the same to the machine's disks at the end of a test, well or not.
struct Undo(&'static str);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = shell(self.0);
    }
}

#[test]
fn t40_a_full_state_disk_refuses_what_is_new_and_loses_nothing() {
    busybox();
    let _clean =
        CleanUp::containers(&["t40-before", "t40-1", "t40-2", "t40-3", "t40-4", "t40-5", "t40-6", "t40-after"]);
    let _ = docker(&["create", "--name", "t40-before", "busybox", "true"]).ok();
    // The state engine has a log of a few megabytes that it writes again and again: what is new must not fit into it.
    let environment = folder("t40").join("environment");
    // The CLI takes lines of 64 KiB.
    let lines: String = (0..20).map(|n| format!("LARGE{n}={}\n", "x".repeat(60_000))).collect();
    std::fs::write(&environment, lines).unwrap();
    let restarted = restarts();
    let _undo = Undo("rm -f /var/t40-filler");
    let fill = "f=/var/t40-filler; at=0; size=$((1 << 29)); while [ $size -ge 1024 ]; do
        if fallocate -o $at -l $size $f 2>/dev/null; then at=$((at + size)); else size=$((size / 2)); fi; done; df -k /var | tail -1";
    let filled = shell(fill).ok();
    let (mut acknowledged, mut refused) = (vec!["t40-before".to_owned()], None);
    for number in 1..=6 {
        let name = format!("t40-{number}");
        let file = environment.to_str().unwrap();
        let said = docker(&["create", "--name", &name, "--env-file", file, "busybox", "true"]);
        if said.code != 0 {
            refused = Some(said.err);
            break;
        }
        acknowledged.push(name);
    }
    let refused = refused.unwrap_or_else(|| panic!("nothing was refused on a full disk: {filled}"));
    assert!(refused.contains("disk of the zone's state is full"), "{refused}");
    let listed = docker(&["ps", "-a", "--format", "{{.Names}}"]).ok();
    assert!(listed.contains("t40-before"), "what is there is not shown: {listed}");
    assert_eq!(restarts(), restarted, "a service does not stand a full disk");
    let _ = shell("rm /var/t40-filler").ok();
    wait_for("the zone after space was freed", || {
        let said = docker(&["create", "--name", "t40-after", "busybox", "true"]);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    });
    // What the disk has, and not only what the engine remembers.
    let pid = || inside(&["systemctl", "show", "--value", "-p", "MainPID", "kraud-macro.service"]).ok();
    let before = pid();
    let _ = inside(&["systemctl", "kill", "--signal=SIGKILL", "kraud-macro.service"]).ok();
    wait_for("another state engine", || {
        let now = pid();
        if now != before && now.trim() != "0" { Ok(()) } else { Err(now) }
    });
    // A change is answered by it alone: the API has read all again by then.
    let _ = docker(&["rename", "t40-after", "t40-again"]).ok();
    let _ = docker(&["rename", "t40-again", "t40-after"]).ok();
    let listed = docker(&["ps", "-a", "--format", "{{.Names}}"]).ok();
    for name in &acknowledged {
        assert!(listed.lines().any(|line| line == name), "{name} was acknowledged and is not in: {listed}");
    }
}

#[test]
fn t41_a_full_pool_refuses_what_is_new_and_lets_go_of_what_is_old() {
    busybox();
    let _clean = CleanUp::containers(&["t41-writer", "t41-new"]);
    let _ = docker(&["image", "rm", "-f", "t41-large"]);
    let _ = docker(&["volume", "rm", "-f", "t41"]);
    let _ = docker(&["volume", "create", "t41"]).ok();
    let _ = docker(&["run", "-d", "--name", "t41-writer", "-v", "t41:/data", "busybox", "sleep", "900"]).ok();
    let _ = docker_with_input(&["load"], &small_image("t41-small")).ok();
    let restarted = restarts();
    let _undo = Undo("zfs set quota=none zone");
    let limit = "zpool sync zone; u=$(zfs get -Hpo value used zone); zfs set quota=$((u + (16 << 20))) zone";
    let _ = shell(limit).ok();
    let write = "dd if=/dev/urandom of=/data/file bs=1M count=64";
    let written = docker(&["exec", "t41-writer", "sh", "-c", write]);
    assert!(
        written.code != 0 && (written.err.contains("No space left") || written.err.contains("quota exceeded")),
        "{written:?}"
    );
    assert_eq!(docker(&["exec", "t41-writer", "echo", "alive"]).ok(), "alive\n");
    let archive = large_image("t41-large");
    let loaded = docker_with_input(&["load"], &archive);
    assert!(loaded.code != 0 && (loaded.out + &loaded.err).contains("pool is full"), "{}", loaded.err);
    let _ = docker(&["image", "rm", "t41-small"]).ok();
    let made = docker(&["run", "--name", "t41-new", "busybox", "true"]);
    assert!(made.code == 0 || made.err.contains("pool is full"), "{made:?}");
    let _ = docker(&["rm", "-f", "t41-new"]).ok();
    assert_eq!(restarts(), restarted, "a service does not stand a full pool");
    // What is removed makes room, and nobody has to help.
    let _ = docker(&["exec", "t41-writer", "rm", "/data/file"]).ok();
    let _ = docker(&["rm", "-f", "t41-writer"]).ok();
    let _ = docker(&["volume", "rm", "t41"]).ok();
    wait_for("room for a container", || {
        let said = docker(&["run", "--rm", "busybox", "echo", "room"]);
        if said.code == 0 && said.out == "room\n" { Ok(()) } else { Err(format!("{said:?}")) }
    });
    let _ = shell("zfs set quota=none zone").ok();
    let loaded = docker_with_input(&["load"], &archive).ok();
    assert!(loaded.contains("t41-large"), "{loaded}");
    let _ = docker(&["image", "rm", "t41-large"]).ok();
}

/// An image of one small file.
fn small_image(reference: &str) -> Vec<u8> {
    image::archive(reference, &serde_json::json!({"Cmd": ["/small"]}), &[layer_of("small", b"small")])
}

/// An image with 16 MiB that cannot be compressed.
fn large_image(reference: &str) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = (0..2 << 20)
        .flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        })
        .collect();
    image::archive(reference, &serde_json::json!({"Cmd": ["/noise"]}), &[layer_of("noise", &content)])
}

/// A layer with one file.
fn layer_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    layer.append_data(&mut header, name, content).unwrap();
    layer.into_inner().unwrap()
}
