//! Waiting for a booting zone: first its door, then its certificates, then its interfaces.
//!
//! Nothing tells the outside that a machine is up but its answers, so each is asked for until it comes.

use super::door::Door;
use super::http::Client;
use super::state::{Ports, StateDir};
use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(20);
/// How long the first answer of the door may take: a connection that was begun before the guest's network was there is answered
/// late, a new one at once.
const FIRST_ANSWER: Duration = Duration::from_secs(4);
/// Between two questions: short for a person, long for the machine.
const INTERVAL: Duration = Duration::from_millis(300);

/// What is told before the door has answered.
pub const FIRST_STEP: &str = "waiting for the system";

const PAIRING_CODE: &str = "/var/lib/kraud/pki/pairing-code";
const CLIENT: &str = "/var/lib/kraud/pki/client";

/// Waits for one zone.
#[derive(Debug)]
pub struct Waiter<'a> {
    /// Where the certificates go.
    pub dir: &'a StateDir,
    /// Where the zone answers.
    pub address: Ipv4Addr,
    /// On which ports.
    pub ports: Ports,
    /// Its door.
    pub door: Door,
    /// Until when.
    pub until: Instant,
    /// A message or an end here ends the waiting.
    pub cancel: &'a Receiver<()>,
}

impl Waiter<'_> {
    /// Waits until the whole zone answers and gives the pairing code. `step` is told what is waited for.
    ///
    /// # Errors
    /// At the deadline, with what was last seen; when cancelled.
    pub fn wait(&self, mut step: impl FnMut(&str)) -> Result<String> {
        step(FIRST_STEP);
        self.poll("the door", || self.door.read(&["true"], FIRST_ANSWER).map(|_| ()))?;
        step("waiting for the zone's certificates");
        let code = self.poll("the pairing code", || self.file(PAIRING_CODE))?;
        self.certificates()?;
        let dir = self.dir.client_dir();
        step("waiting for the Docker API");
        let docker = Client::new((self.address, self.ports.docker).into(), &dir)?;
        self.poll("the Docker API", || match docker.get("/_ping", ANSWER)? {
            answer if answer.status == 200 => Ok(()),
            answer => bail!("/_ping answers {}", answer.status),
        })?;
        step("waiting for the web page");
        let web = Client::new((self.address, self.ports.web).into(), &dir)?;
        self.poll("the web page", || match web.get("/", ANSWER)? {
            answer if answer.status < 500 => Ok(()),
            answer => bail!("/ answers {}", answer.status),
        })?;
        Ok(String::from_utf8_lossy(&code).trim().to_owned())
    }

    fn file(&self, path: &str) -> Result<Vec<u8>> {
        let bytes = self.door.read(&["cat", path], ANSWER)?;
        if bytes.trim_ascii().is_empty() { bail!("{path} is empty") } else { Ok(bytes) }
    }

    fn certificates(&self) -> Result<()> {
        let dir = self.dir.client_dir();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            let bytes = self.poll(name, || self.file(&format!("{CLIENT}/{name}")))?;
            self.dir.write_secret(&format!("client/{name}"), &bytes)?;
        }
        Ok(())
    }

    fn poll<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            let error = match ask() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if Instant::now() >= self.until {
                return Err(error.context(format!("no answer from {what} in time")));
            }
            match self.cancel.recv_timeout(INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => bail!("stopped while waiting for {what}"),
            }
        }
    }

    /// What the system itself says is wrong, for an error message; empty when it cannot be asked.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let script = "systemctl --failed --no-legend --plain --no-pager; systemctl list-jobs --no-legend --no-pager; \
                      journalctl -b -p 4 -n 25 -o cat --no-pager";
        let output = self.door.output(&["sh", "-c", script], ANSWER);
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_deadline_the_last_thing_seen_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        let (_keep, cancel) = std::sync::mpsc::channel();
        let ports = Ports { web: 1, docker: 1, door: 1 };
        let door = Door::new(([127, 0, 0, 1], 1).into(), String::new());
        let waiter =
            Waiter { dir: &dir, address: Ipv4Addr::LOCALHOST, ports, door, until: Instant::now(), cancel: &cancel };
        let error = format!("{:#}", waiter.wait(|_| {}).unwrap_err());
        assert!(error.contains("no answer from the door") && error.contains("cannot connect"), "{error}");
    }

    #[test]
    fn a_cancelled_wait_ends_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        let (keep, cancel) = std::sync::mpsc::channel();
        drop(keep);
        let ports = Ports { web: 1, docker: 1, door: 1 };
        let door = Door::new(([127, 0, 0, 1], 1).into(), String::new());
        let waiter = Waiter {
            dir: &dir,
            address: Ipv4Addr::LOCALHOST,
            ports,
            door,
            until: Instant::now() + Duration::from_secs(600),
            cancel: &cancel,
        };
        assert!(waiter.wait(|_| {}).unwrap_err().to_string().contains("stopped"));
    }
}
