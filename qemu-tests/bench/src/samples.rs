//! Samples of two sides, and the line that tells them.

use anyhow::{Context as _, Result, bail};
use serde_json::json;

/// Runs of both sides under which a difference is noise, as a share.
const UNPROVEN: f64 = 0.2;

/// What a measurement is of.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The benchmark.
    pub bench: &'a str,
    /// What is measured.
    pub metric: &'a str,
    /// The unit.
    pub unit: &'a str,
    /// Whom we compare with, with the version.
    pub peer: &'a str,
    /// What was run.
    pub payload: &'a str,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
}

/// Prints the medians, their ratio and all samples.
///
/// # Errors
/// When a side has no sample.
pub fn print(about: About<'_>, ours: &[f64], peer: &[f64]) -> Result<()> {
    print_percentile(about, 50, ours, peer)
}

/// Prints this percentile of both sides, their ratio and all samples.
///
/// # Errors
/// When a side has no sample.
pub fn print_percentile(about: About<'_>, percent: usize, ours: &[f64], peer: &[f64]) -> Result<()> {
    let About { bench, metric, unit, peer: peer_name, payload, vcpus, memory_mib } = about;
    if ours.is_empty() || peer.is_empty() {
        bail!("{metric}: a side has no sample");
    }
    let (our_median, peer_median) = (percentile(ours, percent), percentile(peer, percent));
    let ratio = our_median / peer_median;
    let line = json!({
        "bench": bench, "metric": metric, "unit": unit, "ours": round(our_median), "peer": peer_name,
        "peer_value": round(peer_median), "ratio": round(ratio), "unproven": (ratio - 1.0).abs() < UNPROVEN,
        "ours_p95": round(percentile(ours, 95)), "peer_p95": round(percentile(peer, 95)),
        "ours_samples": ours.iter().copied().map(round).collect::<Vec<_>>(),
        "peer_samples": peer.iter().copied().map(round).collect::<Vec<_>>(),
        "payload": payload, "vcpus": vcpus, "memory_mib": memory_mib, "boot": boot()?,
    });
    say(&line);
    Ok(())
}

/// Prints the median and all samples of what no peer has.
///
/// # Errors
/// When there is none.
pub fn print_alone(about: About<'_>, ours: &[f64]) -> Result<()> {
    let About { bench, metric, unit, payload, vcpus, memory_mib, .. } = about;
    if ours.is_empty() {
        bail!("{metric}: there is no sample");
    }
    let line = json!({
        "bench": bench, "metric": metric, "unit": unit, "ours": round(percentile(ours, 50)),
        "ours_p95": round(percentile(ours, 95)), "ours_samples": ours.iter().copied().map(round).collect::<Vec<_>>(),
        "payload": payload, "vcpus": vcpus, "memory_mib": memory_mib, "boot": boot()?,
    });
    say(&line);
    Ok(())
}

/// This boot's id.
fn boot() -> Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot's id")?;
    Ok(boot.trim().to_owned())
}

#[allow(clippy::print_stdout, reason = "these lines are what the program is for")]
fn say(line: &serde_json::Value) {
    println!("{line}");
}

/// The smallest sample that `percent` of all are not above.
pub fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_samples() {
        let samples = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert!((percentile(&samples, 50) - 3.0).abs() < f64::EPSILON);
        assert!((percentile(&samples, 95) - 5.0).abs() < f64::EPSILON);
        assert!((percentile(&samples, 1) - 1.0).abs() < f64::EPSILON);
    }
}
