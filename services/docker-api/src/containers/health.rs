//! Health checks: the image's and the request's become one, and what came of them is shown as Docker shows it.

use super::merge::strings;
use crate::errors::{Failure, Result};
use crate::names;
use crate::state::Container;
use serde_json::{Map, Value, json};
use zone::health::{Health, HealthCheck};

const NANOS_PER_MS: i64 = 1_000_000;
const DEFAULT_INTERVAL_MS: u64 = 30_000;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const DEFAULT_START_INTERVAL_MS: u64 = 5_000;
const DEFAULT_RETRIES: u32 = 3;
/// Docker's name, what it is called in errors.
const DURATIONS: [&str; 4] = ["Interval", "Timeout", "StartPeriod", "StartInterval"];

/// The image's check with what the request changes about it; null when neither has one.
///
/// # Errors
/// 400 for durations that are too short and numbers below zero.
pub fn merge(image: &Value, request: &Value) -> Result<Value> {
    for name in DURATIONS {
        let value = request[name].as_i64().unwrap_or_default();
        if value != 0 && value < NANOS_PER_MS {
            return Err(Failure::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if request["Retries"].as_i64().unwrap_or_default() < 0 {
        return Err(Failure::invalid("Retries in Healthcheck cannot be negative"));
    }
    if request.is_null() || image.is_null() {
        return Ok(if request.is_null() { image.clone() } else { request.clone() });
    }
    let mut merged = image.as_object().cloned().unwrap_or_default();
    for (key, value) in request.as_object().into_iter().flatten() {
        let absent = value.is_null() || *value == 0 || value.as_array().is_some_and(Vec::is_empty);
        if !absent {
            merged.insert(key.clone(), value.clone());
        }
    }
    Ok(Value::Object(merged))
}

/// The check of a merged configuration; none when it has none or switches it off. `shell` is the image's.
#[must_use]
pub fn check(config: &Value, shell: &Value) -> Option<HealthCheck> {
    let test = strings(&config["Test"]).unwrap_or_default();
    let (kind, rest) = test.split_first()?;
    let args = match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => {
            let shell = strings(shell).filter(|s| !s.is_empty()).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
            shell.into_iter().chain(rest.iter().cloned()).collect()
        }
        _ => return None,
    };
    let ms = |name: &str, default: u64| match config[name].as_i64().unwrap_or_default() {
        1.. => u64::try_from(config[name].as_i64().unwrap_or_default() / NANOS_PER_MS).unwrap_or(default).max(1),
        _ => default,
    };
    let retries = config["Retries"].as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    (!args.is_empty()).then(|| HealthCheck {
        args,
        interval_ms: ms("Interval", DEFAULT_INTERVAL_MS),
        timeout_ms: ms("Timeout", DEFAULT_TIMEOUT_MS),
        start_period_ms: ms("StartPeriod", 0),
        start_interval_ms: ms("StartInterval", DEFAULT_START_INTERVAL_MS),
        retries: retries.unwrap_or(DEFAULT_RETRIES),
    })
}

/// Docker's word for where a container stands; `none` without a check.
#[must_use]
pub fn word(container: &Container) -> &'static str {
    match (&container.spec().health, container.status().health) {
        (None, _) => "none",
        (Some(_), health) => health.unwrap_or_default().state.as_str(),
    }
}

/// What stands behind the uptime in a list; empty without a check.
#[must_use]
pub fn suffix(container: &Container) -> String {
    match word(container) {
        "none" => String::new(),
        "starting" => " (health: starting)".into(),
        word => format!(" ({word})"),
    }
}

/// Docker's `State.Health` from what the state engine knows: the results up to the last change of the state.
#[must_use]
pub fn json(health: &Health) -> Value {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|p| {
            let mut one = Map::new();
            one.insert("Start".into(), json!(names::time(p.start_ns)));
            one.insert("End".into(), json!(names::time(p.end_ns)));
            one.insert("ExitCode".into(), json!(p.exit_code));
            one.insert("Output".into(), json!(p.output));
            Value::Object(one)
        })
        .collect();
    json!({"Status": health.state.as_str(), "FailingStreak": health.failing_streak, "Log": log})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_changes_only_what_it_names() {
        let image = json!({"Test": ["CMD-SHELL", "curl localhost"], "Interval": 5_000_000_000_u64, "Retries": 7});
        let merged = merge(&image, &json!({"Interval": 1_000_000_000, "Retries": 0})).unwrap();
        let check = check(&merged, &Value::Null).unwrap();
        assert_eq!(check.args, ["/bin/sh", "-c", "curl localhost"]);
        assert_eq!((check.interval_ms, check.timeout_ms, check.start_period_ms, check.retries), (1000, 30_000, 0, 7));
    }

    #[test]
    fn none_switches_the_images_check_off() {
        let image = json!({"Test": ["CMD", "true"]});
        assert!(check(&merge(&image, &Value::Null).unwrap(), &Value::Null).is_some());
        assert_eq!(check(&merge(&image, &json!({"Test": ["NONE"]})).unwrap(), &Value::Null), None);
        assert_eq!(check(&merge(&Value::Null, &Value::Null).unwrap(), &Value::Null), None);
    }

    #[test]
    fn what_cannot_be_is_refused_in_dockers_words() {
        for (request, words) in [
            (json!({"Interval": 10}), "Interval in Healthcheck cannot be less than 1ms"),
            (json!({"StartPeriod": -1}), "StartPeriod in Healthcheck cannot be less than 1ms"),
            (json!({"Retries": -1}), "Retries in Healthcheck cannot be negative"),
        ] {
            assert_eq!(merge(&Value::Null, &request).unwrap_err().message, words);
        }
    }
}
