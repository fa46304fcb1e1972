//! A guest's run as both monitors have it: what is started, what is seen of it from outside, how it ends.

use crate::guest::is_line;
use crate::memory;
use crate::{guest::MEMORY_MIB, peer};
use anyhow::{Context as _, Result, ensure};
use std::io::{BufReader, Read, Write};
use std::process::Child;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use zone::log::{Data, LogReader, Record};

/// A run that takes longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What the kernel says when it starts its first process.
pub const PID1: &str = "Run /init as init process";
/// What [`Args::DMESG`] says at first.
pub const APPLICATION: &str = "bench: application";

/// What the container runs.
#[derive(Clone, Copy, Debug)]
pub struct Args(pub &'static [&'static str]);

impl Args {
    /// Prints the line and ends.
    pub const ECHO: Self = Self(&["echo", "hello"]);
    /// Prints the line and stays.
    pub const STAY: Self = Self(&["sh", "-c", "echo hello; sleep 1000"]);
    /// Tells the kernel that it runs, and prints what the kernel has said, after the line.
    pub const DMESG: Self = Self(&["sh", "-c", "echo bench: application > /dev/kmsg; echo hello; busybox dmesg"]);

    /// Whether it is the kernel's messages that are wanted, with their times.
    #[must_use]
    pub fn wants_messages(self) -> bool {
        self.0 == Self::DMESG.0
    }

    /// What is added to the kernel's command line.
    #[must_use]
    pub fn cmdline(self) -> &'static str {
        if self.wants_messages() { "printk.time=1" } else { "" }
    }
}

/// A connection to a guest's agent.
pub trait Channel: Read + Write {}

impl<T: Read + Write> Channel for T {}

/// One of the two monitors.
pub trait Monitor: Sync {
    /// The program's file name.
    fn program(&self) -> &'static str;

    /// Starts a guest, when all others that shall start together are ready, too; returns when the line has come.
    ///
    /// # Errors
    /// When it cannot start, or no line comes.
    fn start(&self, args: Args, number: u32, together: &Barrier) -> Result<Run>;

    /// Connects to the agent of the guest of that number.
    ///
    /// # Errors
    /// When it does not answer.
    fn agent(&self, number: u32) -> Result<Box<dyn Channel>>;
}

/// What has been seen of a guest, milliseconds since exec.
#[derive(Clone, Debug)]
pub struct Seen {
    since: Instant,
    /// The application's process was made.
    pub application_ms: f64,
    /// Its first byte came out of the monitor.
    pub line_ms: f64,
    /// All that it wrote by then.
    pub output: Vec<u8>,
}

impl Seen {
    /// Nothing yet.
    #[must_use]
    pub fn new(since: Instant) -> Self {
        Self { since, application_ms: 0.0, line_ms: 0.0, output: Vec::new() }
    }

    /// Takes a record in.
    pub fn take(&mut self, record: &Record) {
        let now = self.since.elapsed().as_secs_f64() * 1000.0;
        if matches!(record.data, Data::Started { .. }) {
            self.application_ms = now;
        }
        if is_line(record) && self.line_ms == 0.0 {
            self.line_ms = now;
        }
        if let Some((_, bytes)) = record.data.as_output() {
            self.output.extend(bytes);
        }
    }

    /// The line has come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.line_ms > 0.0
    }
}

/// A guest whose line has come.
pub struct Run {
    /// The monitor.
    pub child: Child,
    /// When it was started.
    pub started: Instant,
    /// What was seen.
    pub seen: Seen,
    /// Where the rest of the log comes, when it is a stream.
    pub log: Option<BufReader<std::fs::File>>,
    /// Where it stands, when it is in files.
    pub files: Option<LogReader>,
}

impl Run {
    /// Waits for its end; milliseconds since exec.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn end(mut self) -> Result<(Seen, f64)> {
        if let Some(log) = &mut self.log {
            // The agent waits until its log is taken to the end.
            let mut rest = Vec::new();
            log.read_to_end(&mut rest).context("read the guest's log to its end")?;
            peer::records(&rest).iter().for_each(|record| self.seen.take(record));
        }
        drop(self.log.take());
        let status = self.child.wait().context("wait for the monitor")?;
        ensure!(status.success(), "it ended with {status}");
        let ended = self.started.elapsed();
        if let Some(files) = &mut self.files {
            files.read().context("read the log")?.iter().for_each(|record| self.seen.take(record));
        }
        Ok((self.seen.clone(), ended.as_secs_f64() * 1000.0))
    }

    /// The monitor's memory without the guest's.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<memory::Own> {
        memory::own(self.child.id(), u64::from(MEMORY_MIB) * 1024)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When the kernel has said this, by its own clock: `[    0.437123] Run /init as init process`; milliseconds.
///
/// # Errors
/// When it has not.
pub fn message_ms(messages: &[u8], what: &str) -> Result<f64> {
    let text = String::from_utf8_lossy(messages);
    let line = text.lines().find(|line| line.contains(what));
    let seconds = line.and_then(|line| line.split(['[', ']']).nth(1)?.trim().parse::<f64>().ok());
    Ok(seconds.with_context(|| format!("no '{what}' in {} bytes of the kernel's messages", messages.len()))? * 1000.0)
}

/// One guest alone.
///
/// # Errors
/// As [`Monitor::start`].
pub fn alone(monitor: &dyn Monitor, args: Args) -> Result<Run> {
    monitor.start(args, 0, &Barrier::new(1)).with_context(|| monitor.program().to_owned())
}

/// So many guests, started at once; all are running when this returns.
///
/// # Errors
/// When one cannot start.
pub fn at_once(monitor: &dyn Monitor, args: Args, count: u32) -> Result<Vec<Run>> {
    let together = Barrier::new(count as usize);
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn({
                    let together = &together;
                    move || monitor.start(args, number, together)
                })
            })
            .collect();
        starts
            .into_iter()
            .map(|start| match start.join() {
                Ok(run) => run.with_context(|| format!("{}, {count} at once", monitor.program())),
                Err(_) => anyhow::bail!("a start panicked"),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::{PID1, message_ms};

    #[test]
    fn the_kernels_words_tell_when_it_was_ready() {
        let said = b"hello\n[    0.401000] x\n[    0.437500] Run /init as init process\n";
        assert!((message_ms(said, PID1).unwrap() - 437.5).abs() < 1e-6);
        assert!(message_ms(b"hello\n", PID1).is_err());
    }
}
