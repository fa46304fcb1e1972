//! A guest that means harm reaches nothing but itself: the jail of every monitor, and a kernel that does what no driver would.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{CleanUp, busybox, docker, folder, inside, monitors, shell, wait_for};
use std::fs;
use std::process::Command;

/// The guest's memory and what its monitor may take beside it.
const MEMORY_MIB: u64 = 64;
const MONITOR_MIB: u64 = 24;
const LOG_BYTES: u64 = 1 << 20;

#[test]
fn a_monitor_has_no_path_no_privilege_and_filters_on_every_thread() {
    busybox();
    let _clean = CleanUp::containers(&["jailed"]);
    let _ = docker(&["run", "-d", "--name", "jailed", "busybox", "sleep", "1000"]).ok();
    let monitors = monitors();
    let monitor = monitors.last().unwrap().trim_end_matches("/comm");
    let root = inside(&["ls", "-A", &format!("{monitor}/root/")]).ok();
    assert_eq!(root, "", "the monitor's root is not empty");
    let threads = shell(&format!("cat {monitor}/task/*/status")).ok();
    for (field, expected) in [("Seccomp:", "2"), ("NoNewPrivs:", "1"), ("CapEff:", "0000000000000000")] {
        let values: Vec<_> = threads.lines().filter_map(|line| line.strip_prefix(field)).map(str::trim).collect();
        assert!(values.len() > 2 && values.iter().all(|value| *value == expected), "{field} {values:?}");
    }
    let namespaces = format!("readlink {monitor}/ns/user /proc/1/ns/user {monitor}/ns/mnt /proc/1/ns/mnt");
    let namespaces = shell(&namespaces).ok();
    let [user, hosts_user, mounts, hosts_mounts] = namespaces.lines().collect::<Vec<_>>()[..] else {
        panic!("{namespaces}")
    };
    assert!(user != hosts_user && mounts != hosts_mounts, "{namespaces}");
}

#[test]
fn a_hostile_guest_harms_nobody_but_itself() {
    busybox();
    let _clean = CleanUp::containers(&["neighbour"]);
    let count = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.2; done";
    let _ = docker(&["run", "-d", "--name", "neighbour", "busybox", "sh", "-c", count]).ok();
    put("/run/hostile", "vmlinux", &kernel());
    let bundle = format!(
        r#"{{"vcpus":1,"memory_mib":{MEMORY_MIB},"kernel":"vmlinux","initramfs":"none","guest_spec":"none","agent":"agent.sock",
        "disks":[{{"extents":[{{"path":"ro"}}],"read_only":true}},{{"extents":[{{"path":"rw"}}],"read_only":false}}],
        "log":{{"files":["log0","log1"],"max_bytes":{LOG_BYTES}}},"console":"con","spare_slots":1}}"#
    );
    put("/run/hostile", "cradle.json", bundle.as_bytes());
    let script = "cd /run/hostile; : > log0; : > log1; echo {} > none; truncate -s 1M ro rw
        $(find /run/kraud/cradle -name kcradle | head -1) run . --strict 2> said & pid=$!
        while kill -0 $pid 2> /dev/null; do grep VmHWM /proc/$pid/status 2> /dev/null > now && mv now most; sleep 0.1; done
        wait $pid; echo $?; grep -o '[0-9]*' most; wc -l < said; stat -c %s log0 log1; grep -c 'hostile: ends' con; head -3 said";
    let said = shell(script).ok();
    let _ = inside(&["rm", "-rf", "/run/hostile"]);
    let numbers: Vec<u64> = said.lines().take(6).map(|line| line.parse().unwrap_or(u64::MAX)).collect();
    let [code, most_kib, lines, first_log, second_log, ends] = numbers[..] else { panic!("{said}") };
    // Ended by itself, or its monitor said why not; a signal would be 128 and more.
    assert!(code == 0 || code == 2, "{said}");
    assert!(ends >= 1, "it did not get through: {said}");
    assert!(most_kib <= (MEMORY_MIB + MONITOR_MIB) << 10, "{most_kib} KiB: {said}");
    assert!(lines <= 50 && first_log <= LOG_BYTES + 65536 && second_log <= LOG_BYTES + 65536, "{said}");
    let before = docker(&["logs", "neighbour"]).ok().lines().count();
    wait_for("more lines of the neighbour", || {
        let now = docker(&["logs", "neighbour"]).ok();
        if now.lines().count() > before { Ok(()) } else { Err(now) }
    });
    let numbers: Vec<u64> = docker(&["logs", "neighbour"]).ok().lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "the neighbour's log has a gap");
}

/// Compiles the hostile kernel: 32-bit code in the 64-bit file that a PVH loader reads.
fn kernel() -> Vec<u8> {
    let dir = folder("hostile");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/hostile/kernel.c");
    let code = "-m32 -O1 -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables \
        -fcf-protection=none -mno-sse -S -o code.s";
    run(&dir, "cc", &code.split_whitespace().chain([source]).collect::<Vec<_>>());
    let assembly = fs::read_to_string(dir.join("code.s")).unwrap();
    fs::write(dir.join("code.s"), format!(".code32\n{assembly}")).unwrap();
    run(&dir, "cc", &["-c", "-m64", "-o", "code.o", "code.s"]);
    let link = "-m elf_x86_64 -N -static -Ttext=0x100000 -e entry --build-id=none -z noexecstack -o kernel code.o";
    run(&dir, "ld", &link.split_whitespace().collect::<Vec<_>>());
    let kernel = fs::read(dir.join("kernel")).unwrap();
    let _ = fs::remove_dir_all(dir);
    kernel
}

fn run(dir: &std::path::Path, program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a small file inside the machine.
fn put(dir: &str, name: &str, bytes: &[u8]) {
    let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
    let _ = shell(&format!("mkdir -p {dir}; printf '{octal}' > {dir}/{name}")).ok();
}
