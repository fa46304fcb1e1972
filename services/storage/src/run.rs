//! Runs the tools of the host: one place, so that every run has the same environment, limit, log line and error.
//!
//! Must not: use a shell. Arguments are passed as they are.

use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// A sync task on a busy pool takes seconds, an import minutes.
const LIMIT: Duration = Duration::from_secs(300);

/// Why a tool's run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot run {program}: {source}; is it installed?")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{command}: {status}: {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        stderr: String,
        /// What that means.
        cause: Cause,
    },
    /// It did not end in time.
    #[error("{command} did not end within {} s", LIMIT.as_secs())]
    TimedOut {
        /// The program and its arguments.
        command: String,
    },
    /// Its output is not what it should be.
    #[error("cannot read what {command} printed: {source}")]
    Output {
        /// The program and its arguments.
        command: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// What a tool's error means, as far as this service acts on it (texts of OpenZFS 2.3 with `LC_ALL=C`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no such pool, dataset or snapshot.
    NotFound,
    /// It is there already.
    Exists,
    /// It is in use; later it may not be.
    Busy,
    /// Something that was made from it is still there.
    HasClones,
    /// There is no room in the pool.
    Full,
    /// Anything else.
    Other,
}

impl Cause {
    /// Turns a tool's English into a cause.
    pub fn of(stderr: &str) -> Self {
        let says = |texts: &[&str]| texts.iter().any(|t| stderr.contains(t));
        if says(&["does not exist", "no such pool", "could not find any snapshots to destroy", "no pools available"]) {
            Self::NotFound
        } else if says(&["already exists"]) {
            Self::Exists
        } else if says(&["is busy", "pool or dataset is busy", "target is busy"]) {
            Self::Busy
        } else if says(&["has dependent clones"]) {
            Self::HasClones
        } else if says(&["out of space", "No space left on device"]) {
            Self::Full
        } else {
            Self::Other
        }
    }
}

impl RunError {
    /// What it means.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Failed { cause, .. } => *cause,
            _ => Cause::Other,
        }
    }
}

/// Runs tools.
#[derive(Clone, Debug, Default)]
pub struct Runner;

impl Runner {
    /// Runs a tool and gives what it printed.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes too long.
    pub async fn run(&self, argv: &[String]) -> Result<Vec<u8>, RunError> {
        let (program, args) = argv.split_first().map_or(("", [].as_slice()), |(p, a)| (p.as_str(), a));
        let command = argv.join(" ");
        let began = Instant::now();
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| RunError::Start { program: program.to_owned(), source })?;
        let output = tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .map_err(|_| RunError::TimedOut { command: command.clone() })?
            .map_err(|source| RunError::Start { program: program.to_owned(), source })?;
        let stderr = tail(&output.stderr);
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(command, status = %output.status, duration_ms, stderr, "ran a tool");
        if output.status.success() {
            return Ok(output.stdout);
        }
        let cause = Cause::of(&stderr);
        Err(RunError::Failed { command, status: output.status.to_string(), stderr, cause })
    }

    /// Runs a tool that prints JSON.
    ///
    /// # Errors
    /// As [`Runner::run`], and when it printed something else.
    pub async fn json(&self, argv: &[String]) -> Result<Value, RunError> {
        let output = self.run(argv).await?;
        serde_json::from_slice(&output).map_err(|source| RunError::Output { command: argv.join(" "), source })
    }
}

/// The last 500 bytes, on one line.
fn tail(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let from = text.ceil_char_boundary(text.len().saturating_sub(500));
    text.get(from..).unwrap_or_default().trim().replace('\n', "; ")
}

/// An argument list.
#[macro_export]
macro_rules! argv {
    ($($arg:expr),* $(,)?) => { Vec::from([$(String::from($arg)),*]) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_of_openzfs_2_3_say_is_understood() {
        for (text, cause) in [
            ("cannot open 'zone/volumes/x': dataset does not exist", Cause::NotFound),
            ("cannot open 'zone': no such pool", Cause::NotFound),
            ("cannot create 'zone/volumes/x': dataset already exists", Cause::Exists),
            ("cannot destroy 'zone/volumes/x': dataset is busy", Cause::Busy),
            ("cannot unmount '/zone/volumes/x': pool or dataset is busy", Cause::Busy),
            ("cannot create 'zone/volumes/x': out of space", Cause::Full),
            ("cannot destroy 'zone/volumes/x@a': snapshot has dependent clones", Cause::HasClones),
            ("cannot create 'zone/volumes/x': permission denied", Cause::Other),
        ] {
            assert_eq!(Cause::of(text), cause, "{text}");
        }
    }

    #[tokio::test]
    async fn a_failed_run_names_the_command_its_status_and_what_it_said() {
        let error = Runner.run(&argv!["/bin/sh", "-c", "echo no such pool >&2; exit 3"]).await.unwrap_err();
        assert_eq!(error.cause(), Cause::NotFound);
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such pool") && text.contains("/bin/sh"), "{text}");
    }
}
