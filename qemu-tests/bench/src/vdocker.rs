//! `vdocker`: what the agent in a pod does, asked for through the API alone: no docker CLI stands in between. The peer's part of
//! it is done by dockerd, containerd and its shim.

use crate::api;
use crate::engine::{Engine, Engines, IMAGE, Part, milliseconds, run_parts};
use crate::guest::{Guest, MEMORY_MIB};
use crate::ours::Ours;
use crate::payload;
use crate::run::{APPLICATION, Args, PID1, alone, message_ms};
use crate::samples::{self, About};
use crate::sizes::Sizes;
use crate::trace::Execs;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

/// Lines that go through an attached process and back, for each run.
const ECHOES: u32 = 20;

struct Bench {
    engines: Engines,
    sizes: Sizes,
}

const PARTS: [Part<Bench>; 6] = [
    ("exec", Bench::execs),
    ("logs", Bench::logs),
    ("attach", Bench::echoes),
    ("cp", Bench::copies),
    ("memory", Bench::memory),
    ("start", Bench::starts),
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
        About { bench: "vdocker", metric, unit, peer: &self.engines.version, payload, vcpus: 1, memory_mib: 512 }
    }

    /// On both, a container that runs until it is removed; their ids are the same name.
    fn on_both(&self, name: &str, config: &Value) -> Result<()> {
        self.engines.both.iter().try_for_each(|engine| started(engine, name, config.clone()).map(drop))
    }

    fn execs(&self) -> Result<()> {
        self.on_both("agent-exec", &json!({"Cmd": ["sleep", "1000000"]}))?;
        let samples = self.engines.turns(self.sizes.runs, |engine, _| {
            let config = json!({"Cmd": ["echo", "hello"], "AttachStdout": true, "AttachStderr": true});
            let begun = Instant::now();
            let made = engine.api("POST", "/containers/bench-agent-exec/exec", &config)?;
            let id = made["Id"].as_str().context("the exec has no id")?;
            let start = json!({"Detach": false, "Tty": false}).to_string();
            let path = format!("/exec/{id}/start");
            let mut answer = api::ask(&engine.socket, "POST", &path, "application/json", start.as_bytes())?;
            let mut said = Vec::new();
            answer.body.read_to_end(&mut said).context("read the exec's output")?;
            let ended = engine.api("GET", &format!("/exec/{id}/json"), &Value::Null)?;
            ensure!(said.ends_with(b"hello\n") && ended["ExitCode"] == 0, "the exec ended with {ended}");
            Ok(milliseconds(begun))
        })?;
        let about = self.about("exec_ms_p50", "ms", "exec of echo hello: create, start, output to its end, exit code");
        samples::print(about, &samples[0], &samples[1])?;
        samples::print_percentile(About { metric: "exec_ms_p99", ..about }, 99, &samples[0], &samples[1])?;
        self.clean()
    }

    /// A container's output, read while it is written. By attach: `logs` with `follow` ends early at the peer when the
    /// container does (28 730 lines of 200 000), so that there is nothing to compare.
    fn logs(&self) -> Result<()> {
        let lines = self.sizes.lines;
        let samples = self.engines.turns(self.sizes.rounds, |engine, turn| {
            let name = format!("agent-logs-{turn}");
            let id = engine.create(&name, json!({"Cmd": ["seq", lines.to_string()]}))?;
            let path = format!("/containers/{id}/attach?stream=1&stdout=1");
            let mut output = api::upgrade(&engine.socket, &path)?;
            engine.api("POST", &format!("/containers/{id}/start"), &Value::Null)?;
            let mut buffer = vec![0u8; 256 * 1024];
            let (mut first, mut seen) = (None, 0);
            loop {
                let got = output.read(&mut buffer).context("read the output")?;
                if got == 0 {
                    break;
                }
                first.get_or_insert_with(Instant::now);
                seen += newlines(&buffer[..got]);
            }
            let took = first.context("there is no output")?.elapsed();
            // Lengths of frames may look like line ends.
            ensure!(seen >= u64::from(lines), "{}: {seen} lines of {lines}", engine.socket.display());
            engine.clean()?;
            Ok(f64::from(lines) / took.as_secs_f64())
        })?;
        let payload = format!("{lines} lines of seq, attached from before the start, first byte to the end");
        samples::print(self.about("logs_lines_s", "lines/s", &payload), &samples[0], &samples[1])
    }

    /// A line to an attached process and back.
    fn echoes(&self) -> Result<()> {
        self.on_both("agent-attach", &json!({"Cmd": ["cat"], "OpenStdin": true, "AttachStdin": true}))?;
        let samples = self.engines.turns(self.sizes.runs, |engine, _| {
            let mut connection =
                api::upgrade(&engine.socket, "/containers/bench-agent-attach/attach?stream=1&stdin=1&stdout=1")?;
            let mut took = Vec::new();
            for _ in 0..ECHOES {
                let begun = Instant::now();
                connection.get_mut().write_all(b"line\n").context("write to the process")?;
                let mut frame = [0u8; 13];
                connection.read_exact(&mut frame).context("read from the process")?;
                took.push(milliseconds(begun));
                ensure!(&frame[8..] == b"line\n", "another line came back: {frame:?}");
            }
            Ok(samples::percentile(&took, 50))
        })?;
        let payload = format!("5 bytes to an attached cat and back; each sample is the median of {ECHOES}");
        samples::print(self.about("attach_echo_ms_p50", "ms", &payload), &samples[0], &samples[1])?;
        self.clean()
    }

    fn copies(&self) -> Result<()> {
        let mib = self.sizes.stream_mib;
        self.on_both("agent-cp", &json!({"Cmd": ["sleep", "1000000"]}))?;
        let archive = payload::tar("payload", mib);
        let rate = |begun: Instant| f64::from(mib) * 1.048_576 / begun.elapsed().as_secs_f64();
        let ins = self.engines.turns(self.sizes.rounds, |engine, _| {
            let begun = Instant::now();
            let path = "/containers/bench-agent-cp/archive?path=/tmp";
            let mut answer = api::ask(&engine.socket, "PUT", path, "application/x-tar", &archive)?;
            let mut said = String::new();
            answer.body.read_to_string(&mut said).context("read the answer")?;
            ensure!(answer.status == 200, "{} {said}", answer.status);
            Ok(rate(begun))
        })?;
        let outs = self.engines.turns(self.sizes.rounds, |engine, _| {
            let begun = Instant::now();
            let path = "/containers/bench-agent-cp/archive?path=/tmp/payload";
            let mut answer = api::ask(&engine.socket, "GET", path, "", &[])?;
            let bytes = std::io::copy(&mut answer.body, &mut std::io::sink()).context("read the archive")?;
            ensure!(answer.status == 200 && bytes > u64::from(mib) << 20, "{} with {bytes} bytes", answer.status);
            Ok(rate(begun))
        })?;
        let payload = |what: &str| format!("{what} the archive of one file of {mib} MiB, a running container");
        samples::print(self.about("cp_in_mb_s", "MB/s", &payload("PUT")), &ins[0], &ins[1])?;
        samples::print(self.about("cp_out_mb_s", "MB/s", &payload("GET")), &outs[0], &outs[1])?;
        self.clean()
    }

    /// What stays in memory for a container besides its process.
    fn memory(&self) -> Result<()> {
        let samples = self.engines.turns(self.sizes.rounds, |engine, turn| {
            let name = format!("agent-memory-{turn}");
            let id = started(engine, &name, json!({"Cmd": ["sleep", "1000000"]}))?;
            let kib =
                if engine.socket == self.engines.both[0].socket { agent_rss_kib(&id)? } else { shim_rss_kib(&id)? };
            engine.clean()?;
            Ok(kib)
        })?;
        let payload = "resident memory of the agent in a pod with one container; of the peer's shim for one container";
        samples::print(self.about("agent_rss_kib", "KiB", payload), &samples[0], &samples[1])
    }

    /// From the agent's own start to the application's.
    fn starts(&self) -> Result<()> {
        let guest = Guest::make()?;
        let booted = Ours { guest: &guest, template: None };
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for _ in 0..self.sizes.runs {
            let said = alone(&booted, Args::DMESG)?.end()?.0.output;
            ours.push(message_ms(&said, APPLICATION)? - message_ms(&said, PID1)?);
            let execs = Execs::begin()?;
            self.engines.both[1].run(&["run", "--rm", IMAGE, "echo", "hello"])?;
            peer.push(between(&execs.end()?, "containerd-shim", "/echo")?);
        }
        let payload = "PID 1's start to the application's, by the guest's clock, booted; of the peer, from the shim's exec to the application's";
        let about = self.about("agent_start_ms", "ms", payload);
        samples::print(About { memory_mib: MEMORY_MIB, ..about }, &ours, &peer)
    }

    fn clean(&self) -> Result<()> {
        self.engines.both.iter().try_for_each(Engine::clean)
    }
}

/// From the first exec of one program to the last one of another, milliseconds.
fn between(execs: &[(f64, String)], first: &str, last: &str) -> Result<f64> {
    let begun = execs.iter().find(|(_, file)| file.contains(first)).with_context(|| format!("no exec of {first}"))?;
    let ended = execs.iter().rev().find(|(_, file)| file.ends_with(last));
    Ok(ended.with_context(|| format!("no exec of {last}"))?.0 - begun.0)
}

/// A container that runs; its id.
fn started(engine: &Engine, name: &str, config: Value) -> Result<String> {
    let id = engine.create(name, config)?;
    engine.api("POST", &format!("/containers/{id}/start"), &Value::Null)?;
    Ok(id)
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// What the agent says of itself.
fn agent_rss_kib(pod: &str) -> Result<f64> {
    let socket = Path::new(zone::paths::RUN).join("pods").join(pod).join("agent.sock");
    let state = api::json(&socket, "GET", "/v1/state", &Value::Null)?;
    state["agent"]["rss_kib"].as_f64().context("the agent does not say how much memory it has")
}

/// The peer's process for a container: the one whose arguments name it.
fn shim_rss_kib(id: &str) -> Result<f64> {
    for entry in std::fs::read_dir("/proc").context("look for the shim")?.flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
        if line.contains("containerd-shim") && line.contains(id) {
            let status = String::from_utf8_lossy(&read("status")).into_owned();
            let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            return rss
                .and_then(|l| l.split_whitespace().next()?.parse().ok())
                .context("the shim has no resident memory");
        }
    }
    anyhow::bail!("there is no shim of {id}")
}
