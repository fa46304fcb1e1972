//! CPU and memory of a container: what of it makes the guest's size, and what binds its monitor.
//!
//! Pure functions. What the guest sees (virtual CPUs, memory) is fixed for a run; quota, weight, and the memory and process
//! limits of the control group in the guest change while it runs.

use super::request::HostConfig;
use crate::errors::{Failure, Result};
use zone::pod::CpuLimits;

/// Docker's smallest memory limit.
const MIN_MEMORY: i64 = 6 << 20;
/// Guest memory without a limit. The host gives it only as the guest touches it.
const DEFAULT_VM_MIB: u32 = 512;
/// What kernel and agent need beside the container's memory.
const OVERHEAD_MIB: u32 = 64;
/// The smallest guest that boots well.
const MIN_VM_MIB: u32 = 128;
/// The most virtual CPUs of a guest.
const MAX_VCPUS: u64 = 64;
const SECOND_US: u64 = 1_000_000;
/// Docker's smallest and largest CPU period, µs, and its smallest quota.
const PERIOD_US: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const MIN_QUOTA_US: i64 = 1_000;
const DEFAULT_PERIOD_US: i64 = 100_000;

/// Checks what belongs together.
///
/// # Errors
/// 400 in Docker's words.
pub fn check(host: &HostConfig) -> Result<()> {
    let memory = host.memory.unwrap_or_default();
    if memory < 0 || (memory > 0 && memory < MIN_MEMORY) {
        return Err(Failure::invalid("Minimum memory limit allowed is 6MB"));
    }
    let swap = host.memory_swap.unwrap_or_default();
    if swap > 0 && memory == 0 {
        return Err(Failure::invalid("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    if swap > 0 && swap < memory {
        return Err(Failure::invalid("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    if memory > 0 && host.memory_reservation.unwrap_or_default() > memory {
        return Err(Failure::invalid("Minimum memory limit can not be less than memory reservation limit, see usage"));
    }
    cpus(host)
}

fn cpus(host: &HostConfig) -> Result<()> {
    let (nano, period, quota) =
        (host.nano_cpus.unwrap_or_default(), host.cpu_period.unwrap_or_default(), host.cpu_quota.unwrap_or_default());
    for (what, value) in [("CPU Period", period), ("CPU Quota", quota)] {
        if nano > 0 && value != 0 {
            return Err(Failure::invalid(format!("Conflicting options: Nano CPUs and {what} cannot both be set")));
        }
    }
    let there = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if nano < 0 || nano.unsigned_abs() > there as u64 * 1_000_000_000 {
        return Err(Failure::invalid(format!(
            "Range of CPUs is from 0.01 to {there}.00, as there are only {there} CPUs available"
        )));
    }
    if period != 0 && !PERIOD_US.contains(&period) {
        return Err(Failure::invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if quota > 0 && quota < MIN_QUOTA_US {
        return Err(Failure::invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    if host.cpu_shares.unwrap_or_default() < 0 {
        return Err(Failure::invalid("shares: cannot be negative"));
    }
    Ok(())
}

/// Memory of the guest for a container's limit in bytes.
#[must_use]
pub fn vm_memory_mib(limit: i64) -> u32 {
    match u32::try_from(limit.max(0).unsigned_abs().div_ceil(1 << 20)) {
        Ok(0) => DEFAULT_VM_MIB,
        Ok(mib) => mib.saturating_add(OVERHEAD_MIB).max(MIN_VM_MIB),
        Err(_) => u32::MAX,
    }
}

/// The largest limit in bytes that a guest of this size can hold to.
#[must_use]
pub fn most_memory(vm_mib: u32) -> u64 {
    u64::from(vm_mib.saturating_sub(OVERHEAD_MIB)) << 20
}

/// Virtual CPUs of the guest: as many as the quota can keep busy.
#[must_use]
pub fn vcpus(host: &HostConfig) -> u8 {
    let wanted = match cpu_limits(host).us_per_s {
        0 => 1,
        us => us.div_ceil(SECOND_US),
    };
    u8::try_from(wanted.clamp(1, MAX_VCPUS)).unwrap_or(1)
}

/// What binds the monitor.
#[must_use]
pub fn cpu_limits(host: &HostConfig) -> CpuLimits {
    let us_per_s = match (host.nano_cpus.unwrap_or_default(), host.cpu_quota.unwrap_or_default()) {
        (nano @ 1.., _) => nano.unsigned_abs() / 1000,
        (_, quota @ 1..) => {
            let period = host.cpu_period.filter(|p| *p > 0).unwrap_or(DEFAULT_PERIOD_US);
            quota.unsigned_abs().saturating_mul(SECOND_US) / period.unsigned_abs()
        }
        _ => 0,
    };
    let weight = host.cpu_shares.filter(|s| *s > 0).map_or(0, |shares| weight(shares.unsigned_abs()));
    CpuLimits { us_per_s, weight }
}

/// Docker's shares (2 to 262144, 1024 is usual) as a weight of control groups version 2 (1 to 10000, 100 is usual), as runc
/// converts them since 1.3.2: ends and middle meet.
fn weight(shares: u64) -> u64 {
    let log = f64::from(u32::try_from(shares.clamp(2, 262_144)).unwrap_or(262_144)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // 1 to 10000 by the formula's range.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = 10f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn host(value: Value) -> HostConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn limits_become_the_guests_size_and_the_monitors_bounds() {
        assert_eq!((vm_memory_mib(0), vm_memory_mib(6 << 20), vm_memory_mib(1 << 30)), (512, 128, 1088));
        assert_eq!(most_memory(vm_memory_mib(1 << 30)), 1 << 30);
        for (config, cpus, us) in [
            (json!({}), 1, 0),
            (json!({"NanoCpus": 1_500_000_000}), 2, 1_500_000),
            (json!({"NanoCpus": 500_000_000}), 1, 500_000),
            (json!({"CpuQuota": 250_000}), 3, 2_500_000),
            (json!({"CpuQuota": 20_000, "CpuPeriod": 10_000}), 2, 2_000_000),
        ] {
            assert_eq!((vcpus(&host(config.clone())), cpu_limits(&host(config)).us_per_s), (cpus, us));
        }
    }

    #[test]
    fn shares_become_weights_that_meet_at_the_ends_and_in_the_middle() {
        for (shares, want) in [(2, 1), (1024, 100), (262_144, 10_000), (1, 1), (9_999_999, 10_000), (512, 59)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_in_dockers_words() {
        for (config, part) in [
            (json!({"Memory": 1024}), "6MB"),
            (json!({"MemorySwap": 1 << 30}), "always set the Memory limit"),
            (json!({"NanoCpus": 1, "CpuPeriod": 2}), "Nano CPUs and CPU Period cannot both be set"),
            (json!({"NanoCpus": -1}), "Range of CPUs is from 0.01 to "),
            (json!({"NanoCpus": 99_999_000_000_000_i64}), "CPUs available"),
            (json!({"CpuPeriod": 5}), "CPU cfs period"),
            (json!({"CpuQuota": 5}), "CPU cfs quota"),
        ] {
            let failure = check(&host(config.clone())).unwrap_err();
            assert!(failure.status == 400 && failure.message.contains(part), "{config}: {failure}");
        }
    }
}
