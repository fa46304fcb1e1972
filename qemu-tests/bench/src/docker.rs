//! `docker`: what a user of the docker CLI waits for, on the zone and on Docker Engine with runc, in turns, in the same boot.

use crate::engine::{Engine, Engines, IMAGE, PREFIX, Part, milliseconds, run_parts};
use crate::payload;
use crate::phases::{PHASES, Phases};
use crate::samples::{self, About};
use crate::sizes::Sizes;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How long a container may take to write its lines.
const PATIENCE: Duration = Duration::from_secs(600);
/// What `docker cp` copies.
const PAYLOAD: &str = "/zone/bench-payload";

struct Bench {
    engines: Engines,
    sizes: Sizes,
}

const PARTS: [Part<Bench>; 7] = [
    ("run", Bench::runs),
    ("exec", Bench::execs),
    ("rm", Bench::removals),
    ("cp", Bench::copies),
    ("logs", Bench::logs),
    ("ps", Bench::lists),
    ("at_once", Bench::crowds),
];

/// All parts, or those whose names are in `only`.
///
/// # Errors
/// When either engine cannot do what is measured.
pub fn run(sizes: &Sizes, only: &[String]) -> Result<()> {
    run_parts(&Bench { engines: Engines::start()?, sizes: *sizes }, &PARTS, only)
}

impl Bench {
    fn about<'a>(&'a self, metric: &'a str, unit: &'a str, payload: &'a str) -> About<'a> {
        About { bench: "docker", metric, unit, peer: &self.engines.version, payload, vcpus: 1, memory_mib: 512 }
    }

    fn print(&self, metric: &str, unit: &str, payload: &str, [ours, peer]: &[Vec<f64>; 2]) -> Result<()> {
        samples::print(self.about(metric, unit, payload), ours, peer)
    }

    /// `docker run`, and where the time of ours goes.
    fn runs(&self) -> Result<()> {
        const WHAT: &str = "docker run --rm IMAGE echo hello";
        let phases = Phases::begin()?;
        let mut parts: [Vec<f64>; PHASES.len()] = Default::default();
        let mut first = [Vec::new(), Vec::new()];
        let exits = self.engines.turns(self.sizes.runs, |engine, _| {
            let is_ours = engine.socket == self.engines.both[0].socket;
            let began = zone::time::now_ns();
            let (first_ms, exit_ms) = run_once(engine)?;
            if is_ours {
                let of_run = phases.of_run(began, zone::time::now_ns())?;
                parts.iter_mut().zip(of_run).for_each(|(samples, part)| samples.push(part));
            }
            first[usize::from(!is_ours)].push(first_ms);
            Ok(exit_ms)
        })?;
        let first_about =
            self.about("run_first_byte_ms_p50", "ms", "docker run --rm IMAGE echo hello, to its first byte");
        samples::print(first_about, &first[0], &first[1])?;
        samples::print_percentile(About { metric: "run_first_byte_ms_p99", ..first_about }, 99, &first[0], &first[1])?;
        let about = self.about("run_exit_ms_p50", "ms", WHAT);
        samples::print(about, &exits[0], &exits[1])?;
        samples::print_percentile(About { metric: "run_exit_ms_p95", ..about }, 95, &exits[0], &exits[1])?;
        samples::print_percentile(About { metric: "run_exit_ms_p99", ..about }, 99, &exits[0], &exits[1])?;
        for (phase, samples) in PHASES.into_iter().zip(&parts) {
            samples::print_alone(About { bench: "docker phases", metric: phase, ..about }, samples)?;
        }
        Ok(())
    }

    fn execs(&self) -> Result<()> {
        let name = format!("{PREFIX}exec");
        self.on_both(|engine| stay(engine, "exec"))?;
        let samples =
            self.engines.turns(self.sizes.runs, |engine, _| engine.time(&["exec", &name, "echo", "hello"]))?;
        self.on_both(|engine| engine.run(&["rm", "-f", &name]).map(drop))?;
        let about = self.about("exec_ms_p50", "ms", "docker exec NAME echo hello, to the CLI's exit");
        samples::print(about, &samples[0], &samples[1])?;
        samples::print_percentile(About { metric: "exec_ms_p99", ..about }, 99, &samples[0], &samples[1])
    }

    fn removals(&self) -> Result<()> {
        let name = format!("{PREFIX}rm");
        let samples = self.engines.turns(self.sizes.runs, |engine, _| {
            stay(engine, "rm")?;
            engine.time(&["rm", "-f", &name])
        })?;
        self.print("rm_ms_p50", "ms", "docker rm -f of a running container, to the CLI's exit", &samples)
    }

    fn copies(&self) -> Result<()> {
        let (mib, name) = (self.sizes.cp_mib, format!("{PREFIX}cp"));
        payload::file(Path::new(PAYLOAD), mib)?;
        let rate = |ms: f64| f64::from(mib) * 1.048_576 / (ms / 1000.0);
        let target = format!("{name}:/tmp/payload");
        let mut outs = [Vec::new(), Vec::new()];
        let ins = self.engines.turns(self.sizes.rounds, |engine, _| {
            stay(engine, "cp")?;
            let took = engine.time(&["cp", "-q", PAYLOAD, &target])?;
            let out = rate(self.copy_out(engine, &target)?);
            outs[usize::from(engine.socket != self.engines.both[0].socket)].push(out);
            engine.run(&["rm", "-f", &name])?;
            Ok(rate(took))
        });
        let _ = std::fs::remove_file(PAYLOAD);
        self.print(
            "cp_in_1g_mb_s",
            "MB/s",
            &format!("docker cp of one file of {mib} MiB into a running container"),
            &ins?,
        )?;
        self.print(
            "cp_out_1g_mb_s",
            "MB/s",
            &format!("docker cp NAME:FILE - of {mib} MiB, the tar read and dropped"),
            &outs,
        )
    }

    fn copy_out(&self, engine: &Engine, target: &str) -> Result<f64> {
        let started = Instant::now();
        let mut child = engine.docker(&["cp", target, "-"]).stdout(Stdio::piped()).spawn().context("start docker")?;
        let mut from = child.stdout.take().context("docker has no output")?;
        let bytes = std::io::copy(&mut from, &mut std::io::sink()).context("read docker's output")?;
        ensure!(child.wait().context("wait for docker")?.success(), "docker cp failed");
        ensure!(bytes > u64::from(self.sizes.cp_mib) << 20, "docker cp gave only {bytes} bytes");
        Ok(milliseconds(started))
    }

    fn logs(&self) -> Result<()> {
        let (lines, name) = (self.sizes.lines, format!("{PREFIX}logs"));
        // It stays: on a slow machine the peer's log of a container that has ended is short.
        let command = format!("seq {lines}; sleep 1000000");
        self.on_both(|engine| engine.run(&["run", "--name", &name, "-d", IMAGE, "sh", "-c", &command]).map(drop))?;
        self.on_both(|engine| {
            let begun = Instant::now();
            while engine.run(&["logs", "--tail", "1", &name])?.trim() != lines.to_string() {
                ensure!(begun.elapsed() < PATIENCE, "the log at {} is not complete", engine.socket.display());
            }
            Ok(())
        })?;
        let samples = self.engines.turns(self.sizes.rounds, |engine, _| {
            let started = Instant::now();
            let mut child = engine.docker(&["logs", &name]).stdout(Stdio::piped()).spawn().context("start docker")?;
            let seen = count_lines(child.stdout.take().context("docker has no output")?)?;
            ensure!(child.wait().context("wait for docker")?.success(), "docker logs failed");
            ensure!(seen == u64::from(lines), "docker logs at {}: {seen} lines of {lines}", engine.socket.display());
            Ok(f64::from(lines) / started.elapsed().as_secs_f64())
        })?;
        self.on_both(|engine| engine.run(&["rm", "-f", &name]).map(drop))?;
        self.print("logs_1m_lines_s", "lines/s", &format!("docker logs of {lines} lines"), &samples)
    }

    /// Containers that are created one after the other, and the list of many.
    fn lists(&self) -> Result<()> {
        let Sizes { creates, containers, rounds, runs, .. } = self.sizes;
        let created = self.engines.turns(rounds, |engine, turn| {
            let started = Instant::now();
            (0..creates)
                .try_for_each(|n| engine.create(&format!("create-{turn}-{n}"), json!({"Cmd": ["true"]})).map(drop))?;
            Ok(started.elapsed().as_secs_f64())
        })?;
        let payload = format!("{creates} times POST /containers/create, one after the other");
        self.print("create_100_s", "s", &payload, &created)?;
        for number in rounds * creates..containers {
            self.on_both(|engine| engine.create(&format!("list-{number}"), json!({"Cmd": ["true"]})).map(drop))?;
        }
        let there = containers.max(rounds * creates);
        let listed = self.engines.turns(runs, |engine, _| engine.time(&["ps", "-a"]))?;
        self.print(
            "ps_1000_ms_p50",
            "ms",
            &format!("docker ps -a of {there} created containers, to the CLI's exit"),
            &listed,
        )?;
        let asked = self.engines.turns(runs, |engine, _| {
            let started = Instant::now();
            engine.api("GET", "/containers/json?all=1", &Value::Null)?;
            Ok(milliseconds(started))
        })?;
        self.print(
            "ps_1000_api_ms_p50",
            "ms",
            &format!("GET /containers/json?all=1 of {there} created containers"),
            &asked,
        )?;
        self.on_both(Engine::clean)
    }

    fn crowds(&self) -> Result<()> {
        let count = self.sizes.at_once;
        let samples = self.engines.turns(self.sizes.rounds, |engine, _| {
            let together = Barrier::new(count as usize + 1);
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..count)
                    .map(|_| {
                        scope.spawn(|| {
                            together.wait();
                            run_once(engine)
                        })
                    })
                    .collect();
                together.wait();
                let started = Instant::now();
                for one in all {
                    one.join().map_err(|_| anyhow::anyhow!("a run panicked"))??;
                }
                Ok(started.elapsed().as_secs_f64())
            })
        })?;
        let payload = format!("{count} docker run --rm IMAGE echo hello at once, until all have ended");
        self.print("run_20_at_once_s", "s", &payload, &samples)
    }

    fn on_both(&self, work: impl Fn(&Engine) -> Result<()>) -> Result<()> {
        self.engines.both.iter().try_for_each(work)
    }
}

/// A container that runs until it is removed.
fn stay(engine: &Engine, name: &str) -> Result<()> {
    engine.run(&["run", "-d", "--name", &format!("{PREFIX}{name}"), IMAGE, "sleep", "1000000"]).map(drop)
}

/// Until the first byte, until the exit, milliseconds.
fn run_once(engine: &Engine) -> Result<(f64, f64)> {
    let started = Instant::now();
    let mut child = engine
        .docker(&["run", "--rm", IMAGE, "echo", "hello"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start docker")?;
    let mut out = child.stdout.take().context("docker has no output")?;
    let mut said = [0u8; 64];
    let got = out.read(&mut said).context("read docker's output")?;
    let first = milliseconds(started);
    let ended = child.wait_with_output().context("wait for docker")?;
    ensure!(
        ended.status.success() && &said[..got] == b"hello\n",
        "docker run at {}: {}",
        engine.socket.display(),
        String::from_utf8_lossy(&ended.stderr).trim_end()
    );
    Ok((first, milliseconds(started)))
}

fn count_lines(mut from: impl std::io::Read) -> Result<u64> {
    let mut buffer = vec![0u8; 64 * 1024];
    let mut lines = 0;
    loop {
        match from.read(&mut buffer).context("read docker's output")? {
            0 => return Ok(lines),
            got => lines += buffer[..got].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
