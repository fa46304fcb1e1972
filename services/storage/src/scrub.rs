//! Reads the whole pool once a month, so that a rotten block is found while its copy is still good; and says what is wrong
//! with the pool's disks.

use crate::argv;
use crate::run::Runner;
use serde_json::Value;

/// How long a scrub lasts as a proof, seconds.
const EVERY_S: u64 = 30 * 86_400;
/// Sentences about disks at most.
const TROUBLES_MAX: usize = 16;

fn status(pool: &str) -> Vec<String> {
    argv!["zpool", "status", "-j", "--json-int", "--json-flat-vdevs", "-p", pool]
}

/// Starts a scrub when the last one (or the pool's making) is a month ago. A failure is told and tried again later.
pub async fn when_due(runner: &Runner, pool: &str, now_s: u64) {
    let due = async {
        let scan = last(&runner.json(&status(pool)).await?, pool);
        let since = match scan {
            Some(at) => at,
            None => {
                created(&runner.json(&argv!["zfs", "get", "-j", "--json-int", "-p", "creation", pool]).await?, pool)
            }
        };
        if since + EVERY_S <= now_s {
            runner.run(&argv!["zpool", "scrub", pool]).await?;
            tracing::info!(pool, "began to read the whole pool");
        }
        Ok::<_, crate::run::RunError>(())
    };
    if let Err(error) = due.await {
        tracing::warn!(pool, %error, "cannot scrub the pool");
    }
}

/// When the last scrub ended or, when it runs, began: seconds since the Unix epoch.
fn last(status: &Value, pool: &str) -> Option<u64> {
    let scan = &status["pools"][pool]["scan_stats"];
    let number = |key: &str| scan[key].as_u64().or_else(|| scan[key].as_str()?.parse().ok()).filter(|n| *n > 0);
    number("end_time").or_else(|| number("start_time"))
}

fn created(get: &Value, pool: &str) -> u64 {
    let value = &get["datasets"][pool]["properties"]["creation"]["value"];
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// What is wrong with the pool's disks, for people; empty when nothing is.
///
/// # Errors
/// When the pool cannot be asked.
pub async fn troubles(runner: &Runner, pool: &str) -> Result<Vec<String>, crate::run::RunError> {
    Ok(troubles_in(&runner.json(&status(pool)).await?, pool))
}

fn troubles_in(status: &Value, pool: &str) -> Vec<String> {
    let vdevs = status["pools"][pool]["vdevs"].as_object().into_iter().flatten();
    let mut found = Vec::new();
    for (name, vdev) in vdevs {
        if vdev["vdev_type"].as_str().is_some_and(|t| ["root", "mirror", "raidz"].contains(&t)) {
            continue;
        }
        let number = |key: &str| vdev[key].as_u64().or_else(|| vdev[key].as_str()?.parse().ok()).unwrap_or(0);
        let state = vdev["state"].as_str().unwrap_or("UNKNOWN");
        let errors = number("read_errors") + number("write_errors") + number("checksum_errors");
        if state != "ONLINE" {
            found.push(format!("disk {name} is {state}"));
        } else if errors > 0 {
            found.push(format!("disk {name} has had {errors} errors"));
        }
    }
    found.truncate(TROUBLES_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_scrub_and_dead_disks_are_read() {
        let vdev =
            |kind: &str, state: &str, errors: u64| json!({"vdev_type": kind, "state": state, "read_errors": errors});
        let status = json!({"pools": {"zone": {
            "scan_stats": {"function": "SCRUB", "state": "FINISHED", "start_time": 100, "end_time": 160},
            "vdevs": {"zone": vdev("root", "DEGRADED", 0), "mirror-0": vdev("mirror", "DEGRADED", 0),
                "vdb": vdev("disk", "ONLINE", 0), "vdc": vdev("disk", "UNAVAIL", 0), "vdd": vdev("disk", "ONLINE", 3)}
        }}});
        assert_eq!(last(&status, "zone"), Some(160));
        assert_eq!(last(&json!({}), "zone"), None);
        assert_eq!(troubles_in(&status, "zone"), ["disk vdc is UNAVAIL", "disk vdd has had 3 errors"]);
    }
}
