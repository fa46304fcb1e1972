//! Updates: a signed bundle goes to the spare slot and proves itself; a broken one is undone without a person; what is not for this
//! machine is refused. Only with `cargo appliance test --full`: each restart takes half a minute under emulation.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{appliance, busybox, docker, folder, full, inside};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Three starts of an image that hangs until the check gives up, and one of the image before.
const PATIENCE: Duration = Duration::from_secs(900);

/// The update to `version`, made from the sources that the zone was made from.
fn bundle(dir: &Path, version: &str, flaw: Option<&str>) -> PathBuf {
    let out = dir.to_str().unwrap();
    let mut args = vec!["release", out, "--development", "--update-only", "--version", version];
    args.extend(flaw.iter().flat_map(|flaw| ["--flaw", flaw]));
    let _ = appliance(&args).ok();
    dir.join(format!("kraudbox-{version}.update.tar.gz"))
}

/// Serves one file on loopback, as any web server would; the zone sees it as 10.0.2.2.
fn serve(file: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            // The zone may hang up when it has seen enough.
            let _ = (&stream).write_all(b"HTTP/1.0 200 OK\r\n\r\n");
            let _ = std::io::copy(&mut std::fs::File::open(&file).unwrap(), &mut &stream);
        }
    });
    format!("http://10.0.2.2:{port}/update")
}

/// Waits until the zone says that `running` runs and the menu has `entry`.
fn settles(running: &str, entry: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = inside(&["kraud-update", "status"]);
        if said.out.contains(&format!("running {running} ")) && said.out.lines().any(|line| line.contains(entry)) {
            return;
        }
        assert!(Instant::now() < deadline, "not seen: {running}, {entry}; last: {} {}", said.out, said.err);
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

#[test]
fn t01_a_good_update_proves_itself_and_the_zone_keeps_what_it_had() {
    if !full("boots of its own") {
        return;
    }
    busybox();
    let _ = docker(&["volume", "create", "kept"]).ok();
    let url = serve(bundle(&folder("update"), "0.2.0", None));
    let before = inside(&["kraud-update", "status"]).ok();
    assert!(before.contains("from kraud-root-a") || before.contains("from kraud-verity-a"), "{before}");
    let _ = inside(&["kraud-update", "apply", &url]);
    settles("0.2.0", "0.2.0 good");
    assert!(docker(&["volume", "ls", "-q"]).ok().contains("kept"));
    assert_eq!(docker(&["run", "--rm", "busybox", "echo", "hello"]).ok(), "hello\n");
}

#[test]
fn t02_what_is_older_cut_or_changed_is_refused_and_nothing_changes() {
    if !full("boots of its own") {
        return;
    }
    let dir = folder("refused");
    let file = bundle(&dir, "0.1.5", None);
    let older = inside(&["kraud-update", "apply", &serve(file.clone())]);
    assert!(older.code != 0 && older.err.contains("0.2.0 runs already"), "{}", older.err);
    let mut bytes = std::fs::read(bundle(&dir, "0.9.0", None)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let changed = inside(&["kraud-update", "apply", &serve(file.clone())]);
    assert!(changed.code != 0 && changed.err.contains("refused"), "{}", changed.err);
    std::fs::write(&file, &bytes[..middle]).unwrap();
    let cut = inside(&["kraud-update", "apply", &serve(file)]);
    assert!(cut.code != 0 && cut.err.contains("refused"), "{}", cut.err);
    settles("0.2.0", "0.2.0 good");
}

#[test]
fn t03_an_image_whose_kernel_panics_is_undone() {
    if !full("boots of its own") {
        return;
    }
    let url = serve(bundle(&folder("panic"), "0.3.0", Some("panic")));
    let _ = inside(&["kraud-update", "apply", &url]);
    settles("0.2.0", "0.3.0 failed");
}

#[test]
fn t04_an_image_whose_root_does_not_match_is_undone() {
    if !full("boots of its own") {
        return;
    }
    let url = serve(bundle(&folder("verity"), "0.4.0", Some("verity")));
    let _ = inside(&["kraud-update", "apply", &url]);
    settles("0.2.0", "0.4.0 failed");
}

#[test]
fn t05_an_image_that_starts_but_lacks_a_service_is_undone() {
    if !full("boots of its own") {
        return;
    }
    let url = serve(bundle(&folder("service"), "0.5.0", Some("service")));
    let _ = inside(&["kraud-update", "apply", &url]);
    settles("0.2.0", "0.5.0 failed");
    assert_eq!(docker(&["run", "--rm", "busybox", "echo", "hello"]).ok(), "hello\n");
}
