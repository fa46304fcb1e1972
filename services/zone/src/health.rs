//! Health checks: what is run in a container to see whether it is well, and what came of it.
//!
//! The agent in the guest runs the checks and says by a record of the log ([`crate::log::Data::Health`]) when the state
//! changes; the rules are Docker's.

use serde::{Deserialize, Serialize};

/// The most results that are kept.
pub const MAX_PROBES: usize = 5;

/// A check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments.
    pub args: Vec<String>,
    /// From one check's end to the next one's start.
    pub interval_ms: u64,
    /// How long one may take.
    pub timeout_ms: u64,
    /// How long after its start the container may fail without counting.
    pub start_period_ms: u64,
    /// The interval during that time, until the first success.
    pub start_interval_ms: u64,
    /// How many failures in a row make it unhealthy.
    pub retries: u32,
}

/// Where a container with a check stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// No check has succeeded yet, and not enough have failed.
    #[default]
    Starting,
    /// The last check succeeded, or not enough have failed since.
    Healthy,
    /// Too many have failed in a row.
    Unhealthy,
}

impl HealthState {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What is known of a container's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Where it stands.
    pub state: HealthState,
    /// Failures since the last success.
    pub failing_streak: u32,
    /// The last results, at most [`MAX_PROBES`], the oldest first.
    #[serde(default)]
    pub log: Vec<Probe>,
}

/// One check's result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Nanoseconds since the Unix epoch.
    pub start_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub end_ns: u64,
    /// 0 is healthy; -1 when it took too long or could not be run.
    pub exit_code: i32,
    /// What it wrote, cut.
    pub output: String,
}

impl Health {
    /// Takes a result in. Says whether the state has changed. `since_start_ms`: how long after the container's start the check
    /// began.
    pub fn take(&mut self, check: &HealthCheck, probe: Probe, since_start_ms: u64) -> bool {
        let before = self.state;
        let well = probe.exit_code == 0;
        self.log.push(probe);
        while self.log.len() > MAX_PROBES {
            self.log.remove(0);
        }
        if well {
            self.failing_streak = 0;
            self.state = HealthState::Healthy;
        } else if before != HealthState::Starting || since_start_ms >= check.start_period_ms {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.state = HealthState::Unhealthy;
            }
        }
        self.state != before
    }

    /// How long to wait before the next check.
    #[must_use]
    pub fn pause_ms(&self, check: &HealthCheck, since_start_ms: u64) -> u64 {
        if self.state == HealthState::Starting && since_start_ms < check.start_period_ms {
            check.start_interval_ms
        } else {
            check.interval_ms
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(exit_code: i32) -> Probe {
        Probe { exit_code, ..Probe::default() }
    }

    #[test]
    fn the_states_follow_each_other_as_dockers_do() {
        let check = HealthCheck { retries: 2, start_period_ms: 1000, ..HealthCheck::default() };
        let mut health = Health::default();
        for (at, code, changed, state, streak) in [
            // Failures within the start period do not count, until the first success.
            (10, 1, false, HealthState::Starting, 0),
            (20, 1, false, HealthState::Starting, 0),
            (30, 0, true, HealthState::Healthy, 0),
            (40, 1, false, HealthState::Healthy, 1),
            (50, -1, true, HealthState::Unhealthy, 2),
            (60, 7, false, HealthState::Unhealthy, 3),
            (2000, 0, true, HealthState::Healthy, 0),
        ] {
            assert_eq!(
                (health.take(&check, probe(code), at), health.state, health.failing_streak),
                (changed, state, streak),
                "at {at}"
            );
        }
        assert_eq!(health.log.iter().map(|p| p.exit_code).collect::<Vec<_>>(), [0, 1, -1, 7, 0]);
        let mut late = Health::default();
        assert!(!late.take(&check, probe(1), 1000) && late.take(&check, probe(1), 1100));
    }

    #[test]
    fn checks_are_closer_together_at_first() {
        let check =
            HealthCheck { start_period_ms: 1000, start_interval_ms: 5, interval_ms: 30, ..HealthCheck::default() };
        let mut health = Health::default();
        assert_eq!((health.pause_ms(&check, 0), health.pause_ms(&check, 1000)), (5, 30));
        health.take(&check, probe(0), 1);
        assert_eq!(health.pause_ms(&check, 2), 30);
    }
}
