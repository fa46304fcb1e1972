//! What a monitor asks of the kernel, from its exec on: traced by the kernel (tracefs), without the monitor's help.
//!
//! Tracing makes a run slower, so that its times are for taking a start apart, and its counts are what counts.

use anyhow::{Context as _, Result, ensure};
use std::path::Path;

const FOLDER: &str = "/sys/kernel/tracing";
const EXEC: &str = "sched/sched_process_exec";
const EVENTS: [&str; 3] = ["raw_syscalls/sys_enter", "raw_syscalls/sys_exit", EXEC];
/// System call numbers (x86-64): those that bring a file's bytes.
const READS: [u64; 5] = [0, 17, 19, 295, 327];
const IOCTL: u64 = 16;
const KVM_CREATE_VM: &str = "ae01";
const KVM_RUN: &str = "ae80";

/// A monitor's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// From exec to the call that makes the machine, milliseconds.
    pub create_vm_ms: f64,
    /// From exec to the first KVM_RUN.
    pub first_run_ms: f64,
    /// System calls of all its threads before the first KVM_RUN.
    pub syscalls: u64,
    /// Bytes that it read before the first KVM_RUN.
    pub bytes: u64,
    /// KVM_RUN calls until its end.
    pub runs: u64,
}

/// The kernel traces this process's children.
#[derive(Debug)]
pub struct Trace;

impl Trace {
    /// Begins.
    ///
    /// # Errors
    /// When the kernel cannot trace.
    pub fn begin() -> Result<Self> {
        let _ = std::process::Command::new("mount").args(["-t", "tracefs", "tracefs", FOLDER]).status();
        set("tracing_on", "0")?;
        set("trace_clock", "mono")?;
        set("buffer_size_kb", "20000")?;
        set("options/event-fork", "1")?;
        set("set_event_pid", &std::process::id().to_string())?;
        for event in EVENTS {
            set(&format!("events/{event}/enable"), "1")?;
        }
        set("trace", "")?;
        set("tracing_on", "1")?;
        Ok(Self)
    }

    /// Ends; what was seen of the program.
    ///
    /// # Errors
    /// When it was not seen, or more happened than the kernel could keep.
    pub fn end(self, program: &str) -> Result<Start> {
        set("tracing_on", "0")?;
        let text = std::fs::read_to_string(Path::new(FOLDER).join("trace")).context("read the trace")?;
        for event in EVENTS {
            set(&format!("events/{event}/enable"), "0")?;
        }
        set("set_event_pid", "")?;
        parse(&text, program)
    }
}

/// The kernel traces which programs are started, by anyone.
#[derive(Debug)]
pub struct Execs;

impl Execs {
    /// Begins.
    ///
    /// # Errors
    /// When the kernel cannot trace.
    pub fn begin() -> Result<Self> {
        let _ = std::process::Command::new("mount").args(["-t", "tracefs", "tracefs", FOLDER]).status();
        set("tracing_on", "0")?;
        set("trace_clock", "mono")?;
        set("set_event_pid", "")?;
        set(&format!("events/{EXEC}/enable"), "1")?;
        set("trace", "")?;
        set("tracing_on", "1")?;
        Ok(Self)
    }

    /// Ends; when, in milliseconds, and what.
    ///
    /// # Errors
    /// When the trace cannot be read.
    pub fn end(self) -> Result<Vec<(f64, String)>> {
        set("tracing_on", "0")?;
        let text = std::fs::read_to_string(Path::new(FOLDER).join("trace")).context("read the trace")?;
        set(&format!("events/{EXEC}/enable"), "0")?;
        Ok(execs(&text))
    }
}

fn execs(text: &str) -> Vec<(f64, String)> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(split);
    let file = |rest: &str| Some(rest.split_whitespace().next()?.strip_prefix("filename=")?.to_owned());
    lines
        .filter(|(_, event, _)| *event == "sched_process_exec")
        .filter_map(|(at, _, rest)| Some((at, file(rest)?)))
        .collect()
}

fn set(file: &str, value: &str) -> Result<()> {
    std::fs::write(Path::new(FOLDER).join(file), value).with_context(|| format!("set {file} of the kernel's tracing"))
}

fn parse(text: &str, program: &str) -> Result<Start> {
    let mut start = Start::default();
    let mut exec = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        ensure!(!line.contains("LOST"), "the kernel lost events of the trace");
        let Some((time, event, rest)) = split(line) else { continue };
        if event == "sched_process_exec" {
            if rest.contains(program) {
                exec = Some(time);
            }
            continue;
        }
        // What this program does beside is not the monitor's.
        let Some(began) = exec.filter(|_| !line.trim_start().starts_with("bench-")) else { continue };
        let mut words = rest.split_whitespace();
        let number: u64 = words.nth(1).and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
        if event == "sys_exit" {
            let result: i64 = words.nth(1).and_then(|result| result.parse().ok()).unwrap_or(0);
            if start.runs == 0 && READS.contains(&number) {
                start.bytes += u64::try_from(result).unwrap_or(0);
            }
            continue;
        }
        let request = words.nth(1).unwrap_or_default().trim_end_matches(',');
        if number == IOCTL && request == KVM_CREATE_VM {
            start.create_vm_ms = time - began;
        }
        if number == IOCTL && request == KVM_RUN {
            if start.runs == 0 {
                start.first_run_ms = time - began;
            }
            start.runs += 1;
        }
        start.syscalls += u64::from(start.runs == 0);
    }
    ensure!(start.runs > 0, "no KVM_RUN of {program} is in the trace");
    Ok(start)
}

/// Milliseconds, the event's name, and what it says.
fn split(line: &str) -> Option<(f64, &str, &str)> {
    let at = EVENTS.iter().filter_map(|event| line.find(&format!(": {}: ", event.rsplit('/').next()?))).min()?;
    let (before, after) = line.split_at(at);
    let seconds: f64 = before.rsplit(' ').next()?.parse().ok()?;
    let (event, rest) = after.strip_prefix(": ")?.split_once(": ")?;
    Some((seconds * 1000.0, event, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# tracer: nop
           bench-70  [001] ..... 10.000000: sys_enter: NR 0 (3, 0, 1, 0, 0, 0)
         kcradle-71  [000] ..... 10.001000: sched_process_exec: filename=/run/x/kcradle pid=71 old_pid=71
         kcradle-71  [000] ..... 10.001500: sys_enter: NR 0 (3, 7f, 100, 0, 0, 0)
           bench-70  [001] ..... 10.001600: sys_enter: NR 0 (3, 0, 1, 0, 0, 0)
         kcradle-71  [000] ..... 10.001700: sys_exit: NR 0 = 4096
         kcradle-71  [000] ..... 10.002000: sys_enter: NR 16 (5, ae01, 0, 0, 0, 0)
       CPU 0/KVM-72  [000] ..... 10.004000: sys_enter: NR 16 (9, ae80, 0, 0, 0, 0)
       CPU 0/KVM-72  [000] ..... 10.005000: sys_exit: NR 16 = -4
       CPU 0/KVM-72  [000] ..... 10.006000: sys_enter: NR 16 (9, ae80, 0, 0, 0, 0)
";

    #[test]
    fn a_start_is_read_from_the_kernels_trace() {
        let start = parse(TEXT, "kcradle").unwrap();
        assert!((start.create_vm_ms - 1.0).abs() < 1e-6 && (start.first_run_ms - 3.0).abs() < 1e-6, "{start:?}");
        assert_eq!((start.syscalls, start.bytes, start.runs), (2, 4096, 2));
        assert!(parse(TEXT, "qemu").is_err());
        assert_eq!(execs(TEXT), [(10_001.0, "/run/x/kcradle".to_owned())]);
    }
}
