//! Streams again and again: random sizes, kills, half closes. No byte is lost or doubled, nothing hangs.
//!
//! 50 runs of each; 1000 with `cargo appliance test --full`, or as many as `KRAUD_SOAK` says. The seed is printed: `KRAUD_SEED` repeats a
//! run.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

use qemu_tests::{CleanUp, PATIENCE, busybox, docker, docker_command, docker_with_input, full, wait_for};
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::sync::mpsc::channel;

/// A small generator of numbers that look random (splitmix64): the sizes need no more.
struct Numbers(u64);

impl Numbers {
    fn new(name: &str) -> Self {
        let given = std::env::var("KRAUD_SEED").ok().and_then(|s| s.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()));
        println!("{name}: KRAUD_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Sizes around those that buffers have, and any.
    fn size(&mut self) -> usize {
        const EDGES: [u64; 8] = [0, 1, 4096, 16_384, 32_768, 65_535, 65_536, 65_537];
        let index = usize::try_from(self.below(16)).unwrap();
        usize::try_from(EDGES.get(index).copied().unwrap_or_else(|| self.below(300_000))).unwrap()
    }

    fn bytes(&mut self, size: usize) -> Vec<u8> {
        let start = self.below(1000);
        (0..size as u64).map(|n| b' ' + u8::try_from((start + n * n / 7) % 90).unwrap()).collect()
    }
}

fn runs() -> usize {
    let default = if full("950 of 1000 runs") { 1000 } else { 50 };
    std::env::var("KRAUD_SOAK").map_or(default, |runs| runs.parse().unwrap())
}

fn container(name: &'static str, args: &[&str]) {
    busybox();
    let _ = docker(&[&["run", "-d", "--name", name], args].concat()).ok();
}

#[test]
fn s01_exec_brings_back_every_byte_and_the_exit_code() {
    let _clean = CleanUp::containers(&["soak-exec"]);
    container("soak-exec", &["busybox", "sleep", "36000"]);
    let mut numbers = Numbers::new("exec");
    for run in 0..runs() {
        let size = numbers.size();
        if run % 5 == 4 {
            // Killed at its end: what it wrote is there all the same.
            let script = format!("head -c {size} /dev/zero; kill -9 $$");
            let said = docker(&["exec", "soak-exec", "sh", "-c", &script]);
            assert_eq!((said.code, said.out.len()), (137, size), "run {run}: {}", said.err);
            continue;
        }
        let input = numbers.bytes(size);
        let code = i32::try_from(numbers.below(100)).unwrap();
        let script = format!("cat; exit {code}");
        let said = docker_with_input(&["exec", "-i", "soak-exec", "sh", "-c", &script], &input);
        assert!(
            said.code == code && said.out.as_bytes() == input,
            "run {run}: {} of {size} bytes, code {} for {code}, {}",
            said.out.len(),
            said.code,
            said.err
        );
    }
}

#[test]
fn s02_attach_gives_and_takes_every_byte_though_clients_are_killed() {
    let _clean = CleanUp::containers(&["soak-attach"]);
    container("soak-attach", &["-i", "busybox", "cat"]);
    let mut numbers = Numbers::new("attach");
    for run in 0..runs() {
        let size = numbers.size();
        let mut client =
            docker_command(&["attach", "--sig-proxy=false", "soak-attach"]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut sent = format!("<{run}>").into_bytes();
        sent.extend(numbers.bytes(size));
        sent.extend(format!("</{run}>\n").into_bytes());
        let (bytes, wait) = channel();
        let wanted = sent.len();
        std::thread::spawn(move || {
            let mut got = vec![0; wanted];
            let result = stdout.read_exact(&mut got).map(|()| got);
            let _ = bytes.send(result);
        });
        stdin.write_all(&sent).unwrap();
        stdin.flush().unwrap();
        let got = wait.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("run {run}: {size} bytes do not come back"));
        assert!(got.unwrap() == sent, "run {run}: other bytes came back");
        // Not its standard input's end: the container's stays open for the next one.
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn s03_logs_have_every_line_once() {
    let _clean = CleanUp::containers(&["soak-logs"]);
    container("soak-logs", &["busybox", "sleep", "36000"]);
    let mut numbers = Numbers::new("logs");
    let mut next = 1;
    for run in 0..runs() {
        let last = next + numbers.below(3000);
        let script = format!("seq {next} {last} > /proc/1/fd/1");
        let _ = docker(&["exec", "soak-logs", "sh", "-c", &script]).ok();
        let count = last + 1 - next;
        let wanted: String = (next..=last).map(|n| format!("{n}\n")).collect();
        wait_for("the last line in the log", || {
            let seen = docker(&["logs", "--tail", &count.to_string(), "soak-logs"]).ok();
            if seen == wanted {
                Ok(())
            } else {
                Err(format!("run {run}: {} bytes, ends {:?}", seen.len(), seen.lines().last()))
            }
        });
        next = last + 1;
    }
    let all = docker(&["logs", "soak-logs"]).ok();
    assert!(all == (1..next).map(|n| format!("{n}\n")).collect::<String>(), "{} lines came", all.lines().count());
}

#[test]
fn s04_copies_are_whole_in_both_directions() {
    let _clean = CleanUp::containers(&["soak-cp"]);
    container("soak-cp", &["busybox", "sleep", "36000"]);
    let mut numbers = Numbers::new("cp");
    for run in 0..runs() {
        let size = numbers.size() * 3;
        let bytes = numbers.bytes(size);
        let name = format!("file{}", numbers.below(5));
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o640);
        header.set_uid(1000 + run as u64);
        header.set_mtime(1_700_000_000 + run as u64);
        tar.append_data(&mut header, &name, bytes.as_slice()).unwrap();
        let archive = tar.into_inner().unwrap();
        let put = docker_with_input(&["cp", "-a", "-", "soak-cp:/tmp"], &archive);
        assert_eq!(put.code, 0, "run {run}: {}", put.err);
        let output = docker_command(&["cp", &format!("soak-cp:/tmp/{name}"), "-"]).output().unwrap();
        let mut archive = tar::Archive::new(output.stdout.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut back = Vec::new();
        entry.read_to_end(&mut back).unwrap();
        assert!(back == bytes, "run {run}: {} of {size} bytes came back", back.len());
        let header = entry.header();
        assert_eq!((header.mode().unwrap() & 0o777, header.mtime().unwrap()), (0o640, 1_700_000_000 + run as u64));
    }
}
