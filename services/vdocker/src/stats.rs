//! What a container uses, in Docker's shape, from its control group and the guest's interfaces.

use crate::cgroup::{Cgroup, lines};
use crate::container::Container;
use crate::log::now_ns;
use serde_json::{Map, Value, json};
use std::fs;

/// One sample of Docker's ContainerStatsResponse, without names; `read` is left to the caller, who knows the format of times.
pub fn sample(container: &Container) -> Value {
    let empty = json!({"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}, "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0}});
    let cgroup = container.cgroup.as_ref();
    json!({
        "read": rfc3339(now_ns()), "preread": "0001-01-01T00:00:00Z",
        "pids_stats": cgroup.map_or_else(|| json!({}), pids), "num_procs": 0, "storage_stats": {},
        "blkio_stats": blkio(cgroup), "cpu_stats": cpu(cgroup), "precpu_stats": empty,
        "memory_stats": cgroup.map_or_else(|| json!({}), memory), "networks": networks(),
    })
}

/// Resident memory of the agent itself.
pub fn own_rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    rss.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0)
}

fn pids(cgroup: &Cgroup) -> Value {
    let current = cgroup.number("pids.current").unwrap_or(cgroup.processes().len() as u64);
    // Docker shows no limit as the largest number.
    json!({"current": current, "limit": cgroup.number("pids.max").unwrap_or(u64::MAX)})
}

fn cpu(cgroup: Option<&Cgroup>) -> Value {
    let text = cgroup.map(|c| c.read("cpu.stat")).unwrap_or_default();
    let stat = lines(&text);
    let get = |key: &str| stat.iter().find(|(k, _)| k == key).map_or(0, |(_, v)| *v);
    json!({
        "cpu_usage": {"total_usage": get("usage_usec") * 1000, "usage_in_kernelmode": get("system_usec") * 1000, "usage_in_usermode": get("user_usec") * 1000},
        "system_cpu_usage": system_ns(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        "online_cpus": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "throttling_data": {"periods": get("nr_periods"), "throttled_periods": get("nr_throttled"), "throttled_time": get("throttled_usec") * 1000},
    })
}

/// All the time that the processors have counted, idle too; ticks are 10 ms.
fn system_ns(proc_stat: &str) -> u64 {
    let first = proc_stat.lines().next().unwrap_or_default();
    first.split_whitespace().skip(1).take(7).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * 10_000_000
}

fn memory(cgroup: &Cgroup) -> Value {
    let stats: Map<String, Value> =
        lines(&cgroup.read("memory.stat")).into_iter().map(|(k, v)| (k, v.into())).collect();
    let limit = cgroup.number("memory.max").unwrap_or_else(total_memory);
    json!({"usage": cgroup.number("memory.current").unwrap_or(0), "stats": stats, "limit": limit})
}

fn total_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn blkio(cgroup: Option<&Cgroup>) -> Value {
    let (mut bytes, mut count) = (Vec::new(), Vec::new());
    for line in cgroup.map(|c| c.read("io.stat")).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse::<u64>(), minor.parse::<u64>()) else { continue };
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            let one = |op: &str| json!({"major": major, "minor": minor, "op": op, "value": value});
            match key {
                "rbytes" => bytes.push(one("read")),
                "wbytes" => bytes.push(one("write")),
                "rios" => count.push(one("read")),
                "wios" => count.push(one("write")),
                _ => {}
            }
        }
    }
    json!({
        "io_service_bytes_recursive": bytes, "io_serviced_recursive": count, "io_queue_recursive": null, "io_service_time_recursive": null,
        "io_wait_time_recursive": null, "io_merged_recursive": null, "io_time_recursive": null, "sectors_recursive": null,
    })
}

fn networks() -> Value {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    parse_net_dev(&text).into()
}

fn parse_net_dev(text: &str) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, numbers) in text.lines().filter_map(|l| l.split_once(':')) {
        let n: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        if name.trim() == "lo" || n.len() < 12 {
            continue;
        }
        let one = json!({
            "rx_bytes": n[0], "rx_packets": n[1], "rx_errors": n[2], "rx_dropped": n[3],
            "tx_bytes": n[8], "tx_packets": n[9], "tx_errors": n[10], "tx_dropped": n[11],
        });
        all.insert(name.trim().to_owned(), one);
    }
    all
}

/// A time as RFC 3339 with nanoseconds, UTC.
pub fn rfc3339(ns: u64) -> String {
    let (seconds, nanos) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Days since 1970-01-01 as a date of the Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (ns, want) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_005, "2000-02-29T00:00:00.000000005Z"),
            (1_795_257_701_479_716_463, "2026-11-21T10:41:41.479716463Z"),
        ] {
            assert_eq!(rfc3339(ns), want);
        }
    }

    #[test]
    fn interfaces_are_read_without_the_loopback() {
        let text =
            "Inter-|\n face |\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n";
        let all = parse_net_dev(text);
        assert_eq!(all.len(), 1);
        assert_eq!((&all["eth0"]["rx_bytes"], &all["eth0"]["tx_dropped"]), (&json!(100), &json!(8)));
    }

    #[test]
    fn system_time_is_the_sum_of_the_first_line() {
        assert_eq!(system_ns("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1"), 280_000_000);
    }
}
