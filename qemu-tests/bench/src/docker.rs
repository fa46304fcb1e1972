//! `docker`: `docker run --rm busybox echo hello` on the zone and on Docker Engine with runc, in turns, in the same boot.
//!
//! The engine runs in a network namespace of its own, so that its firewall rules do not meet the zone's.

use crate::phases::{PHASES, Phases};
use crate::samples::{self, About};
use anyhow::{Context as _, Result, bail, ensure};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PEER_SOCKET: &str = "unix:///run/kraud-bench-docker/docker.sock";
const PEER_FOLDER: &str = "/zone/bench-docker";
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs of both engines in turns.
///
/// # Errors
/// When either cannot run.
pub fn run(runs: u32) -> Result<()> {
    let ours = format!("unix://{}", zone::paths::DOCKER_SOCKET);
    let peer = Peer::start()?;
    let archive = image_archive()?;
    for host in [&ours, PEER_SOCKET] {
        let import = Command::new("docker")
            .args(["-H", host, "import", "-c", "CMD [\"sh\"]"])
            .arg(&archive)
            .arg("bench:latest")
            .output()
            .context("start docker")?;
        ensure!(
            import.status.success(),
            "cannot import the image at {host}: {}",
            String::from_utf8_lossy(&import.stderr)
        );
    }
    let phases = Phases::begin()?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut parts: [Vec<f64>; PHASES.len()] = Default::default();
    for _ in 0..runs {
        let began = zone::time::now_ns();
        a.push(time(&ours)?);
        let ended = zone::time::now_ns();
        for (samples, part) in parts.iter_mut().zip(phases.of_run(began, ended)?) {
            samples.push(part);
        }
        b.push(time(PEER_SOCKET)?);
    }
    let about = About {
        bench: "docker",
        metric: "docker_run_ms_p50",
        unit: "ms",
        peer: &peer.version,
        payload: "docker run --rm busybox echo hello, to the CLI's exit",
        vcpus: 1,
        memory_mib: 512,
    };
    samples::print(about, &a, &b)?;
    samples::print_percentile(About { metric: "docker_run_ms_p95", ..about }, 95, &a, &b)?;
    samples::print_percentile(About { metric: "docker_run_ms_p99", ..about }, 99, &a, &b)?;
    for (phase, samples) in PHASES.into_iter().zip(&parts) {
        samples::print_alone(About { bench: "docker phases", metric: phase, ..about }, samples)?;
    }
    Ok(())
}

fn time(host: &str) -> Result<f64> {
    let started = Instant::now();
    let said = Command::new("docker")
        .args(["-H", host, "run", "--rm", "bench", "echo", "hello"])
        .output()
        .context("start docker")?;
    let took = started.elapsed().as_secs_f64() * 1000.0;
    ensure!(
        said.status.success() && said.stdout == b"hello\n",
        "docker run at {host}: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(took)
}

fn image_archive() -> Result<std::path::PathBuf> {
    let folder = Path::new("/run/kraud-bench-docker/image");
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).context("make the image's folder")?;
    std::fs::copy("/usr/bin/busybox", bin.join("busybox")).context("copy busybox")?;
    for applet in ["sh", "echo"] {
        let _ = std::os::unix::fs::symlink("busybox", bin.join(applet));
    }
    let archive = folder.with_extension("tar");
    let packed = Command::new("busybox").args(["tar", "-cf"]).arg(&archive).arg("-C").arg(folder).arg(".").status();
    ensure!(packed.context("start tar")?.success(), "tar failed");
    Ok(archive)
}

struct Peer {
    child: Child,
    version: String,
}

impl Peer {
    fn start() -> Result<Self> {
        std::fs::create_dir_all("/run/kraud-bench-docker").context("make the engine's folder")?;
        // Debian's alternatives are links in /etc, which no extension has.
        for name in ["iptables", "ip6tables"] {
            let _ =
                std::os::unix::fs::symlink(format!("/usr/sbin/{name}-nft"), format!("/run/kraud-bench-docker/{name}"));
        }
        let script = format!(
            "export PATH=/run/kraud-bench-docker:$PATH; ip link set lo up && exec dockerd --data-root {PEER_FOLDER} --exec-root /run/kraud-bench-docker/exec \
             --pidfile /run/kraud-bench-docker/pid -H {PEER_SOCKET}"
        );
        let log = std::fs::File::create("/run/kraud-bench-docker/log").context("make the engine's log")?;
        let child = Command::new("unshare")
            .args(["--net", "--kill-child", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the engine's log")?)
            .stderr(log)
            .spawn()
            .context("start Docker Engine")?;
        let mut peer = Self { child, version: String::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said =
                Command::new("docker").args(["-H", PEER_SOCKET, "version", "-f", "{{.Server.Version}}"]).output();
            let said = said.context("start docker")?;
            if said.status.success() {
                peer.version = format!("Docker Engine {} with runc", String::from_utf8_lossy(&said.stdout).trim());
                return Ok(peer);
            }
            if peer.child.try_wait().context("look at Docker Engine")?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string("/run/kraud-bench-docker/log").unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("Docker Engine does not come up: {}", tail.join(" | "));
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(PEER_FOLDER);
    }
}
