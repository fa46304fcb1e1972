//! The two engines: the zone, and Docker Engine with runc in the same boot, with the same image in both.
//!
//! The peer runs in a network namespace of its own, so that its firewall rules do not meet the zone's.

use crate::api;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FOLDER: &str = "/run/kraud-bench-docker";
const PEER_FOLDER: &str = "/zone/bench-docker";
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the peer may take to end.
const ENDING: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
/// What every container of a benchmark is called at first.
pub const PREFIX: &str = "bench-";
/// The image.
pub const IMAGE: &str = "bench:latest";
/// What of busybox is in it.
const APPLETS: [&str; 7] = ["cat", "echo", "ls", "seq", "sh", "sleep", "true"];

/// A part of the benchmark `B`: its name, and what it does.
pub type Part<B> = (&'static str, fn(&B) -> Result<()>);

/// Runs the parts of a benchmark, or those whose names are in `only`.
///
/// # Errors
/// Those of the first part that fails, with its name.
pub fn run_parts<B>(bench: &B, parts: &[Part<B>], only: &[String]) -> Result<()> {
    for (name, part) in parts {
        if only.is_empty() || only.iter().any(|o| o == name) {
            part(bench).with_context(|| (*name).to_owned())?;
        }
    }
    Ok(())
}

/// One of the two.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Where it listens.
    pub socket: PathBuf,
}

impl Engine {
    /// The docker CLI, which speaks to it.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(format!("unix://{}", self.socket.display())).args(args).stdin(Stdio::null());
        command
    }

    /// Runs the docker CLI to its end; what it wrote.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let said = self.docker(args).output().context("start docker")?;
        ensure!(
            said.status.success(),
            "docker {} at {}: {}",
            args.join(" "),
            self.socket.display(),
            String::from_utf8_lossy(&said.stderr).trim_end()
        );
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// Runs the docker CLI to its end, and tells how long that took, milliseconds.
    ///
    /// # Errors
    /// When it fails.
    pub fn time(&self, args: &[&str]) -> Result<f64> {
        let started = Instant::now();
        self.run(args)?;
        Ok(milliseconds(started))
    }

    /// A call of the API.
    ///
    /// # Errors
    /// When the answer is no success.
    pub fn api(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        api::json(&self.socket, method, path, body).with_context(|| self.socket.display().to_string())
    }

    /// Creates a container through the API; its id.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(&self, name: &str, mut config: Value) -> Result<String> {
        config["Image"] = IMAGE.into();
        let made = self.api("POST", &format!("/containers/create?name={PREFIX}{name}"), &config)?;
        Ok(made["Id"].as_str().context("the container has no id")?.to_owned())
    }

    /// Removes every container that a benchmark has made.
    ///
    /// # Errors
    /// When it cannot.
    pub fn clean(&self) -> Result<()> {
        let all = self.api("GET", "/containers/json?all=1", &Value::Null)?;
        for container in all.as_array().into_iter().flatten() {
            let is_ours = |name: &Value| name.as_str().is_some_and(|n| n.trim_start_matches('/').starts_with(PREFIX));
            if container["Names"].as_array().into_iter().flatten().any(is_ours) {
                let id = container["Id"].as_str().unwrap_or_default();
                self.api("DELETE", &format!("/containers/{id}?force=1&v=1"), &Value::Null)?;
            }
        }
        Ok(())
    }
}

/// Both, with the image, and the peer's name and version.
pub struct Engines {
    /// The zone, the peer.
    pub both: [Engine; 2],
    /// Whom we compare with.
    pub version: String,
    _peer: Peer,
}

impl Engines {
    /// Starts the peer and gives both the image.
    ///
    /// # Errors
    /// When either cannot run.
    pub fn start() -> Result<Self> {
        let (peer, engine, version) = Peer::start()?;
        let both = [Engine { socket: zone::paths::DOCKER_SOCKET.into() }, engine];
        let archive = image_archive()?;
        for engine in &both {
            engine.clean()?;
            engine.run(&["import", "-c", "CMD [\"sh\"]", &archive.to_string_lossy(), IMAGE])?;
        }
        Ok(Self { both, version, _peer: peer })
    }

    /// Measures both so often, in turns; each is the first in every other turn.
    ///
    /// # Errors
    /// The measurement's.
    pub fn turns(&self, times: u32, mut measure: impl FnMut(&Engine, u32) -> Result<f64>) -> Result<[Vec<f64>; 2]> {
        let mut samples = [Vec::new(), Vec::new()];
        for turn in 0..times {
            for index in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                samples[index].push(measure(&self.both[index], turn)?);
            }
        }
        Ok(samples)
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        for engine in &self.both {
            let _ = engine.clean();
        }
    }
}

/// Since then.
#[must_use]
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn image_archive() -> Result<PathBuf> {
    let folder = Path::new(FOLDER).join("image");
    for name in ["bin", "tmp"] {
        std::fs::create_dir_all(folder.join(name)).context("make the image's folders")?;
    }
    let bin = folder.join("bin");
    std::fs::copy("/usr/bin/busybox", bin.join("busybox")).context("copy busybox")?;
    for applet in APPLETS {
        let _ = std::os::unix::fs::symlink("busybox", bin.join(applet));
    }
    let archive = folder.with_extension("tar");
    let packed = Command::new("busybox").args(["tar", "-cf"]).arg(&archive).arg("-C").arg(&folder).arg(".").status();
    ensure!(packed.context("start tar")?.success(), "tar failed");
    Ok(archive)
}

struct Peer(Child);

impl Peer {
    fn start() -> Result<(Self, Engine, String)> {
        std::fs::create_dir_all(FOLDER).context("make the engine's folder")?;
        let engine = Engine { socket: Path::new(FOLDER).join("docker.sock") };
        // Debian's alternatives are links in /etc, which no extension has.
        for name in ["iptables", "ip6tables"] {
            let _ = std::os::unix::fs::symlink(format!("/usr/sbin/{name}-nft"), Path::new(FOLDER).join(name));
        }
        let script = format!(
            "export PATH={FOLDER}:$PATH; ip link set lo up && exec dockerd --data-root {PEER_FOLDER} --exec-root {FOLDER}/exec \
             --pidfile {FOLDER}/pid -H unix://{}",
            engine.socket.display()
        );
        let log = std::fs::File::create(Path::new(FOLDER).join("log")).context("make the engine's log")?;
        let child = Command::new("unshare")
            .args(["--net", "--kill-child", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the engine's log")?)
            .stderr(log)
            .spawn()
            .context("start Docker Engine")?;
        let mut peer = Self(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(version) = engine.run(&["version", "-f", "{{.Server.Version}}"]) {
                return Ok((peer, engine, format!("Docker Engine {} with runc", version.trim())));
            }
            if peer.0.try_wait().context("look at Docker Engine")?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(Path::new(FOLDER).join("log")).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("Docker Engine does not come up: {}", tail.join(" | "));
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It unmounts what it has mounted, and ends its containers' processes, when it is asked to end.
        if let Ok(pid) = std::fs::read_to_string(Path::new(FOLDER).join("pid")) {
            let _ = Command::new("kill").args(["-TERM", pid.trim()]).status();
            if let Ok(process) = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()) {
                let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDING));
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(PEER_FOLDER);
    }
}
