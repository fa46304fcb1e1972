//! What the worker that reads strangers' archives can reach: its input, its output, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Output};

fn worker(dir: &Path, script: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_images"))
        .args([
            "worker",
            dir.join("out").to_str().unwrap(),
            dir.join("in").to_str().unwrap(),
            "--",
            "/bin/sh",
            "-c",
            script,
        ])
        .current_dir(dir)
        .output()
        .unwrap()
}

#[test]
fn the_worker_reads_its_input_and_writes_its_output_and_reaches_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["in", "out", "other"] {
        std::fs::write(dir.path().join(file), "before").unwrap();
    }
    let good = worker(dir.path(), "cat in > out");
    let said = String::from_utf8_lossy(&good.stderr).into_owned();
    assert!(good.status.success(), "{said}");
    if said.contains("no Landlock") {
        eprintln!("skipped: this kernel has no Landlock");
        return;
    }
    for script in ["cat other", "echo x > other", "echo x > new", "echo x > in", "cat /etc/passwd", "ls ."] {
        let denied = worker(dir.path(), script);
        assert!(!denied.status.success(), "{script} was possible");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("other")).unwrap(), "before");
    if Path::new("/usr/bin/python3").exists() {
        let network = worker(dir.path(), "python3 -Ic 'import socket; socket.socket()'");
        assert!(
            !network.status.success() && String::from_utf8_lossy(&network.stderr).contains("not permitted"),
            "{network:?}"
        );
    }
}
