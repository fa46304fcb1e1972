//! Debian's Docker Engine, started beside the zone in the same boot.
//!
//! It runs in a network namespace of its own, so that its firewall rules do not meet the zone's, and is gone with all it
//! had when this is dropped.

use crate::http::{Request, ask};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RUN: &str = "/run/kraud-compare";
const DATA: &str = "/zone/compare-docker";
const PATIENCE: Duration = Duration::from_secs(180);

/// The engine.
#[derive(Debug)]
pub struct Peer {
    child: Child,
}

impl Peer {
    /// Where it listens.
    #[must_use]
    pub fn socket() -> PathBuf {
        Path::new(RUN).join("docker.sock")
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; with the end of its log.
    pub fn start() -> Result<Self> {
        std::fs::create_dir_all(RUN).context("make the engine's folder")?;
        // Debian's alternatives are links in /etc, which no extension has.
        for name in ["iptables", "ip6tables"] {
            let _ = std::os::unix::fs::symlink(format!("/usr/sbin/{name}-nft"), format!("{RUN}/{name}"));
        }
        let script = format!(
            "export PATH={RUN}:$PATH; ip link set lo up && exec dockerd --data-root {DATA} --exec-root {RUN}/exec --pidfile {RUN}/pid \
             -H unix://{RUN}/docker.sock"
        );
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::once(&script, deadline) {
                // On a busy machine its containerd may come up later than it waits for it.
                Err(error) if Instant::now() < deadline && error.to_string().contains("containerd") => {}
                other => return other,
            }
        }
    }

    fn once(script: &str, deadline: Instant) -> Result<Self> {
        let log_path = Path::new(RUN).join("log");
        let log = std::fs::File::create(&log_path).context("make the engine's log")?;
        let child = Command::new("unshare")
            .args(["--net", "--kill-child", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the engine's log")?)
            .stderr(log)
            .spawn()
            .context("start Docker Engine")?;
        let mut peer = Self { child };
        let ping = Request { method: "GET".into(), path: "/_ping".into(), ..Request::default() };
        while !ask(&Self::socket(), &ping).is_ok_and(|a| a.status == 200) {
            if peer.child.try_wait().context("look at Docker Engine")?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                bail!("Docker Engine does not come up: {}", tail.join(" | "));
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(DATA);
    }
}
