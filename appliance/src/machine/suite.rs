//! `cargo appliance test`: every test there is, in stages, the booted image included.
//!
//! One line a stage; a stage's whole output only when it fails.

use super::report::{Report, print};
use super::state::StateDir;
use super::{control, env};
use crate::build::host;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// What a stage is and the cargo command for it.
const WITHOUT_BOOT: [(&str, &[&str]); 3] = [
    ("format", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests without a boot", &["nextest", "run", "--workspace", "--no-fail-fast"]),
];

/// Runs the stages that need no image.
///
/// # Errors
/// The first stage that fails, with its output.
pub fn without_boot(workspace: &Path, report: &mut Report) -> Result<()> {
    let known = host::cargo().args(["nextest", "--version"]).current_dir(workspace).output();
    if !known.context("cannot run cargo")?.status.success() {
        // As slow as a build of its own, and only once.
        stage(report, "install cargo-nextest", |_| cargo(workspace, &["install", "--locked", "cargo-nextest"], &[]))
            .context("the tests need cargo-nextest: `cargo install --locked cargo-nextest`")?;
    }
    for (name, args) in WITHOUT_BOOT {
        stage(report, name, |_| cargo(workspace, args, &[]))?;
    }
    stage(report, "fuzz, short", |report| crate::fuzz::short(workspace, report))
}

/// Lists the endpoints of the Docker API with the tests that show them.
///
/// # Errors
/// When the list cannot be made.
pub fn list_endpoints(workspace: &Path) -> Result<()> {
    let args = ["run", "--quiet", "-p", "compare", "--", "--list-endpoints"];
    let status = host::cargo().args(args).current_dir(workspace).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the list of endpoints ended with {status}");
    }
    Ok(())
}

/// Runs the tests of the booted image against the running zone.
///
/// # Errors
/// When they fail, with their output.
pub fn booted(workspace: &Path, dir: &StateDir, full: bool, report: &mut Report) -> Result<()> {
    if !workspace.join("qemu-tests/Cargo.toml").exists() {
        bail!(
            "there are no tests of the booted image: {} is missing",
            workspace.join("qemu-tests/Cargo.toml").display()
        );
    }
    let zone = dir.require_running()?;
    let mut variables = env::variables(dir, &zone);
    // This very program, for as long as it waits for the tests: building them may replace the file at its path.
    variables.push(("KRAUD_APPLIANCE", format!("/proc/{}/exe", std::process::id())));
    // The containers' image is made of it.
    variables.push(("KRAUD_BUSYBOX", zone.plan.tools.join("usr/bin/busybox").display().to_string()));
    variables.push(("KRAUD_FULL", if full { "1" } else { "0" }.into()));
    let args = ["nextest", "run", "-p", "qemu-tests", "--features", "booted", "--no-fail-fast"];
    stage(report, "tests of the booted image", |_| cargo(workspace, &args, &variables))
}

/// Stops the zone of the tests.
///
/// # Errors
/// When it does not stop.
pub fn stop(dir: &StateDir, report: &mut Report) -> Result<()> {
    stage(report, "stop", |_| control::stop(dir))
}

/// Runs one stage and reports its time.
///
/// # Errors
/// The stage's.
pub fn stage<T>(report: &mut Report, name: &str, run: impl FnOnce(&mut Report) -> Result<T>) -> Result<T> {
    let started = Instant::now();
    report.begin(name);
    let result = run(report);
    report.end(name, if result.is_ok() { "ok" } else { "FAILED" }, started.elapsed());
    result.with_context(|| format!("{name} failed"))
}

fn cargo(workspace: &Path, args: &[&str], variables: &[(&str, String)]) -> Result<()> {
    let mut command = host::cargo();
    command.args(args).current_dir(workspace).stdin(Stdio::null());
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        print(&String::from_utf8_lossy(&output.stdout));
        super::report::say(&String::from_utf8_lossy(&output.stderr));
        bail!("`cargo {}` ended with {}", args.join(" "), output.status);
    }
    let times = times(&String::from_utf8_lossy(&output.stderr), args.contains(&"booted"));
    if !times.is_empty() {
        print(&times);
    }
    Ok(())
}

/// What nextest says at its end, and each test's time where a test is worth a line.
fn times(said: &str, each: bool) -> String {
    let wanted =
        |line: &&str| line.trim_start().starts_with("Summary [") || (each && line.trim_start().starts_with("PASS ["));
    said.lines().filter(wanted).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn the_times_of_the_booted_tests_and_the_sum_are_shown() {
        let said = "  Compiling x\n        PASS [   1.5s] (1/1) a b\n     Summary [   2s] 1 test run: 1 passed\n     Summary [   2s] 2 tests run: 2 passed, 0 skipped";
        assert!(times(said, true).contains("PASS") && times(said, true).contains("2 passed"));
        assert_eq!(times(said, false).lines().count(), 2);
    }
}
