//! Networks and volumes of the booted zone as Docker's users expect them, and the walls around its own services.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, full, http_get, inside, shell, variable, wait_for};
use serde_json::Value;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&docker(args).ok()).unwrap()
}

/// A fresh network of that name.
fn network(args: &[&str]) {
    let name = args.last().unwrap();
    let _ = docker(&["network", "rm", name]);
    let _ = docker(&[&["network", "create"], args].concat()).ok();
}

/// A container that serves its /etc on port 80.
fn server(name: &str, more: &[&str]) {
    let command = ["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];
    let _ = docker(&[&["run", "-d", "--name", name], more, &command].concat()).ok();
}

fn exec(name: &str, script: &str) -> qemu_tests::Said {
    docker(&["exec", name, "sh", "-c", script])
}

/// The zone's address on its uplink.
fn uplink() -> String {
    let said = shell("ip -4 -o route get 192.0.2.1 | sed 's/.* src \\([0-9.]*\\).*/\\1/'").ok();
    said.trim().to_owned()
}

#[test]
fn t30_a_running_container_joins_networks_and_leaves_them_again() {
    busybox();
    let _clean = CleanUp::containers(&["t30-roamer", "t30-server"]);
    network(&["t30-a"]);
    network(&["t30-b"]);
    server("t30-server", &["--network", "t30-b"]);
    let _ = docker(&["run", "-d", "--name", "t30-roamer", "--network", "t30-a", "busybox", "sleep", "900"]).ok();
    let fetch = || exec("t30-roamer", "wget -q -T 5 -O - http://t30-server/passwd");
    assert_ne!(fetch().code, 0, "it reaches a network that it is not on");
    let _ = docker(&["network", "connect", "--alias", "rover", "t30-b", "t30-roamer"]).ok();
    assert!(fetch().ok().contains("root:x:0:0"));
    assert!(exec("t30-roamer", "ip -4 addr show eth1").ok().contains("inet "));
    assert!(exec("t30-server", "nslookup rover").ok().contains("rover"));
    let members = docker(&["network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "t30-b"]).ok();
    assert!(members.contains("t30-roamer") && members.contains("t30-server"), "{members}");
    // The network that it started with goes; the other one becomes its way out.
    let _ = docker(&["network", "disconnect", "t30-a", "t30-roamer"]).ok();
    assert!(fetch().ok().contains("root:x:0:0"));
    assert!(exec("t30-roamer", "ip route").ok().contains("default"), "no default route is left");
    let _ = docker(&["network", "disconnect", "t30-b", "t30-roamer"]).ok();
    assert_ne!(fetch().code, 0, "it still reaches the network that it left");
    let _ = docker(&["network", "connect", "t30-b", "t30-roamer"]).ok();
    assert!(fetch().ok().contains("root:x:0:0"));
    let _ = docker(&["rm", "-f", "t30-roamer", "t30-server"]).ok();
    let _ = docker(&["network", "rm", "t30-a", "t30-b"]).ok();
}

#[test]
fn t31_addresses_and_names_are_the_ones_asked_for() {
    busybox();
    let _clean = CleanUp::containers(&["t31-fixed", "t31-any"]);
    network(&["--subnet", "10.77.0.0/24", "--gateway", "10.77.0.254", "--ip-range", "10.77.0.128/25", "t31"]);
    let mac = "02:00:00:00:77:07";
    let fixed = ["--network", "t31", "--ip", "10.77.0.7", "--mac-address", mac, "--network-alias", "also"];
    server("t31-fixed", &fixed);
    let _ = docker(&["run", "-d", "--name", "t31-any", "--network", "t31", "busybox", "sleep", "900"]).ok();
    let link = exec("t31-fixed", "ip addr show eth0").ok();
    assert!(link.contains("10.77.0.7/") && link.contains(mac), "{link}");
    let any = docker(&["inspect", "-f", "{{.NetworkSettings.Networks.t31.IPAddress}}", "t31-any"]).ok();
    let last: u8 = any.trim().rsplit('.').next().unwrap().parse().unwrap();
    assert!(any.starts_with("10.77.0.") && last >= 128, "{any} is not of the range");
    let resolv = exec("t31-any", "cat /etc/resolv.conf").ok();
    assert!(resolv.contains("nameserver 127.0.0.11") && resolv.contains("ndots:0"), "{resolv}");
    for name in ["t31-fixed", "also", "t31-fixed.t31"] {
        assert!(exec("t31-any", &format!("wget -q -O - http://{name}/passwd")).ok().contains("root:x:0:0"), "{name}");
    }
    let back = exec("t31-any", "nslookup 10.77.0.7 127.0.0.11").ok();
    assert!(back.contains("t31-fixed.t31"), "{back}");
    let taken = docker(&["run", "--rm", "--network", "t31", "--ip", "10.77.0.7", "busybox", "true"]);
    assert!(taken.code != 0 && taken.err.contains("already in use"), "{}", taken.err);
    let ipam = json(&["network", "inspect", "-f", "{{json .IPAM.Config}}", "t31"]);
    assert_eq!(
        (ipam[0]["IPRange"].as_str(), ipam[0]["Gateway"].as_str()),
        (Some("10.77.0.128/25"), Some("10.77.0.254"))
    );
    let _ = docker(&["rm", "-f", "t31-fixed", "t31-any"]).ok();
    let _ = docker(&["network", "rm", "t31"]).ok();
}

#[test]
fn t32_a_published_port_answers_pods_too_and_the_zones_own_doors_do_not() {
    busybox();
    let _clean = CleanUp::containers(&["t32-server", "t32-other", "t32-inner"]);
    server("t32-server", &["-p", "8732:80"]);
    network(&["t32"]);
    network(&["--internal", "t32-internal"]);
    let _ = docker(&["run", "-d", "--name", "t32-other", "--network", "t32", "busybox", "sleep", "900"]).ok();
    let _ = docker(&["run", "-d", "--name", "t32-inner", "--network", "t32-internal", "busybox", "sleep", "900"]).ok();
    wait_for("the port on the developer's machine", || http_get("127.0.0.1:8732", "/passwd"));
    let zone = uplink();
    let get = |from: &str, port: u16| exec(from, &format!("wget -q -T 4 -O - http://{zone}:{port}/passwd"));
    assert!(get("t32-other", 8732).ok().contains("root:x:0:0"), "another network's pod, by the zone's address");
    assert!(get("t32-server", 8732).ok().contains("root:x:0:0"), "the pod itself, by the zone's address");
    assert_ne!(get("t32-inner", 8732).code, 0, "an internal network has a way out");
    let gateway = docker(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "t32"]).ok();
    // Side by side: each waits for an answer that must not come.
    let tries = format!(
        "for a in {zone} {} 127.0.0.11; do for p in 22 80 443 2375 2376; do
           (nc -w 3 $a $p </dev/null >/dev/null 2>&1 && echo $a:$p) & done; done; wait",
        gateway.trim()
    );
    assert_eq!(exec("t32-other", &tries).ok(), "", "doors of the zone that a pod reaches");
    let spoofed = "ip addr add 10.99.99.99/32 dev eth0 && ping -c 1 -W 2 -I 10.99.99.99 ";
    let privileged = docker(&["run", "--rm", "--privileged", "busybox", "sh", "-c", &format!("{spoofed}{zone}")]);
    assert_ne!(privileged.code, 0, "an answer came to an address that is not the pod's: {}", privileged.out);
    let _ = docker(&["rm", "-f", "t32-server", "t32-other", "t32-inner"]).ok();
    let _ = docker(&["network", "rm", "t32", "t32-internal"]).ok();
}

#[test]
fn t33_snapshots_are_taken_by_the_clock_and_a_volume_goes_back_to_one_and_forth_again() {
    busybox();
    let _clean = CleanUp::containers(&["t33-user"]);
    let _ = docker(&["volume", "rm", "-f", "t33"]);
    let _ = docker(&["volume", "create", "-o", "snapshots=10s", "t33"]).ok();
    let run = |script: &str| docker(&["run", "--rm", "-v", "t33:/data", "busybox", "sh", "-c", script]).ok();
    run("echo first > /data/file; sync");
    let snapshots = || json(&["volume", "inspect", "-f", "{{json .Status.Snapshots}}", "t33"]);
    let names = || -> Vec<String> {
        let all = snapshots();
        // null while there is none.
        all.as_array().into_iter().flatten().filter_map(|s| s["Name"].as_str().map(str::to_owned)).collect()
    };
    // On a slow machine the clock may have struck before the file was there.
    let early = names();
    let first = wait_for("an automatic snapshot of the file", || {
        let all = names();
        all.iter().find(|name| !early.contains(name)).cloned().ok_or_else(|| all.join(" "))
    });
    assert!(first.starts_with("auto-"), "{first}");
    run("echo second > /data/file; sync");
    let _ = docker(&["run", "-d", "--name", "t33-user", "-v", "t33:/data", "busybox", "sleep", "900"]).ok();
    let back = |to: &str| docker(&["volume", "create", "-o", &format!("rollback={to}"), "t33"]);
    let busy = back(&first);
    assert!(busy.code != 0 && busy.err.contains("t33-user"), "{}", busy.err);
    let _ = docker(&["rm", "-f", "t33-user"]).ok();
    assert!(back("nosuch").err.contains("no snapshot nosuch"));
    let _ = back(&first).ok();
    assert_eq!(run("cat /data/file"), "first\n");
    let guard = names().into_iter().find(|name| name.starts_with("before-rollback-"));
    let _ = back(&guard.expect("the state before it is a snapshot")).ok();
    assert_eq!(run("cat /data/file"), "second\n");
    let _ = docker(&["volume", "rm", "t33"]).ok();
    wait_for("the end of the volume's datasets", || {
        let left = inside(&["zfs", "list", "-H", "-o", "name", "-r", "zone/volumes"]).ok();
        if left.contains("t33") { Err(left) } else { Ok(()) }
    });
}

#[test]
fn t34_a_volumes_size_is_a_limit_and_what_cannot_be_is_refused_with_the_reason() {
    busybox();
    let _ = docker(&["volume", "rm", "-f", "t34"]);
    let _ = docker(&["volume", "create", "-o", "size=8M", "t34"]).ok();
    let fill = "dd if=/dev/urandom of=/data/big bs=1M count=32 2>&1; sync";
    let said = docker(&["run", "--rm", "-v", "t34:/data", "busybox", "sh", "-c", fill]);
    assert!(said.out.contains("quota") || said.out.contains("No space"), "{} {}", said.out, said.err);
    let _ = docker(&["volume", "rm", "t34"]).ok();
    for (args, reason) in [
        (&["-d", "gfs"][..], "file locks"),
        (&["-o", "type=tmpfs", "-o", "device=tmpfs"], "there is no volume option"),
        (&["-o", "size=huge"], "the size \"huge\" is wrong"),
        (&["-o", "snapshots=1s"], "at least 10s"),
    ] {
        let refused = docker(&[&["volume", "create"], args, &["t34-bad"]].concat());
        assert!(refused.code != 0 && refused.err.contains(reason), "{args:?}: {}", refused.err);
    }
}

#[test]
fn t35_pods_that_come_and_go_leave_nothing_behind() {
    busybox();
    let rounds = if variable("KRAUD_FULL") == "1" { 200 } else { 5 };
    let count = || {
        let script = "ip -o link | grep -c ': t[0-9a-f]*:'; ls /run/kraud/pods | wc -l; ls /zone/pods | wc -l; \
                      systemctl list-units --all --plain --no-legend 'kraud-pod-*' 'kraud-fs-*' | wc -l; \
                      for s in pods vpc docker-api; do ls /proc/$(systemctl show -P MainPID kraud-$s)/fd | wc -l; done";
        shell(script).out.lines().map(|l| l.trim().parse().unwrap()).collect::<Vec<i64>>()
    };
    let _ = docker(&["run", "--rm", "-v", "/data", "busybox", "true"]).ok();
    let before = count();
    for _ in 0..rounds {
        let _ = docker(&["run", "--rm", "-v", "/data", "busybox", "true"]).ok();
    }
    wait_for("the end of what pods leave behind", || {
        let now = count();
        // A connection or two may be open or not at any moment; a leak of one a round is more.
        let (things, descriptors) = now.split_at(4);
        let few = descriptors.iter().zip(&before[4..]).all(|(now, before)| *now <= before + rounds / 2 + 2);
        // The pod of before the count may have left something that goes a moment later.
        let gone = things.iter().zip(&before).all(|(now, before)| now <= before);
        if gone && few { Ok(()) } else { Err(format!("before {before:?}, now {now:?}")) }
    });
    let failed = inside(&["systemctl", "list-units", "--failed", "--plain", "--no-legend", "kraud-*"]).out;
    assert!(failed.is_empty(), "{failed}");
}

#[test]
fn t36_pods_are_stopped_in_order_at_a_shutdown_and_come_back_by_their_policy() {
    if !full("a boot of its own") {
        return;
    }
    busybox();
    let _clean = CleanUp::containers(&["t36-orderly", "t36-once"]);
    let _ = docker(&["volume", "rm", "-f", "t36"]);
    let script =
        "trap 'echo told >> /data/log; sync; exit 0' TERM; echo up >> /data/log; sync; while :; do sleep 1; done";
    for (name, policy) in [("t36-orderly", "unless-stopped"), ("t36-once", "no")] {
        let volume = if name == "t36-orderly" { "t36:/data" } else { "t36-once:/data" };
        let _ =
            docker(&["run", "-d", "--name", name, "--restart", policy, "-v", volume, "busybox", "sh", "-c", script])
                .ok();
    }
    let _ = qemu_tests::appliance(&["stop"]).ok();
    let _ = qemu_tests::appliance(&["start", "--detach"]).ok();
    wait_for("the container with a restart policy", || {
        let said = docker(&["exec", "t36-orderly", "cat", "/data/log"]);
        if said.out == "up\ntold\nup\n" { Ok(()) } else { Err(format!("{} {}", said.out, said.err)) }
    });
    let once = docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "t36-once"]).ok();
    assert_eq!(once, "exited 0\n", "it was not asked to stop, or came back");
    let _ = docker(&["rm", "-f", "t36-orderly", "t36-once"]).ok();
    let _ = docker(&["volume", "rm", "t36", "t36-once"]).ok();
}
