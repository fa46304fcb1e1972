//! Containers go on from a template that the zone has made: as different from each other as two that were booted, and the
//! template is a whole one or none, whoever is killed when.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, inside, shell, wait_for};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// The size that the zone makes by itself.
const USUAL: &str = "512";
/// What a guest has beside its container's limit, MiB.
const VM_MIB: u32 = 64;
/// What a container says of itself that no other container may say.
const WHO: &str = "cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid; \
    head -c 16 /dev/urandom | od -An -tx1; head -c 16 /dev/random | od -An -tx1; hostname; cat /sys/class/net/eth0/address; date +%s";

fn templates(what: &str) -> String {
    shell(&format!("ls -d /run/kraud/cradle/*/cradle/templates/{what} 2>/dev/null")).out
}

fn wait_for_template(size: &str) {
    wait_for(&format!("a template of {size} MiB"), || {
        let there = templates(&format!("{size}/state"));
        if there.is_empty() { Err(templates(".??*") + &journal()) } else { Ok(()) }
    });
}

fn journal() -> String {
    shell("journalctl -u kraud-pods -u 'kraud-template-*' -o cat | tail -5").out
}

/// How many monitors have a template mapped.
fn users() -> usize {
    let count = shell("cat /proc/[0-9]*/maps 2>/dev/null | grep -c 'templates/.*/mem'");
    count.out.trim().parse().unwrap_or(0)
}

#[test]
fn e01_two_containers_of_one_template_have_nothing_random_in_common() {
    busybox();
    let _clean = CleanUp::containers(&["one", "two"]);
    wait_for_template(USUAL);
    let mut seen = BTreeSet::new();
    let mut said = Vec::new();
    for name in ["one", "two"] {
        let script = format!("{WHO}; exec sleep 1000");
        let _ = docker(&["run", "-d", "--name", name, "busybox", "sh", "-c", &script]).ok();
        let lines = wait_for(&format!("{name} says who it is"), || {
            let logs = docker(&["logs", name]).out;
            if logs.lines().count() == 7 { Ok(logs) } else { Err(logs) }
        });
        said.push(lines);
    }
    assert!(users() >= 2, "they were booted: {}", journal());
    for lines in &said {
        let lines: Vec<&str> = lines.lines().map(str::trim).collect();
        for line in &lines[..6] {
            assert!(seen.insert((*line).to_owned()), "{line} twice: {said:?}");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let told: u64 = lines[6].parse().unwrap();
        // Emulated: its first words may have taken their time.
        assert!(told <= now + 5 && now - told.min(now) < 120, "it is {now}, the container says {told}");
    }
}

#[test]
fn e02_other_sizes_boot_first_and_find_a_template_later() {
    busybox();
    let small = || docker(&["run", "--rm", "-m", "96m", "busybox", "echo", "small"]).ok();
    // Made when no pod has been starting for a while; where many sizes are in use, one must be unused for a while first.
    let mut looks = 0;
    wait_for("a template of 160 MiB", || {
        if looks % 40 == 0 {
            assert_eq!(small(), "small\n");
        }
        looks += 1;
        if templates("160/state").is_empty() { Err(templates("*") + &journal()) } else { Ok(()) }
    });
    assert_eq!(small(), "small\n");
    // More than one processor boots as ever.
    let two = docker(&["run", "--rm", "--cpus", "2", "busybox", "busybox", "nproc"]).ok();
    assert_eq!(two, "2\n");
}

#[test]
fn e03_what_does_not_fit_is_refused_made_anew_and_no_start_fails() {
    busybox();
    wait_for_template(USUAL);
    // Cut off behind its first word: nothing that a kill could leave, but what a bad memory could.
    let state = templates(&format!("{USUAL}/state"));
    let state = state.trim();
    let _ = inside(&["truncate", "-s", "4096", state]).ok();
    assert_eq!(docker(&["run", "--rm", "busybox", "echo", "booted"]).ok(), "booted\n");
    wait_for("a new template", || {
        let size = inside(&["stat", "-c", "%s", state]);
        if size.code == 0 && size.out.trim() != "4096" { Ok(()) } else { Err(size.out + &journal()) }
    });
    assert_eq!(docker(&["run", "--rm", "busybox", "echo", "again"]).ok(), "again\n");
}

#[test]
fn e04_a_kill_while_one_is_made_leaves_none_and_another_is_made() {
    busybox();
    // A size that no test before has left a template of.
    let size = (134..190).find(|size| templates(&size.to_string()).is_empty()).unwrap();
    let (draft, memory) = (format!(".{size}.new"), format!("{}m", size - VM_MIB));
    let odd = |word| docker(&["run", "--rm", "-m", &memory, "busybox", "echo", word]);
    let mut looks = 0;
    wait_for("a template being made", || {
        // Where many sizes are in use, one must be unused for a while first: asked for now and then.
        if looks % 40 == 0 {
            let _ = odd("made").ok();
        }
        looks += 1;
        if templates(&draft).is_empty() { Err(templates("*")) } else { Ok(()) }
    });
    let _ = inside(&["systemctl", "kill", "-s", "KILL", "kraud-pods"]).ok();
    assert!(templates(&size.to_string()).is_empty());
    wait_for("the service clears away", || if templates(&draft).is_empty() { Ok(()) } else { Err(journal()) });
    let makers = shell(&format!("systemctl list-units --plain --no-legend 'kraud-template-{size}-*'")).out;
    assert!(makers.lines().count() <= 1, "{makers}");
    wait_for("pods start again", || {
        let said = odd("again");
        if said.out == "again\n" { Ok(()) } else { Err(said.err) }
    });
    wait_for_template(&size.to_string());
}
