//! Registries as a docker user meets them: Debian's docker-registry, of the development extension, runs in the zone on
//! loopback; one takes everybody, the other only those who have logged in.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::registry::{LOCKED, OPEN, Registries, settings};
use qemu_tests::{Said, busybox, docker, inside, variable, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// The docker CLI inside the image, with a configuration of its own: what it asks the registry itself, it asks on loopback.
fn docker_inside(args: &[&str]) -> Said {
    const CLI: [&str; 5] =
        ["env", "DOCKER_CONFIG=/run/test-registry/docker", "docker", "-H", "unix:///run/kraud/docker/docker.sock"];
    inside(&[&CLI, args].concat())
}

#[test]
fn i04_images_are_pushed_to_a_registry_and_pulled_by_tag_digest_and_platform() {
    busybox();
    let _registries = Registries::start();
    let name = format!("{OPEN}/team/box:1");
    let _ = docker(&["tag", "busybox", &name]).ok();
    let pushed = docker(&["push", &name]).ok();
    let digest = pushed.split("digest: ").nth(1).and_then(|d| d.split_whitespace().next()).unwrap().to_owned();
    let _ = docker(&["rmi", &name]).ok();
    let pulled = docker(&["pull", &name]).ok();
    assert!(pulled.contains(&digest) && pulled.contains("Status: "), "{pulled}");
    let by_digest = format!("{OPEN}/team/box@{digest}");
    let _ = docker(&["pull", &by_digest]).ok();
    assert_eq!(docker(&["run", "--rm", &by_digest, "echo", "from the registry"]).ok(), "from the registry\n");
    assert!(docker(&["pull", &format!("{OPEN}/team/none:1")]).code != 0);
    let other = docker(&["pull", "--platform", "linux/arm64", &name]);
    assert!(other.code != 0 && other.err.contains("linux/arm64"), "{}", other.err);
    let manifest = docker_inside(&["manifest", "inspect", "-v", "--insecure", &name]).ok();
    assert!(manifest.contains(&digest) && manifest.contains("\"layers\""), "{manifest}");
    let _ = docker(&["rmi", &name]).ok();
}

#[test]
fn i08_a_registry_with_a_lock_takes_who_has_logged_in() {
    busybox();
    let _registries = Registries::start();
    let name = format!("{LOCKED}/team/box:1");
    let _ = docker_inside(&["tag", "busybox", &name]).ok();
    let refused = docker_inside(&["push", &name]);
    assert!(refused.code != 0 && refused.err.contains("authentication required"), "{} {}", refused.out, refused.err);
    let wrong = docker_inside(&["login", "-u", "me", "-p", "wrong", LOCKED]);
    assert!(wrong.code != 0 && wrong.err.contains("401 Unauthorized"), "{} {}", wrong.out, wrong.err);
    assert!(docker_inside(&["login", "-u", "me", "-p", "secret", LOCKED]).ok().contains("Login Succeeded"));
    let pushed = docker_inside(&["push", &name]).ok();
    assert!(pushed.contains("digest: "), "{pushed}");
    let _ = docker_inside(&["rmi", &name]).ok();
    let _ = docker_inside(&["pull", &name]).ok();
    let _ = docker_inside(&["rmi", &name]).ok();
}

#[test]
fn i09_a_mirror_is_asked_first_and_a_download_that_breaks_off_goes_on() {
    busybox();
    let _registries = Registries::start();
    let name = format!("{OPEN}/library/mirrored:1");
    let _ = docker(&["tag", "busybox", &name]).ok();
    let _ = docker(&["push", &name]).ok();
    settings(&format!("{{\"registry-mirrors\": [\"http://{OPEN}\"]}}"));
    let pulled = docker(&["pull", "mirrored:1"]).ok();
    assert!(pulled.contains("docker.io/library/mirrored:1"), "{pulled}");

    // A content that is not there yet, so that it has to come over the broken way.
    let own = qemu_tests::image::busybox_of_its_own(&name, &[("etc/cut", "cut\n")], &serde_json::Value::Null);
    let _ = qemu_tests::docker_with_input(&["load"], &own).ok();
    let _ = docker(&["push", &name]).ok();
    let _ = docker(&["rmi", &name, "mirrored:1"]).ok();
    // The zone collects what nobody uses in its own time; until then nothing has to be fetched.
    let name = wait_for("a download that was cut and went on", || {
        let (way, requests) = broken_way(100_000);
        settings(&format!("{{\"insecure-registries\": [\"{way}\"]}}"));
        let name = format!("{way}/library/mirrored:1");
        let pulled = docker(&["pull", &name]).ok();
        assert!(pulled.contains("Downloaded newer image"), "{pulled}");
        let requests = requests.lock().unwrap().clone();
        if requests.iter().any(|r| r.to_ascii_lowercase().contains("range: bytes=")) {
            return Ok(name);
        }
        let _ = docker(&["rmi", &name]).ok();
        Err(format!("{requests:?}"))
    });
    assert_eq!(docker(&["run", "--rm", &name, "cat", "/etc/cut"]).ok(), "cut\n");
    let _ = docker(&["rmi", &name]).ok();
}

/// A way to the open registry by this machine, which the zone sees at 10.0.2.2: it is cut once, in the first answer that is longer
/// than `limit`. With it come the heads of the requests.
fn broken_way(limit: usize) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let (heads, cut) = (requests.clone(), Arc::new(Mutex::new(false)));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (heads, cut) = (heads.clone(), cut.clone());
            std::thread::spawn(move || carry(&client.unwrap(), limit, &heads, &cut));
        }
    });
    (way, requests)
}

fn carry(client: &TcpStream, limit: usize, heads: &Arc<Mutex<Vec<String>>>, cut: &Mutex<bool>) {
    let mut command = Command::new(variable("KRAUD_APPLIANCE"));
    command.args(["exec", "--", "busybox", "nc", "127.0.0.1", "5000"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut asking, heads) = (client.try_clone().unwrap(), heads.clone());
    let asking = std::thread::spawn(move || {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = asking.read(&mut piece) {
            heads.lock().unwrap().push(String::from_utf8_lossy(&piece[..length]).into_owned());
            if to.write_all(&piece[..length]).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    });
    let (mut answer, mut piece, mut sent) = (client, vec![0; 16 << 10], 0);
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if answer.write_all(&piece[..length]).is_err() {
            break;
        }
        sent += length;
        if sent > limit && !std::mem::replace(&mut *cut.lock().unwrap(), true) {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = child.kill();
    let _ = child.wait();
    let _ = asking.join();
}
