//! The power is cut in the midst of writes: what was acknowledged is there after the next boot.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, appliance, busybox, docker, wait_for};

#[test]
fn after_a_power_cut_volumes_images_networks_and_restarting_containers_are_back() {
    busybox();
    let _clean = CleanUp::containers(&["phoenix", "scribe"]);
    let _ = docker(&["network", "rm", "cutnet"]);
    let _ = docker(&["volume", "create", "cutdata"]).ok();
    let _ = docker(&["network", "create", "cutnet"]).ok();
    let writes = "i=0; while true; do i=$((i+1)); echo $i >> /data/lines; sync; done";
    let _ = docker(&[
        "run",
        "-d",
        "--name",
        "phoenix",
        "--restart",
        "always",
        "--network",
        "cutnet",
        "busybox",
        "sleep",
        "9999",
    ])
    .ok();
    let _ = docker(&["run", "-d", "--name", "scribe", "-v", "cutdata:/data", "busybox", "sh", "-c", writes]).ok();
    let _ = docker(&["exec", "scribe", "sh", "-c", "echo acknowledged > /data/proof; sync"]).ok();
    let _ = appliance(&["kill"]).ok();
    let _ = appliance(&["run", "--no-build", "--detach"]).ok();
    wait_for("the container with a restart policy", || {
        let said = docker(&["inspect", "-f", "{{.State.Running}}", "phoenix"]);
        if said.out == "true\n" { Ok(()) } else { Err(format!("{} {}", said.out, said.err)) }
    });
    assert_eq!(docker(&["run", "--rm", "-v", "cutdata:/data", "busybox", "cat", "/data/proof"]).ok(), "acknowledged\n");
    assert!(docker(&["images"]).ok().contains("busybox"));
    assert!(docker(&["network", "ls"]).ok().contains("cutnet"));
    let _ = docker(&["rm", "-f", "phoenix", "scribe"]).ok();
    let _ = docker(&["volume", "rm", "cutdata"]).ok();
    let _ = docker(&["network", "rm", "cutnet"]).ok();
}
