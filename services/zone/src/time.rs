//! Time as the zone stores it: nanoseconds since the Unix epoch, in a `u64` (lasts until the year 2554).

use std::time::{SystemTime, UNIX_EPOCH};

/// The start of November 2026, seconds since the Unix epoch: this was written later.
const EARLIEST_S: u64 = 1_793_491_200;

/// Seconds since the Unix epoch, but never so few that the clock must be wrong.
#[must_use]
pub fn believable_now_s() -> u64 {
    (now_ns() / 1_000_000_000).max(EARLIEST_S)
}

/// Now, in nanoseconds since the Unix epoch; 0 if the clock stands before it.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}
