//! A guest without a VM: the agent as PID 1 of a set of namespaces, busybox as its image, unix sockets for vsock.
//!
//! Needs root, `unshare` (util-linux) and a static busybox (Debian: busybox-static).

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

pub const ID: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
/// Generous: the tests share two slow cores with others.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Guest {
    pub dir: PathBuf,
    child: Child,
    lines: Receiver<Value>,
    log: Option<UnixStream>,
    _ready: UnixListener,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Says why the tests are skipped, if they are.
pub fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    let busybox = fs::metadata("/bin/busybox").is_ok();
    let namespaces = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--net", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !(root && busybox && namespaces) {
        eprintln!("SKIPPED: needs root ({root}), /bin/busybox ({busybox}), namespaces ({namespaces})");
    }
    root && busybox && namespaces
}

pub fn boot(args: &[&str], container: Value) -> Guest {
    boot_with(args, container, json!({}), true)
}

/// `read_log`: false leaves the log stream unread until [`Guest::read_log`].
pub fn boot_with(args: &[&str], container: Value, spec: Value, read_log: bool) -> Guest {
    let dir = tempfile::Builder::new().prefix("vdocker").tempdir().unwrap().keep();
    let bin = dir.join("disk0/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(dir.join("disk1")).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for name in [
        "sh", "echo", "cat", "id", "sleep", "dd", "tty", "stty", "ps", "ls", "ip", "pwd", "touch", "rm", "mkdir", "wc",
        "head", "yes", "env", "kill", "mount", "seq",
    ] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    let mut one = json!({"id": ID, "image_disk": 0, "upper": {"type": "tmpfs"}, "args": args, "env": []});
    let mut all = json!({"run": 1, "hostname": "guest"});
    merge(&mut one, container);
    merge(&mut all, spec);
    all["containers"] = json!([one]);
    fs::write(dir.join("spec.json"), all.to_string()).unwrap();
    let log = UnixListener::bind(dir.join("log.sock")).unwrap();
    let ready = UnixListener::bind(dir.join("ready.sock")).unwrap();
    let script = format!(
        "ip link add eth0 type veth peer name out && ip link set out up; exec {} --namespaces {}",
        env!("CARGO_BIN_EXE_vdocker"),
        dir.display()
    );
    let child = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--net",
            "--ipc",
            "--uts",
            "--cgroup",
            "sh",
            "-c",
            &script,
        ])
        .spawn()
        .unwrap();
    // One that only has files has nothing to tell.
    let log = (all["files_only"] != true).then(|| log.accept().unwrap().0);
    let (_, lines) = channel();
    let mut guest = Guest { dir, child, lines, log, _ready: ready };
    if read_log {
        guest.read_log();
    }
    guest
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

impl Guest {
    pub fn read_log(&mut self) {
        let Some(log) = self.log.take() else { return };
        let (sender, lines) = channel();
        self.lines = lines;
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines() {
                let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
    }

    /// The data of the next record.
    pub fn next(&self) -> Value {
        self.lines.recv_timeout(DEADLINE).expect("the log has one more record")["d"].clone()
    }

    /// Waits until the container writes `text` to its output.
    pub fn wait_for(&self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let record = self.next();
            assert!(
                record.get("exited").is_none() && record.get("failed").is_none(),
                "ended before {text:?}: {record}, {seen}"
            );
            seen += record["out"].as_str().unwrap_or_default();
        }
    }

    /// All records to the end, checked to be numbered without gaps, and the agent's end.
    pub fn finish(mut self) -> Vec<Value> {
        self.read_log();
        let mut all: Vec<Value> = Vec::new();
        let mut last = None;
        while let Ok(record) = self.lines.recv_timeout(DEADLINE) {
            let number = record["n"].as_u64().unwrap();
            assert!(last.is_none_or(|l: u64| l + 1 == number), "a gap before record {number}");
            last = Some(number);
            all.push(record["d"].clone());
        }
        assert!(self.child.wait().unwrap().success());
        all
    }

    pub fn connect(&self) -> UnixStream {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(self.dir.join("agent.sock")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    return stream;
                }
                Err(error) => assert!(std::time::Instant::now() < deadline, "the agent does not answer: {error}"),
            }
            std::thread::yield_now();
        }
    }

    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let path = path.replace("{id}", ID);
        write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
            .unwrap();
        stream.write_all(body).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let body = if head.contains("chunked") { dechunk(&bytes[end..]) } else { bytes[end..].to_vec() };
        Answer { status: head[9..12].parse().unwrap(), head, body }
    }

    /// Takes a connection over; returns it behind the head of the answer.
    pub fn upgrade(&self, path: &str, body: &Value, ahead: &[u8]) -> UnixStream {
        let mut stream = self.connect();
        let (path, body) = (path.replace("{id}", ID), body.to_string());
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream.write_all(ahead).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 UPGRADED\r\n"), "{}", String::from_utf8_lossy(&head));
        stream
    }

    /// Runs a command; returns its output without frames and its exit code.
    pub fn exec(&self, config: Value, input: &[u8]) -> (String, i64) {
        let mut all = json!({"AttachStdout": true, "AttachStderr": true, "AttachStdin": !input.is_empty()});
        let tty = config["Tty"] == true;
        merge(&mut all, config);
        let created = self.request("POST", "/containers/{id}/exec", all.to_string().as_bytes());
        assert_eq!(created.status, 201, "{}", String::from_utf8_lossy(&created.body));
        let id = created.json()["Id"].as_str().unwrap().to_owned();
        let mut stream = self.upgrade(&format!("/exec/{id}/start"), &json!({"Detach": false, "Tty": tty}), input);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = if tty { bytes } else { unframe(&bytes).into_iter().flat_map(|(_, b)| b).collect() };
        let code = self.request("GET", &format!("/exec/{id}/json"), b"").json()["ExitCode"].as_i64().unwrap();
        (String::from_utf8(text).unwrap(), code)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk has a length");
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return all;
        }
        all.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
}

/// Frames as (stream, bytes).
pub fn unframe(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    while bytes.len() >= 8 {
        let length = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        all.push((bytes[0], bytes[8..8 + length].to_vec()));
        bytes = &bytes[8 + length..];
    }
    assert!(bytes.is_empty(), "a frame is cut");
    all
}

/// What the container wrote to one of its streams (`out` or `err`), and its last record.
pub fn output(records: &[Value], stream: &str) -> (Vec<u8>, Value) {
    let pieces = records.iter().filter_map(|r| r[stream].as_str());
    (pieces.collect::<String>().into_bytes(), records.last().cloned().unwrap_or_default())
}
