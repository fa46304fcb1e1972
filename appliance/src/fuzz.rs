//! `cargo appliance fuzz`: builds the fuzz targets and runs them, a process each (docs/fuzzing.md).
//!
//! ```text
//!  fuzz/corpus/TARGET           inputs that are known to matter, part of the sources
//!  target/fuzz/found/TARGET     what longer runs have found besides; `--keep` takes of it what adds something
//!  target/fuzz/crashes          inputs that ended a target
//! ```
//! A short run is the same in each place: its random numbers begin with the same seed, and it ends after a number of inputs and not
//! after a time. Only an input that takes [`HANG_S`] seconds is a failure because of its time.

use crate::build::host::{self, Host};
use crate::machine::report::{Report, print, say};
use crate::machine::suite::stage;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// An input that takes longer hangs, on the slowest of machines.
const HANG_S: u32 = 300;
/// What a target may use, of which libFuzzer needs some itself.
const MEMORY_MIB: u32 = 1024;
/// libFuzzer's own words that a reader wants to see of a failure.
const TELLING: [&str; 6] = ["panicked at", "ERROR: libFuzzer", "more memory than", "SUMMARY", "assertion", "called `"];

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names of targets, or what such names begin with; empty means all.
    pub targets: Vec<String>,
    /// How long each target runs; none is a short run.
    pub seconds: Option<u32>,
    /// How many targets run at a time; none is as many as there are processors.
    pub jobs: Option<usize>,
    /// Add to the corpus what was found.
    pub keep: bool,
}

/// A target, as the program lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    name: String,
    max_len: u64,
    short: u64,
}

/// The built targets.
#[derive(Debug)]
struct Fuzzer {
    program: PathBuf,
    corpus: PathBuf,
    work: PathBuf,
    targets: Vec<Target>,
}

/// How a target's run ended well.
#[derive(Debug)]
struct Ran {
    target: String,
    inputs: String,
    took: Duration,
}

/// Runs targets, and prints a line for each.
///
/// # Errors
/// When they cannot be built, or when one failed: with its input's place.
pub fn run(workspace: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let fuzzer = stage(report, "build", |report| Fuzzer::build(workspace, report))?;
    let chosen = fuzzer.choose(&options.targets)?;
    fuzzer.run(&chosen, options, report, true)?;
    if options.keep {
        for target in &chosen {
            fuzzer.keep(target)?;
        }
    }
    Ok(())
}

/// A short run of all targets.
///
/// # Errors
/// As [`run`].
pub fn short(workspace: &Path, report: &mut Report) -> Result<()> {
    let fuzzer = Fuzzer::build(workspace, report)?;
    fuzzer.run(&fuzzer.choose(&[])?, &Options::default(), report, false)
}

/// Prints the targets.
///
/// # Errors
/// When they cannot be built.
pub fn list(workspace: &Path, report: &mut Report) -> Result<()> {
    let fuzzer = Fuzzer::build(workspace, report)?;
    for target in &fuzzer.targets {
        let corpus = files(&fuzzer.corpus.join(&target.name));
        print(&format!("{:<24} {:>4} inputs in its corpus", target.name, corpus));
    }
    Ok(())
}

/// Gives one input to one target, whose words go straight to the reader.
///
/// # Errors
/// When the target fails.
pub fn once(workspace: &Path, target: &str, input: &Path, report: &mut Report) -> Result<()> {
    let fuzzer = Fuzzer::build(workspace, report)?;
    let chosen = fuzzer.choose(&[target.to_owned()])?;
    let [target] = chosen.as_slice() else { bail!("`{target}` is more than one target") };
    let status = fuzzer.command(target).arg(input).status().context("cannot run the targets")?;
    ensure!(status.success(), "{} ended with {status}", target.name);
    Ok(())
}

impl Fuzzer {
    fn build(workspace: &Path, report: &mut Report) -> Result<Self> {
        let root = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let work = root.join("fuzz");
        fs::create_dir_all(work.join("crashes")).with_context(|| format!("cannot make {}", work.display()))?;
        Host::detect()?.need("c++", "g++", &work.join("build.log"), report)?;
        let mut cargo = host::cargo();
        cargo.args(["build", "--release", "--locked", "--target", TRIPLE, "-p", "fuzz", "--features", "libfuzzer"]);
        cargo.arg("--target-dir").arg(&root).current_dir(workspace);
        cargo.env("RUSTC_WORKSPACE_WRAPPER", workspace.join("fuzz/instrument"));
        host::run("fuzz", &work.join("build.log"), &mut cargo)?;
        let program = root.join(TRIPLE).join("release/fuzz");
        let listed = host::output("fuzz", &work.join("build.log"), Command::new(&program).env_remove(VARIABLE))?;
        let targets = listed.lines().map(Target::parse).collect::<Option<Vec<_>>>();
        let targets = targets.context("the targets are not listed as they should be")?;
        Ok(Self { program, corpus: workspace.join("fuzz/corpus"), work, targets })
    }

    fn choose(&self, names: &[String]) -> Result<Vec<Target>> {
        let begins = |target: &Target, name: &String| {
            target.name.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        if let Some(name) = names.iter().find(|name| !self.targets.iter().any(|target| begins(target, name))) {
            bail!("there is no target `{name}`: `cargo appliance fuzz --list` shows them");
        }
        let wanted = |target: &&Target| names.is_empty() || names.iter().any(|name| begins(target, name));
        Ok(self.targets.iter().filter(wanted).cloned().collect())
    }

    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(&self.program);
        command.env(VARIABLE, &target.name).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.arg(format!("-max_len={}", target.max_len)).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
        command.arg(format!("-timeout={HANG_S}"));
        command.arg(format!("-artifact_prefix={}/{}-", self.work.join("crashes").display(), target.name));
        command
    }

    /// Runs targets, several at a time.
    fn run(&self, targets: &[Target], options: &Options, report: &mut Report, each: bool) -> Result<()> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = options.jobs.unwrap_or(processors).clamp(1, targets.len().max(1));
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let (tell, told) = std::sync::mpsc::channel::<Ran>();
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                let (tell, next, failures) = (tell.clone(), &next, &failures);
                scope.spawn(move || {
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.one(target, options.seconds) {
                            Ok(ran) => drop(tell.send(ran)),
                            Err(error) => {
                                failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(error);
                            }
                        }
                    }
                });
            }
            drop(tell);
            for (done, ran) in told.iter().enumerate() {
                report.at(&format!("{} of {} targets", done + 1, targets.len()));
                if each {
                    report.end(&format!("{}: {} inputs", ran.target, ran.inputs), "ok", ran.took);
                }
            }
        });
        let failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failures.iter().for_each(|failure| say(&format!("{failure:#}")));
        ensure!(failures.is_empty(), "{} of {} targets failed", failures.len(), targets.len());
        Ok(())
    }

    fn one(&self, target: &Target, seconds: Option<u32>) -> Result<Ran> {
        let corpus = self.corpus.join(&target.name);
        // A short run leaves nothing behind, or the next one would be another.
        let fresh = tempfile::tempdir().context("cannot make a folder")?;
        let found = if seconds.is_some() { self.found(target) } else { fresh.path().to_owned() };
        for folder in [&found, &corpus] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut command = self.command(target);
        match seconds {
            Some(seconds) => command.arg(format!("-max_total_time={seconds}")),
            None => command.arg("-seed=1").arg(format!("-runs={}", target.short + files(&corpus))),
        };
        command.arg("-use_value_profile=1").arg("-print_final_stats=1").arg(&found).arg(&corpus);
        let log = self.work.join(format!("{}.log", target.name));
        let out = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(Stdio::null()).stderr(out);
        let started = Instant::now();
        let status = command.status().context("cannot run the targets")?;
        let said = String::from_utf8_lossy(&fs::read(&log).context("cannot read what a target said")?).into_owned();
        if !status.success() {
            bail!("{}", failure(&target.name, &said, &log));
        }
        let inputs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        Ok(Ran {
            target: target.name.clone(),
            inputs: inputs.unwrap_or("no").trim().to_owned(),
            took: started.elapsed(),
        })
    }

    fn found(&self, target: &Target) -> PathBuf {
        self.work.join("found").join(&target.name)
    }

    /// Makes the corpus the smallest set of inputs that reaches all that corpus and found inputs reach.
    fn keep(&self, target: &Target) -> Result<()> {
        let (corpus, found) = (self.corpus.join(&target.name), self.found(target));
        let smallest = self.work.join(format!("{}.smallest", target.name));
        let _ = fs::remove_dir_all(&smallest);
        fs::create_dir_all(&smallest).with_context(|| format!("cannot make {}", smallest.display()))?;
        let mut merge = self.command(target);
        // Places in the code, not how often each: a tenth of the files.
        merge.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&smallest).arg(&corpus).arg(&found);
        host::run("fuzz", &self.work.join(format!("{}.log", target.name)), &mut merge)?;
        let before = files(&corpus);
        for folder in [&corpus, &found] {
            fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
        for entry in fs::read_dir(&smallest).context("cannot read what was found")?.flatten() {
            fs::copy(entry.path(), corpus.join(entry.file_name())).context("cannot write the corpus")?;
        }
        let _ = fs::remove_dir_all(&smallest);
        print(&format!("{:<24} {before} inputs in its corpus are now {}", target.name, files(&corpus)));
        Ok(())
    }
}

/// The variable by which the program knows its target.
const VARIABLE: &str = "KRAUD_FUZZ_TARGET";

impl Target {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (name, max_len, short) = (words.next()?, words.next()?, words.next()?);
        Some(Self { name: name.to_owned(), max_len: max_len.parse().ok()?, short: short.parse().ok()? })
    }
}

/// What a reader needs to know of a failure.
fn failure(target: &str, said: &str, log: &Path) -> String {
    let telling = said.lines().filter(|line| TELLING.iter().any(|word| line.contains(word))).take(6);
    let input = said.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()));
    let again = input.map_or_else(String::new, |path| {
        format!("\n  its input: {path}\n  again:     cargo appliance fuzz {target} --input {path}")
    });
    let telling: String = telling.map(|line| format!("\n  {}", line.trim())).collect();
    format!("{target} failed:{telling}{again}\n  all it said: {}", log.display())
}

fn files(folder: &Path) -> u64 {
    fs::read_dir(folder).map_or(0, |entries| entries.flatten().count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_its_input_and_how_to_see_it_again() {
        let said = "INFO: Seed: 1\nthread '<unnamed>' panicked at services/x.rs:1:2:\nindex out of bounds\n==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='/t/x-'; Test unit written to /t/x-crash-1\n";
        let told = failure("x", said, Path::new("/t/x.log"));
        assert!(told.contains("services/x.rs:1:2"));
        assert!(told.contains("cargo appliance fuzz x --input /t/x-crash-1"));
    }

    #[test]
    fn names_of_targets_are_whole_words() {
        let line = "cradle-blk 1024 20000";
        let target = Target::parse(line).unwrap();
        assert_eq!((target.max_len, target.short), (1024, 20_000));
        let none = PathBuf::new();
        let fuzzer = Fuzzer { program: none.clone(), corpus: none.clone(), work: none, targets: vec![target.clone()] };
        assert_eq!(fuzzer.choose(&["cradle".into()]).unwrap(), [target]);
        assert!(fuzzer.choose(&["cra".into()]).is_err());
    }
}
