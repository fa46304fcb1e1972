//! What a user reads when something is missing: the real program, in folders of its own, in the state that it complains about.
//!
//! Each message names the thing, what is wrong with it and what to do. Nothing here needs a network or builds anything.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_appliance");
/// The variables that decide where the program looks.
const FOLDERS: [&str; 4] = ["HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "TMPDIR"];

/// A user's folders, which any user of the machine may write to.
fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    home
}

/// `cargo appliance ARGS` with those folders.
fn appliance(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args).envs(FOLDERS.map(|name| (name, home)));
    command
}

/// The same as root of a mount namespace of its own, after a shell's `before`, which finds the folder at `$1`.
fn in_namespace(home: &Path, before: &str, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = format!("set -e; {before}\nshift; exec \"$@\"");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &script, "sh"]).arg(home).arg(PROGRAM);
    command.args(args).envs(FOLDERS.map(|name| (name, home)));
    command
}

/// What it said; it must have failed with one message that has all of `words`, and nothing on its standard output.
fn refused(command: &mut Command, words: &[&str]) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(!said.contains("panicked") && stdout.is_empty(), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    said
}

/// Nothing half built stays: no entry of any step, and nothing begun.
fn nothing_was_built(home: &Path) {
    let cache = home.join("kraudbox");
    for dir in ["tmp", "tree-tools", "image"] {
        let left: Vec<_> = fs::read_dir(cache.join(dir)).into_iter().flatten().flatten().collect();
        assert!(left.iter().all(|entry| entry.path().extension().is_some_and(|e| e == "lock")), "{left:?}");
    }
}

#[test]
fn a_cache_on_a_small_disk_is_refused_before_anything_is_fetched() {
    let home = home();
    let mut build = in_namespace(home.path(), "mount -t tmpfs -o size=64m tmpfs \"$1\"", &["build"]);
    let said = refused(&mut build, &["MiB free", "a build needs", "cache gc", "XDG_CACHE_HOME"]);
    assert!(said.contains(&home.path().join("kraudbox").display().to_string()), "{said}");
}

#[test]
fn a_cache_on_a_full_disk_says_so() {
    let home = home();
    let before = "mount -t tmpfs -o nr_inodes=2 tmpfs \"$1\"";
    refused(&mut in_namespace(home.path(), before, &["build"]), &["disk is full", "cache gc", "XDG_CACHE_HOME"]);
}

#[test]
fn a_zone_on_a_small_disk_is_refused_before_the_build() {
    let home = home();
    let mut run = in_namespace(home.path(), "mount -t tmpfs -o size=64m tmpfs \"$1\"", &["run", "--memory", "1G"]);
    let said = refused(&mut run, &["MiB free", "zone's disks need", "XDG_STATE_HOME"]);
    assert!(!said.contains("tree-tools"), "{said}");
}

#[test]
fn a_machine_without_mmdebstrap_and_apt_names_the_package() {
    let home = home();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in ["rm", "env"] {
        let at = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).unwrap();
        std::os::unix::fs::symlink(at, bin.join(program)).unwrap();
    }
    // The program looks into the folders of the system's administration, too: there is nothing in them here.
    let hide = "mkdir \"$1/none\"; mount --bind \"$1/none\" /usr/sbin; [ /usr/sbin -ef /sbin ] || mount --bind \"$1/none\" /sbin; PATH=\"$1/bin\"; export PATH";
    let mut build = in_namespace(home.path(), hide, &["build"]);
    if too_small(home.path()) {
        return;
    }
    refused(&mut build, &["lacks `mmdebstrap`", "apt-get install mmdebstrap"]);
    nothing_was_built(home.path());
}

#[test]
fn an_ordinary_user_without_sudo_is_told_what_is_missing() {
    let home = home();
    // Somebody else may not look into the folder that it was compiled in.
    let program = home.path().join("appliance");
    fs::copy(PROGRAM, &program).unwrap();
    fs::create_dir(home.path().join("image-recipes")).unwrap();
    let mut build = Command::new(program);
    build.arg("build").envs(FOLDERS.map(|name| (name, home.path()))).env("PATH", home.path().join("none"));
    build.env("CARGO_MANIFEST_DIR", home.path());
    if rustix::process::geteuid().is_root() {
        build.uid(65534).gid(65534);
    }
    refused(&mut build, &["only root", "no sudo", "apt-get install sudo", "adduser"]);
    assert!(!home.path().join("kraudbox").exists());
}

#[test]
fn a_machine_without_debian_sources_asks_for_a_mirror() {
    let home = home();
    let empty = "mkdir \"$1/apt\"; mount --bind \"$1/apt\" /etc/apt";
    refused(
        &mut in_namespace(home.path(), empty, &["build"]),
        &["no Debian mirror", "/etc/apt", "--mirror URL", "trixie"],
    );
    nothing_was_built(home.path());
}

#[test]
fn what_is_no_url_is_no_mirror() {
    let home = home();
    refused(
        &mut appliance(home.path(), &["build", "--mirror", "debian.example"]),
        &["`debian.example`", "http://HOST/debian"],
    );
}

#[test]
fn a_mirror_that_does_not_answer_is_named_with_what_apt_says() {
    let home = home();
    let found = |program: &str| appliance::build::host::find(program).is_some();
    if !rustix::process::geteuid().is_root() || !found("mmdebstrap") || too_small(home.path()) {
        return said("needs root and mmdebstrap");
    }
    // Taken and given back: nobody listens there.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/debian");
    let mut build = appliance(home.path(), &["build", "--mirror", &url]);
    refused(&mut build, &[&url, "trixie", "onnect", "--mirror URL", "tree-tools.log"]);
    nothing_was_built(home.path());
}

#[test]
fn a_taken_port_is_named_before_the_build() {
    let home = home();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--web-port", "--docker-port"] {
        let mut run = appliance(home.path(), &["run", "--memory", "1G", flag, &port]);
        refused(&mut run, &[&format!("port {port}"), "is taken", "ss -ltnp", flag]);
    }
    let mut run = appliance(home.path(), &["run", "--web-port", "4343", "--docker-port", "4343"]);
    refused(&mut run, &["--web-port and --docker-port"]);
    assert!(!home.path().join("kraudbox/logs").exists(), "a build was begun");
}

#[test]
fn a_second_run_names_the_zone_that_runs() {
    let home = home();
    let dir = home.path().join("kraudbox/zone");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fs::write(dir.join("lock"), "4711\n").unwrap();
    for command in ["run", "test"] {
        let mut second = appliance(home.path(), &[command]);
        refused(
            &mut second,
            &["runs on this computer already", "4711", "cargo appliance status", "cargo appliance stop"],
        );
    }
    assert!(!home.path().join("kraudbox/logs").exists(), "a build was begun");
}

#[test]
fn what_needs_a_zone_says_how_to_start_one() {
    let home = home();
    let commands: [&[&str]; 6] =
        [&["env"], &["exec", "--", "true"], &["logs"], &["logs", "kraud-pods"], &["bench"], &["swap"]];
    for args in commands {
        refused(&mut appliance(home.path(), args), &["no zone runs", "cargo appliance run"]);
    }
    for args in [["stop"], ["kill"]] {
        refused(&mut appliance(home.path(), &args), &["no zone runs"]);
    }
    refused(&mut appliance(home.path(), &["start"]), &["no zone to start again", "cargo appliance run"]);
    let status = appliance(home.path(), &["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("cargo appliance run"));
}

#[test]
fn more_memory_than_there_is_names_the_option() {
    refused(&mut appliance(home().path(), &["run", "--memory", "4000G"]), &["4096000 MiB", "MiB are free", "--memory"]);
}

#[test]
fn without_a_home_there_is_no_place_for_anything() {
    for (args, words) in [(["build"], "XDG_CACHE_HOME"), (["env"], "XDG_STATE_HOME")] {
        let mut command = Command::new(PROGRAM);
        FOLDERS.iter().fold(command.args(args), |command, name| command.env_remove(name));
        refused(&mut command, &["HOME", words]);
    }
}

/// A cold build is refused for its disk before anything else can be looked at.
fn too_small(dir: &Path) -> bool {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let small = stat.f_bavail * stat.f_frsize < 9 << 30;
    if small {
        said("needs a disk with 9 GiB free");
    }
    small
}

#[allow(clippy::print_stderr, reason = "a test that does not run says so")]
fn said(why: &str) {
    eprintln!("not tried: {why}");
}
