//! `bali run` as systemd starts it: as root, with real namespaces. Without root these tests say so and pass.

// The helpers below are test code too; clippy knows only functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const BALI: &str = env!("CARGO_BIN_EXE_bali");

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// None when the machine cannot do it.
    fn new(dockerfile: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(std::io::stderr(), "skipped: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("keys")).unwrap();
        assert!(
            Command::new(BALI)
                .args(["keygen", "-o"])
                .arg(at("keys/k"))
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        std::fs::create_dir(at("context")).unwrap();
        std::fs::copy(BALI, at("context/bali")).unwrap();
        std::fs::write(at("context/greeting"), "hello\n").unwrap();
        std::fs::write(at("context/Dockerfile"), format!("FROM scratch\n{dockerfile}")).unwrap();
        let built = Command::new(BALI)
            .arg("build")
            .arg(at("context"))
            .arg("-o")
            .arg(at("image.tar.gz"))
            .arg("--key")
            .arg(at("keys/k"))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(Self { dir })
    }

    /// An image that uses the host's shell.
    fn shell() -> Option<Self> {
        Self::new("COPY greeting /greeting\nENTRYPOINT [\"/usr/bin/sh\", \"-c\"]\nENV FROM_IMAGE=1 SET_BY_BOTH=image\n")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.tar.gz")
    }

    fn run(&self, options: &[&str], args: &[&str]) -> Command {
        let mut command = Command::new(BALI);
        command
            .arg("run")
            .arg("--keys")
            .arg(self.dir.path().join("keys"))
            .args(options)
            .arg(self.image())
            .arg("--")
            .args(args);
        command.env_remove("NOTIFY_SOCKET");
        command
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_payload_sees_the_image_and_its_own_environment() {
    let Some(bench) = Bench::shell() else { return };
    let script = "cat /greeting; echo $FROM_IMAGE $SET_BY_BOTH $INHERITED; pwd; ls /";
    let output =
        bench.run(&["--host-usr"], &[script]).env("SET_BY_BOTH", "caller").env("INHERITED", "yes").output().unwrap();
    assert_eq!(said(&output), "hello\n1 caller yes\n/\nbin\ndev\netc\ngreeting\nlib\nlib64\nproc\nsbin\ntmp\nusr");
}

#[test]
fn a_static_program_needs_nothing_of_the_host() {
    let Some(bench) = Bench::new("COPY --chmod=0755 bali /bin/bali\nENTRYPOINT [\"/bin/bali\"]\nCMD [\"--version\"]\n")
    else {
        return;
    };
    assert!(said(&bench.run(&[], &[]).output().unwrap()).starts_with("bali "));
}

#[test]
fn exit_codes_are_the_payloads_or_tell_why_there_is_none() {
    let Some(bench) = Bench::shell() else { return };
    let code = |options: &[&str], script: &str| bench.run(options, &[script]).output().unwrap().status.code();
    assert_eq!(code(&["--host-usr"], "exit 42"), Some(42));
    assert_eq!(code(&[], "true"), Some(127), "no shell without the host's /usr");
    assert_eq!(code(&["--user", "nobody-of-that-name"], "true"), Some(125));
    assert_eq!(code(&["--bind", "/not/there"], "true"), Some(125));
    assert_eq!(code(&["--bind", "-/not/there", "--host-usr"], "exit 3"), Some(3));
    let Some(bench) = Bench::new("COPY greeting /greeting\nCMD [\"/greeting\"]\n") else { return };
    assert_eq!(bench.run(&[], &[]).output().unwrap().status.code(), Some(126), "not executable");
}

#[test]
fn a_changed_image_is_never_started() {
    let Some(bench) = Bench::shell() else { return };
    let mut bytes = std::fs::read(bench.image()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(bench.image(), bytes).unwrap();
    let output = bench.run(&["--host-usr"], &["echo started"]).output().unwrap();
    assert_eq!(output.status.code(), Some(77), "a supervisor sees that trying again does not help");
    assert!(output.stdout.is_empty());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("image.tar.gz") && message.contains("signature"), "{message}");
}

#[test]
fn signals_reach_the_payload_which_has_our_process_id() {
    let Some(bench) = Bench::shell() else { return };
    let mut child = bench
        .run(&["--host-usr"], &["trap 'exit 7' TERM; echo $$; while :; do sleep 0.1; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), child.id().to_string());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn nothing_stays_mounted_and_the_hosts_files_are_out_of_sight() {
    let Some(bench) = Bench::shell() else { return };
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let output = bench
        .run(&["--host-usr"], &["cut -d' ' -f5 /proc/self/mountinfo; ls /root /home 2>/dev/null || true"])
        .output()
        .unwrap();
    let mut mounts: Vec<String> = said(&output).lines().map(str::to_owned).collect();
    // The host's own mounts below /usr and /etc are shown with them.
    mounts.retain(|m| !m.starts_with("/usr/") && !m.starts_with("/etc/"));
    mounts.sort();
    assert_eq!(
        mounts,
        ["/", "/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero", "/etc", "/proc", "/tmp", "/usr"]
    );
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn a_user_without_capabilities_has_none() {
    let Some(bench) = Bench::shell() else { return };
    let status = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status";
    let output = bench.run(&["--host-usr", "--user", "4242:4343", "--group", "77"], &[status]).output().unwrap();
    let text = said(&output).replace('\t', " ");
    for line in ["Uid: 4242 4242 4242 4242", "Gid: 4343 4343 4343 4343", "Groups: 77", "NoNewPrivs: 1", "Seccomp: 2"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(text.contains(&format!("{set}: 0000000000000000")), "{set} in {text}");
    }
}

#[test]
fn the_capabilities_asked_for_survive_the_start() {
    let Some(bench) = Bench::shell() else { return };
    for user in ["4242", "0"] {
        let options = ["--host-usr", "--user", user, "--cap", "NET_ADMIN", "--cap", "CAP_NET_BIND_SERVICE"];
        let text = said(&bench.run(&options, &["grep Cap /proc/self/status"]).output().unwrap()).replace('\t', " ");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(text.contains(&format!("{set}: 0000000000001400")), "user {user}: {text}");
        }
    }
}

#[test]
fn what_the_profile_denies_kills() {
    let Some(bench) = Bench::shell() else { return };
    let killed = |options: &[&str], script: &str| {
        let mut all = vec!["--host-usr"];
        all.extend(options);
        bench.run(&all, &[&format!("exec {script}")]).output().unwrap().status.signal() == Some(31)
    };
    assert!(killed(&[], "unshare -n true"));
    assert!(killed(&[], "mount -t tmpfs none /tmp"));
    assert!(!killed(&["--seccomp", "none"], "mount -t tmpfs none /tmp"));
    assert!(!killed(&["--allow-syscall", "unshare"], "unshare -n true"));
    assert!(!killed(&[], "sh -c 'true & wait'"));
}

#[test]
fn binds_show_what_is_asked_for_and_read_only_means_it() {
    let Some(bench) = Bench::shell() else { return };
    let shown = bench.dir.path().join("shown");
    std::fs::create_dir(&shown).unwrap();
    std::fs::write(shown.join("a"), "content").unwrap();
    let at = |suffix: &str| format!("{}:{suffix}", shown.display());
    let options = ["--host-usr", "--bind", &at("/x/y"), "--bind", &at("/r:ro"), "--device", "/dev/tty"];
    let script = "cat /x/y/a; echo new > /x/y/b; (echo no > /r/c) 2>/dev/null || echo refused; \
                  (echo no > /z) 2>/dev/null || echo refused; test -c /dev/tty && echo tty";
    assert_eq!(said(&bench.run(&options, &[script]).output().unwrap()), "contentrefused\nrefused\ntty");
    assert_eq!(std::fs::read_to_string(shown.join("b")).unwrap(), "new\n");
    assert!(!shown.join("c").exists());
}

#[test]
fn a_later_mount_of_the_host_appears_below_a_bind() {
    let Some(bench) = Bench::shell() else { return };
    let outer = bench.dir.path().join("outer");
    std::fs::create_dir_all(outer.join("inner")).unwrap();
    // A namespace of its own whose mounts are shared, as systemd makes the host's.
    let script = "mount --make-rshared / && mount -t tmpfs none \"$1\" && mkdir \"$1/inner\" && shift && \
                  \"$@\" & pid=$!; read line < \"$FIFO\"; mount -t tmpfs none \"$OUTER/inner\"; touch \"$OUTER/inner/seen\"; \
                  touch \"$OUTER/go\"; wait $pid";
    let payload = "echo > /fifo; until test -e /outer/go; do :; done; ls /outer/inner";
    let fifo = bench.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let inner = bench.run(
        &[
            "--host-usr",
            "--bind",
            &format!("{}:/outer", outer.display()),
            "--bind",
            &format!("{}:/fifo", fifo.display()),
        ],
        &[payload],
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(&outer).arg(inner.get_program()).args(inner.get_args());
    command.env("FIFO", &fifo).env("OUTER", &outer).env_remove("NOTIFY_SOCKET");
    assert_eq!(said(&command.output().unwrap()), "seen");
}

#[test]
fn readiness_reaches_systemd() {
    let Some(bench) = Bench::shell() else { return };
    let socket = bench.dir.path().join("notify");
    let _listener = UnixDatagram::bind(&socket).unwrap();
    let script = "test -S \"$NOTIFY_SOCKET\" && echo reachable";
    let output = bench.run(&["--host-usr"], &[script]).env("NOTIFY_SOCKET", &socket).output().unwrap();
    assert_eq!(said(&output), "reachable");
}

#[test]
fn inherited_descriptors_stay_open() {
    let Some(bench) = Bench::shell() else { return };
    let inner = bench.run(&["--host-usr"], &["read line <&3; echo $line $LISTEN_FDS"]);
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<\"$1\"; shift; exec \"$@\"", "sh"]).arg(Path::new("/proc/self/status"));
    command.arg(inner.get_program()).args(inner.get_args()).env("LISTEN_FDS", "1").env_remove("NOTIFY_SOCKET");
    assert_eq!(said(&command.output().unwrap()), "Name: sh 1");
}
