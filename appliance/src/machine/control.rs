//! `stop`, `kill` and `status` of a running zone, through its supervisor.

use super::lan;
use super::report::print;
use super::state::{Phase, StateDir, Zone};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longer than the supervisor itself waits before it cuts the power.
const STOP_DEADLINE: Duration = Duration::from_secs(180);

fn signal(dir: &StateDir, signal: Signal) -> Result<()> {
    let pid = dir.holder()?.context("no zone runs on this computer")?;
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the lock holds no process id")?;
    kill_process(pid, signal).with_context(|| format!("cannot signal the zone's supervisor {pid}"))?;
    if !dir.wait_unlocked(STOP_DEADLINE)? {
        bail!("the zone did not end: look into {} and kill process {pid}", dir.file("supervisor.log").display());
    }
    Ok(())
}

/// Shuts the zone down and waits for it.
///
/// # Errors
/// When none runs, or it does not end.
pub fn stop(dir: &StateDir) -> Result<()> {
    signal(dir, Signal::TERM)
}

/// Cuts the zone's power.
///
/// # Errors
/// When none runs, or it does not end.
pub fn kill(dir: &StateDir) -> Result<()> {
    signal(dir, Signal::USR1)
}

/// Prints the state of the zone; false when none runs.
///
/// # Errors
/// When the state cannot be read.
pub fn status(dir: &StateDir) -> Result<bool> {
    let Some(zone) = dir.running()? else {
        print("no zone runs on this computer; `cargo appliance run` starts one");
        return Ok(false);
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    print(&describe(dir, &zone, now));
    Ok(true)
}

fn describe(dir: &StateDir, zone: &Zone, now: u64) -> String {
    let phase = match &zone.phase {
        Phase::Booting(step) => format!("booting: {step}; console: {}", dir.serial_tail(1)),
        Phase::Ready => "ready".into(),
        Phase::Failed(why) => format!("does not answer: {why}"),
        Phase::Stopping => "stopping".into(),
    };
    let up = now.saturating_sub(zone.started);
    let plan = &zone.plan;
    let machine = if plan.kvm { "KVM" } else { "emulated" };
    let published = match &zone.published[..] {
        _ if plan.lan => "at the zone's own address".into(),
        [] => "nothing".into(),
        ports => ports.join(" "),
    };
    let mut rows = vec![
        ("state", phase),
        ("running for", format!("{}:{:02}:{:02}", up / 3600, up / 60 % 60, up % 60)),
        ("machine", format!("{machine}, {} CPUs, {} MiB, process {}", plan.cpus, plan.memory_mib, zone.pid)),
        ("image", plan.image_sha256.chars().take(16).collect()),
        ("web page", format!("https://{}:{}/", plan.address(), plan.ports.web)),
        ("pairing code", zone.pairing_code.clone().unwrap_or_else(|| "not known yet".into())),
        ("Docker API", format!("tcp://{}:{}", plan.address(), plan.ports.docker)),
        ("published", published),
        ("state in", dir.path().display().to_string()),
    ];
    rows.extend(lan::namespace(zone).map(|path| ("network", format!("nsenter --net={} COMMAND", path.display()))));
    rows.extend(zone.notes.iter().map(|note| ("note", note.clone())));
    let rows: Vec<String> = rows.into_iter().map(|(name, value)| format!("{name:<13} {value}")).collect();
    rows.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_what_does_not_run_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        assert!(stop(&dir).unwrap_err().to_string().contains("no zone runs"));
        assert!(kill(&dir).unwrap_err().to_string().contains("no zone runs"));
        assert!(!status(&dir).unwrap());
    }
}
