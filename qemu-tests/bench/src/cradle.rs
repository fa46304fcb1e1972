//! `cradle`: our monitor beside QEMU's microvm machine, from exec to the container's first byte leaving the monitor.
//!
//! Both boot the same kernel, initramfs, disk and spec with one vCPU, in turns. `booted` is ours without a template; everything
//! else is as the zone's pods have it.

use crate::guest::{Guest, MEMORY_MIB, VCPUS};
use crate::ours::Ours;
use crate::peer::Peer;
use crate::run::{Args, Monitor, PID1, Run, Seen, alone, at_once, message_ms};
use crate::samples::{self, About};
use crate::sizes::Sizes;
use crate::trace::{Start, Trace};
use crate::traffic;
use anyhow::{Context as _, Result};
use std::path::Path;

/// Runs that are traced: their counts hardly differ.
const TRACED: u32 = 8;
/// Memory that a guest takes on the machine, with what QEMU takes beside it, MiB.
const EACH_MIB: u64 = 150;

/// Samples of ours from a template, ours booted, and the peer.
#[derive(Default)]
struct Three([Vec<f64>; 3]);

impl Three {
    fn push(&mut self, values: [f64; 3]) {
        self.0.iter_mut().zip(values).for_each(|(samples, value)| samples.push(value));
    }
}

/// What is taken of a traced run.
type Value = fn(&(Start, Seen)) -> f64;

struct Bench<'a> {
    /// Ours from a template, ours booted, the peer.
    monitors: [&'a dyn Monitor; 3],
    about: About<'a>,
}

/// Runs of both monitors in turns, then many at once, their memory, and what they ask of the kernel.
///
/// # Errors
/// When either cannot run.
pub fn run(sizes: &Sizes, only: &[String]) -> Result<()> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let runs = sizes.runs;
    let guest = Guest::make()?;
    let ours = Ours::with_template(&guest).context("kcradle template")?;
    let booted = Ours { guest: &guest, template: None };
    let peer = Peer::new(&guest)?;
    let about = About {
        bench: "cradle",
        metric: "",
        unit: "ms",
        peer: &peer.version,
        payload: "busybox echo hello, EROFS image, tmpfs upper",
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
    };
    let bench = Bench { monitors: [&ours, &booted, &peer], about };
    let parts: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("times", &|| bench.times(runs)),
        ("traced", &|| bench.traced(TRACED.min(runs))),
        ("memory", &|| bench.memory()),
        ("crowds", &|| bench.crowds(runs)),
        ("traffic", &|| traffic::run(sizes, &peer, about)),
        ("size", &|| bench.size()),
    ];
    for (name, part) in parts {
        if wanted(name) {
            part().with_context(|| name.to_owned())?;
        }
    }
    Ok(())
}

impl Bench<'_> {
    fn about(&self, metric: &'static str, unit: &'static str) -> About<'_> {
        About { metric, unit, ..self.about }
    }

    fn each(&self, mut measure: impl FnMut(&dyn Monitor) -> Result<f64>) -> Result<[f64; 3]> {
        let [ours, booted, peer] = self.monitors;
        Ok([measure(ours)?, measure(booted)?, measure(peer)?])
    }

    /// Both of ours beside the peer.
    fn print(&self, names: [&'static str; 2], unit: &'static str, percent: usize, three: &Three) -> Result<()> {
        let [ours, booted, peer] = &three.0;
        samples::print_percentile(self.about(names[0], unit), percent, ours, peer)?;
        samples::print_percentile(self.about(names[1], unit), percent, booted, peer)
    }

    fn times(&self, runs: u32) -> Result<()> {
        let (mut first, mut exit) = (Three::default(), Three::default());
        for _ in 0..runs {
            let mut ends = Vec::new();
            first.push(self.each(|monitor| {
                let (seen, end) = alone(monitor, Args::ECHO)?.end().with_context(|| monitor.program().to_owned())?;
                ends.push(end);
                Ok(seen.line_ms)
            })?);
            exit.push([0, 1, 2].map(|index| ends.get(index).copied().unwrap_or(f64::NAN)));
        }
        self.print(["first_byte_ms_p50", "first_byte_booted_ms_p50"], "ms", 50, &first)?;
        self.print(["first_byte_ms_p95", "first_byte_booted_ms_p95"], "ms", 95, &first)?;
        self.print(["first_byte_ms_p99", "first_byte_booted_ms_p99"], "ms", 99, &first)?;
        self.print(["exit_ms_p50", "exit_booted_ms_p50"], "ms", 50, &exit)
    }

    /// What each asks of the kernel, where its time goes, and the guest's own clock.
    fn traced(&self, runs: u32) -> Result<()> {
        let mut all: [Three; 7] = Default::default();
        let mut kernel = Three::default();
        for _ in 0..runs {
            let mut starts = Vec::new();
            for monitor in self.monitors {
                let trace = Trace::begin()?;
                let run = alone(monitor, Args::ECHO)?;
                let (seen, _) = run.end()?;
                starts.push((trace.end(monitor.program()).with_context(|| monitor.program().to_owned())?, seen));
            }
            let values: [Value; 7] = [
                |(start, _)| start.create_vm_ms,
                |(start, _)| start.first_run_ms - start.create_vm_ms,
                |(start, seen)| seen.application_ms - start.first_run_ms,
                |(_, seen)| seen.line_ms - seen.application_ms,
                |(start, _)| start.syscalls as f64,
                |(start, _)| start.bytes as f64 / 1024.0,
                |(start, _)| start.runs as f64,
            ];
            for (three, value) in all.iter_mut().zip(values) {
                three.push([0, 1, 2].map(|index| starts.get(index).map_or(f64::NAN, value)));
            }
            let [_, booted, peer] = self.monitors;
            let pid1 = |monitor| -> Result<f64> { message_ms(&alone(monitor, Args::DMESG)?.end()?.0.output, PID1) };
            let (booted, peer) =
                (pid1(booted).context("our guest's messages")?, pid1(peer).context("QEMU's guest's messages")?);
            kernel.push([booted, booted, peer]);
        }
        let names: [([&'static str; 2], &str); 7] = [
            (["traced_exec_to_create_vm_ms", "traced_booted_exec_to_create_vm_ms"], "ms"),
            (["traced_create_vm_to_first_run_ms", "traced_booted_create_vm_to_first_run_ms"], "ms"),
            (["traced_first_run_to_application_ms", "traced_booted_first_run_to_application_ms"], "ms"),
            (["traced_application_to_first_byte_ms", "traced_booted_application_to_first_byte_ms"], "ms"),
            (["syscalls_before_first_run", "syscalls_before_first_run_booted"], "calls"),
            (["read_before_first_run_kib", "read_before_first_run_booted_kib"], "KiB"),
            (["kvm_run_calls", "kvm_run_calls_booted"], "calls"),
        ];
        for ((names, unit), three) in names.into_iter().zip(&all) {
            self.print(names, unit, 50, three)?;
        }
        // A guest that goes on from a template has its PID 1 already.
        let [_, booted, peer] = &kernel.0;
        samples::print(self.about("kernel_to_pid1_ms_p50", "ms"), booted, peer)
    }

    /// The programs' files, and the archive that the guest starts from.
    fn size(&self) -> Result<()> {
        let kib = |path: &Path| -> Result<f64> {
            Ok(path.metadata().with_context(|| format!("look at {}", path.display()))?.len() as f64 / 1024.0)
        };
        let of_peer = Path::new("/usr/bin/qemu-system-x86_64");
        let about = About {
            payload: "the program's file; the peer's without its libraries",
            ..self.about("binary_kib", "KiB")
        };
        samples::print(about, &[kib(&Guest::artefact("kcradle")?)?], &[kib(of_peer)?])?;
        let about = About {
            payload: "the guest's initramfs: the agent and nothing else",
            ..self.about("initramfs_kib", "KiB")
        };
        samples::print_alone(about, &[kib(&Guest::artefact("initramfs.cpio")?)?])
    }

    /// The monitors' own memory, one alone and eight running.
    fn memory(&self) -> Result<()> {
        let [ours, _, peer] = self.monitors;
        for (count, pss, dirty) in
            [(1, "vmm_pss_kib", "vmm_private_dirty_kib"), (8, "vmm_pss_8_kib", "vmm_private_dirty_8_kib")]
        {
            let mut both = Vec::new();
            for monitor in [ours, peer] {
                let runs = at_once(monitor, Args::STAY, count)?;
                both.push(runs.iter().map(Run::memory).collect::<Result<Vec<_>>>()?);
            }
            let of = |value: fn(&crate::memory::Own) -> u64| -> Vec<Vec<f64>> {
                both.iter().map(|side| side.iter().map(|own| value(own) as f64).collect()).collect()
            };
            for (metric, sides) in [(pss, of(|own| own.pss_kib)), (dirty, of(|own| own.private_dirty_kib))] {
                if let [ours, peer] = &sides[..] {
                    samples::print(self.about(metric, "KiB"), ours, peer)?;
                }
            }
        }
        Ok(())
    }

    /// Many started at once, in turns of both, until there are as many samples as runs.
    fn crowds(&self, runs: u32) -> Result<()> {
        let names = [
            (8, ["first_byte_8_at_once_ms_p50", "first_byte_8_at_once_ms_p95", "first_byte_8_at_once_ms_p99"]),
            (20, ["first_byte_20_at_once_ms_p50", "first_byte_20_at_once_ms_p95", "first_byte_20_at_once_ms_p99"]),
        ];
        for (count, names) in names {
            let available = available_mib()?;
            if available < u64::from(count) * EACH_MIB {
                say(&format!("{count} at once are left out: {available} MiB of memory are available"));
                continue;
            }
            let [ours, _, peer] = self.monitors;
            let mut sides = [Vec::new(), Vec::new()];
            for _ in 0..runs.div_ceil(count) {
                for (samples, monitor) in sides.iter_mut().zip([ours, peer]) {
                    let started = at_once(monitor, Args::ECHO, count)?;
                    samples.extend(started.iter().map(|run| run.seen.line_ms));
                    for run in started {
                        run.end()?;
                    }
                }
            }
            let [ours, peer] = &sides;
            for (name, percent) in names.into_iter().zip([50, 95, 99]) {
                samples::print_percentile(self.about(name, "ms"), percent, ours, peer)?;
            }
        }
        Ok(())
    }
}

/// A line for people.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn available_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read how much memory is there")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("read how much memory is there")?;
    let kib: u64 = line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(kib >> 10)
}
