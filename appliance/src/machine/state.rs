//! The state directory of the zone on this computer: where it is, who holds it, what is known about the zone.
//!
//! | file | what |
//! | --- | --- |
//! | `lock` | held (flock) by the supervisor for as long as the zone lives; holds its process id |
//! | `plan.json` | what the supervisor shall start ([`Plan`]) |
//! | `zone.json` | what is known about the zone ([`Zone`]); only the supervisor writes it |
//! | `door-token`, `client/*.pem` | secrets: the directory is readable by its owner only |
//! | `base.img`, `os.qcow2`, `pool.img`, `vars.fd` | the machine's disks and firmware variables |
//! | `serial.log`, `supervisor.log`, `qmp.sock` | of the running machine |
//! | `dhcp.*` | of its own network, when it has one |
//!
//! `zone.json` counts only while the lock is held: after a crash it is a leftover.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Where the zone answers: ports of 127.0.0.1, or of its own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The web page (guest 443).
    pub web: u16,
    /// The Docker API (guest 2376).
    pub docker: u16,
    /// The exec door.
    pub door: u16,
}

/// What the supervisor starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The tools tree that has QEMU.
    pub tools: PathBuf,
    /// UEFI code.
    pub ovmf_code: PathBuf,
    /// The image's hash.
    pub image_sha256: String,
    /// Whether hardware virtualisation is used.
    pub kvm: bool,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u16,
    /// The forwarded ports.
    pub ports: Ports,
    /// Writes are never waited for: for tests that do not cut the power.
    pub unsafe_cache: bool,
    /// How long the zone may take to answer, seconds.
    pub deadline_s: u64,
    /// The guest's journal also goes to its console, and so into `serial.log`.
    #[serde(default)]
    pub console_journal: bool,
    /// The zone is on a network of its own ([`super::lan`]) instead of behind forwards.
    #[serde(default)]
    pub lan: bool,
    /// The firmware checks signatures once it has keys.
    #[serde(default)]
    pub secure_boot: bool,
}

impl Plan {
    /// Where the zone answers.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        if self.lan { super::lan::ZONE } else { Ipv4Addr::LOCALHOST }
    }
}

/// How far the zone is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It does not answer yet; the last thing that was seen of it.
    Booting(String),
    /// It answers.
    Ready,
    /// It did not come up in time; the machine still runs, to be looked at.
    Failed(String),
    /// It is shutting down.
    Stopping,
}

/// What is known about the running zone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Zone {
    /// The supervisor.
    pub pid: u32,
    /// When it was started, seconds since 1970.
    pub started: u64,
    /// How far it is.
    pub phase: Phase,
    /// What it was started with.
    pub plan: Plan,
    /// The code that a browser or a Docker client pairs with, once known.
    pub pairing_code: Option<String>,
    /// Ports of pods that answer on 127.0.0.1 now, such as `tcp:8080`.
    pub published: Vec<String>,
    /// What did not work without stopping the zone.
    pub notes: Vec<String>,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// Held for as long as the zone lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The longest path that a unix socket can have, with its ending zero.
const MAX_SOCKET_PATH: usize = 107;

impl StateDir {
    /// `$XDG_STATE_HOME/kraudbox/zone`, or the same under `~/.local/state`; makes it.
    ///
    /// # Errors
    /// When neither variable is set or the directory cannot be made.
    pub fn locate() -> Result<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let Some(base) = base else {
            bail!("no place for the zone's state: set HOME or XDG_STATE_HOME to an absolute path");
        };
        Self::at(base.join("kraudbox/zone"))
    }

    /// The state directory at `path`; makes it.
    ///
    /// # Errors
    /// When it cannot be made, or is too long for the sockets in it.
    pub fn at(path: PathBuf) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make the state directory {}", path.display()))?;
        let dir = Self(path);
        if dir.qmp_socket().as_os_str().len() > MAX_SOCKET_PATH {
            bail!(
                "the state directory {} has too long a path for a socket: set XDG_STATE_HOME to a shorter one",
                dir.0.display()
            );
        }
        Ok(dir)
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// QEMU's control socket.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.file("qmp.sock")
    }

    /// The serial console's output.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.file("serial.log")
    }

    /// The directory of the client's certificate: `ca.pem`, `cert.pem`, `key.pem`, as the docker CLI wants it.
    #[must_use]
    pub fn client_dir(&self) -> PathBuf {
        self.file("client")
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.file("lock");
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    /// Takes the lock; none when a zone holds it.
    ///
    /// # Errors
    /// When the file cannot be opened or locked.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        let mut file = self.lock_file()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot lock {}", self.file("lock").display())),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Some(Lock { _file: file }))
    }

    /// The process that holds the lock, if one does.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn holder(&self) -> Result<Option<u32>> {
        let mut file = self.lock_file()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", self.file("lock").display())),
        }
        let mut pid = String::new();
        file.read_to_string(&mut pid)?;
        pid.trim().parse().map(Some).with_context(|| format!("{} holds no process id", self.file("lock").display()))
    }

    /// Waits until no zone holds the lock; false at the deadline.
    ///
    /// # Errors
    /// When the lock cannot be opened.
    pub fn wait_unlocked(&self, deadline: Duration) -> Result<bool> {
        let file = self.lock_file()?;
        let (sender, receiver) = mpsc::channel();
        // flock has no deadline; a thread that waits in vain ends with the process.
        std::thread::spawn(move || {
            let _ = flock(&file, FlockOperation::LockShared);
            let _ = sender.send(());
        });
        Ok(receiver.recv_timeout(deadline).is_ok())
    }

    /// The running zone; none when none runs.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn running(&self) -> Result<Option<Zone>> {
        let Some(pid) = self.holder()? else { return Ok(None) };
        let zone: Option<Zone> = self.read_json("zone.json")?;
        Ok(zone.filter(|zone| zone.pid == pid))
    }

    /// The running zone.
    ///
    /// # Errors
    /// Says how to start one when none runs.
    pub fn require_running(&self) -> Result<Zone> {
        self.running()?.context("no zone runs on this computer: start one with `cargo appliance run`")
    }

    /// Reads a JSON file; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read or is not what it should be.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged: remove it", path.display()))
    }

    /// Replaces a JSON file at once: a reader sees the old or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        self.write_secret(name, &serde_json::to_vec_pretty(value)?)
    }

    /// Replaces a file at once; only the owner can read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_secret(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.file(name);
        let new = self.file(&format!("{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The serial console's last lines, for an error message.
    #[must_use]
    pub fn serial_tail(&self, lines: usize) -> String {
        let bytes = fs::read(self.serial_log()).unwrap_or_default();
        let start = bytes.len().saturating_sub(16 * 1024);
        tail(&String::from_utf8_lossy(&bytes[start..]), lines)
    }
}

/// The last lines of a console's output, without control sequences.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let clean: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
    clean[clean.len().saturating_sub(lines)..].join("\n")
}

fn printable(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            // A control sequence ends with a letter.
            '\x1b' => {
                let _ = chars.by_ref().find(char::is_ascii_alphabetic);
            }
            '\t' => out.push(' '),
            char if char.is_control() => {}
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_held_by_one_and_free_after_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        assert_eq!(dir.holder().unwrap(), None);
        let lock = dir.try_lock().unwrap().unwrap();
        assert!(dir.try_lock().unwrap().is_none());
        assert_eq!(dir.holder().unwrap(), Some(std::process::id()));
        assert!(!dir.wait_unlocked(Duration::from_millis(20)).unwrap());
        drop(lock);
        assert!(dir.wait_unlocked(Duration::from_secs(10)).unwrap());
        assert_eq!(dir.holder().unwrap(), None);
    }

    #[test]
    fn a_leftover_zone_file_is_no_running_zone() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        dir.write_secret("zone.json", b"{}").unwrap();
        assert!(dir.running().unwrap().is_none());
        assert!(dir.require_running().unwrap_err().to_string().contains("cargo appliance run"));
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let error = StateDir::at(temp.path().join("x".repeat(100))).unwrap_err();
        assert!(error.to_string().contains("XDG_STATE_HOME"));
    }

    #[test]
    fn a_tail_has_no_control_sequences_and_no_empty_lines() {
        assert_eq!(tail("one\n\x1b[2J\x1b[0;32mtwo\x1b[0m\r\n\n  \nthree\n", 2), "two\nthree");
        assert_eq!(tail("", 3), "");
    }
}
