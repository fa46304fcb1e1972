//! What "good" means for an image that has just been started for the first time: every service runs and stays up, the pool is there,
//! the uplink has what it had, and the Docker API answers.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Services that a zone is made of. Named here and not read from the image: one that lost a service is not good.
const SERVICES: [&str; 8] = ["macro", "storage", "vpc", "images", "pods", "docker-api", "node", "web-ui"];
const DOCKER: &str = "/run/kraud/docker/docker.sock";
const POOL: &str = "/run/kraud/storage/pool.json";
/// How long everything must have stayed as it is; a look costs a second of processor time under emulation.
const STEADY: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_secs(4);
const ANSWER: Duration = Duration::from_secs(20);

/// Waits until the machine is good, and has been for a while.
///
/// # Errors
/// What was still wrong at the deadline.
pub fn wait(deadline: Duration, uplink: bool) -> Result<()> {
    let began = Instant::now();
    let mut good_since: Option<(Instant, String)> = None;
    loop {
        match look(uplink) {
            Ok(restarts) => match &good_since {
                Some((since, before)) if *before == restarts => {
                    if since.elapsed() >= STEADY {
                        return Ok(());
                    }
                }
                _ => good_since = Some((Instant::now(), restarts)),
            },
            Err(error) if began.elapsed() > deadline => return Err(error),
            Err(_) => good_since = None,
        }
        std::thread::park_timeout(EVERY);
    }
}

/// How often each service was restarted, when all is good.
fn look(uplink: bool) -> Result<String> {
    let units: Vec<_> = SERVICES.iter().map(|name| format!("kraud-{name}.service")).collect();
    let output = Command::new("systemctl")
        .args(["show", "--property=Id,ActiveState,NRestarts"])
        .args(&units)
        .output()
        .context("cannot ask systemd")?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    for unit in &units {
        let block = shown.split("\n\n").find(|block| block.lines().any(|line| line == format!("Id={unit}")));
        let active = block.is_some_and(|block| block.lines().any(|line| line == "ActiveState=active"));
        ensure!(active, "{unit} does not run");
    }
    let pool = std::fs::read_to_string(POOL).context("storage says nothing of the pool")?;
    let pool: serde_json::Value = serde_json::from_str(&pool).context("storage's word on the pool is no JSON")?;
    ensure!(matches!(pool["health"].as_str(), Some("ONLINE" | "DEGRADED")), "the pool is {}", pool["health"]);
    ensure!(!uplink || has_uplink(), "there is no route to the outside, and there was one before the update");
    ping(Path::new(DOCKER))?;
    Ok(shown)
}

/// Whether this machine has a default route.
#[must_use]
pub fn has_uplink() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000"))
}

fn ping(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("the Docker API does not listen")?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: kraud\r\n\r\n").context("the Docker API does not listen")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).context("the Docker API does not answer")?;
    if &answer[9..] != b"200" {
        bail!("the Docker API answers {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}
