//! A service whose image was changed does not start, says why, and takes no other service with it.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, inside, shell, wait_for};

const UNIT: &str = "kraud-web-ui.service";

/// Lays the image that was there before in its place again, and starts the service.
struct PutBack;

impl Drop for PutBack {
    fn drop(&mut self) {
        let _ = shell("umount -l /usr/lib/kraud/services/web-ui.tar.gz; systemctl restart kraud-web-ui.service");
    }
}

#[test]
fn the_unit_of_a_tampered_service_fails_with_the_reason_and_the_others_run() {
    busybox();
    let _clean = CleanUp::containers(&["tampered-witness"]);
    let _back = PutBack;
    // One byte in the middle of the content.
    let tamper = "set -e; f=/usr/lib/kraud/services/web-ui.tar.gz; mkdir -p /run/tampered; cp $f /run/tampered/web-ui.tar.gz
        at=$(($(stat -c %s $f) / 2)); old=$(od -An -tu1 -j $at -N 1 $f)
        printf \"\\\\$(printf %03o $(((old + 1) % 256)))\" | dd of=/run/tampered/web-ui.tar.gz bs=1 seek=$at conv=notrunc status=none
        mount --bind /run/tampered/web-ui.tar.gz $f; systemctl restart kraud-web-ui.service";
    let restarted = shell(tamper);
    assert_ne!(restarted.code, 0, "a changed image was started");
    let shown = inside(&["systemctl", "show", "-p", "ActiveState,Result,ExecMainStatus", UNIT]).ok();
    assert!(shown.contains("ActiveState=failed") && shown.contains("ExecMainStatus=77"), "{shown}");
    let said = inside(&["journalctl", "-b", "-o", "cat", "-n", "20", "-u", UNIT]).ok();
    assert!(
        said.contains("/usr/lib/kraud/services/web-ui.tar.gz was changed after it was signed"),
        "the journal does not say why: {said}"
    );
    for name in ["macro", "images", "storage", "vpc", "pods", "node", "docker-api"] {
        let state = inside(&["systemctl", "is-active", &format!("kraud-{name}.service")]).out;
        assert_eq!(state, "active\n", "kraud-{name}");
    }
    let echo = docker(&["run", "--rm", "--name", "tampered-witness", "busybox", "echo", "unharmed"]).ok();
    assert_eq!(echo, "unharmed\n");
    drop(_back);
    wait_for("the service with its own image", || {
        let state = inside(&["systemctl", "is-active", UNIT]).out;
        if state == "active\n" { Ok(()) } else { Err(state) }
    });
}
