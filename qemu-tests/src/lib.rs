//! What the tests of the booted image are written with: the real docker CLI from outside, commands inside, and waits
//! for conditions.
//!
//! The zone is already booted; where it is stands in the environment that `cargo appliance test` sets.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, clippy::panic, reason = "these are the tests' own tools: a failure is the test's")]

pub mod image;
pub mod registry;
pub mod second;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take in a machine that is emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Reads a variable that `cargo appliance test` sets.
#[must_use]
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo appliance test`"))
}

/// Whether the tests are run with `--full`; says that this one is skipped, and why it is not for every run, when they are not.
#[must_use]
#[allow(clippy::print_stderr, reason = "a test that does not run says so")]
pub fn full(why: &str) -> bool {
    let full = variable("KRAUD_FULL") == "1";
    if !full {
        eprintln!("skipped: {why}; `cargo appliance test --full` runs it");
    }
    full
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// The exit status; 128 + signal after a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The output, if the command ended well.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A docker command, not yet started.
#[must_use]
pub fn docker_command(args: &[&str]) -> Command {
    let mut command = Command::new(variable("KRAUD_DOCKER"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the docker CLI.
#[must_use]
pub fn docker(args: &[&str]) -> Said {
    docker_command(args).output().expect("the docker CLI starts").into()
}

/// Runs the docker CLI with `input` as its standard input.
#[must_use]
pub fn docker_with_input(args: &[&str], input: &[u8]) -> Said {
    let mut child = docker_command(args).stdin(Stdio::piped()).spawn().expect("the docker CLI starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // The CLI may have gone away: its status tells.
        let _ = stdin.write_all(&input);
    });
    let said = child.wait_with_output().expect("the docker CLI ends").into();
    feeder.join().expect("feeding does not panic");
    said
}

/// Runs a command as root inside the machine.
#[must_use]
pub fn inside(argv: &[&str]) -> Said {
    appliance(&[&["exec", "--"], argv].concat())
}

/// Runs a script as root inside the machine.
#[must_use]
pub fn shell(script: &str) -> Said {
    inside(&["sh", "-c", script])
}

/// The process ids of all monitors, as paths in /proc.
#[must_use]
pub fn monitors() -> Vec<String> {
    let found = shell("grep -lx kcradle /proc/[0-9]*/comm");
    found.out.lines().map(str::to_owned).collect()
}

/// Runs `cargo appliance …`.
#[must_use]
pub fn appliance(args: &[&str]) -> Said {
    let mut command = Command::new(variable("KRAUD_APPLIANCE"));
    command.args(args).stdin(Stdio::null()).output().expect("appliance starts").into()
}

/// Waits until `look` gives something.
///
/// # Panics
/// When it does not in [`PATIENCE`]; with what was seen last.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("{what} did not come true; last seen: {seen}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(200)),
        }
    }
}

/// Removes containers by force when a test ends, well or not.
#[derive(Debug)]
pub struct CleanUp(pub &'static [&'static str]);

impl CleanUp {
    /// Removes them now, in case an earlier run left them, and again at the end.
    #[must_use]
    pub fn containers(names: &'static [&'static str]) -> Self {
        remove(names);
        Self(names)
    }
}

impl Drop for CleanUp {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(names: &[&str]) {
    // Absent containers are none to remove.
    let _ = docker(&[&["rm", "-f", "-v"], names].concat());
}

/// Makes sure that the image `busybox` is there.
pub fn busybox() {
    if docker(&["image", "inspect", "busybox"]).code != 0 {
        let archive = image::busybox("busybox:latest");
        let said = docker_with_input(&["load"], &archive).ok();
        assert!(said.contains("Loaded image: busybox:latest"), "{said}");
    }
}

/// A new folder for a test's files.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kraud-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder can be made");
    path
}

/// Asks an HTTP server on the developer's machine for `/` and gives the whole answer.
///
/// # Errors
/// When nobody answers there.
pub fn http_get(address: &str, path: &str) -> Result<String, String> {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(address).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    if answer.is_empty() { Err("an empty answer".into()) } else { Ok(answer) }
}
