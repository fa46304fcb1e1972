//! Token buckets: how fast a device may be used, in operations and bytes.
//!
//! A bucket holds at most a second's worth. What is done is paid afterwards and may leave a debt, since its size is known only then;
//! nothing is begun while there is one. So nothing larger than the bucket is refused, and nothing is done faster over time.

use std::time::{Duration, Instant};
use zone::bundle::Rate;

const NANOS: u128 = 1_000_000_000;

/// One limit, in units of a billionth token so that no time is lost to rounding.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u64,
    /// Billionths; negative is debt.
    filled: i128,
}

impl Bucket {
    fn new(per_second: u64) -> Option<Self> {
        (per_second > 0).then(|| Self { per_second, filled: i128::from(per_second) * NANOS as i128 })
    }

    fn fill(&mut self, time: Duration) {
        let more = time.as_nanos().saturating_mul(u128::from(self.per_second));
        let full = i128::from(self.per_second) * NANOS as i128;
        self.filled = self.filled.saturating_add(i128::try_from(more).unwrap_or(i128::MAX)).min(full);
    }

    fn take(&mut self, tokens: u64) {
        self.filled = self.filled.saturating_sub(i128::from(tokens) * NANOS as i128);
    }

    /// How long until the debt is paid.
    fn wait(&self) -> Duration {
        let debt = u128::try_from(-self.filled).unwrap_or(0);
        let nanos = debt.div_ceil(u128::from(self.per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The limits of one direction.
#[derive(Clone, Debug)]
pub struct Limiter {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    filled_at: Option<Instant>,
}

impl Limiter {
    /// Full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            operations: Bucket::new(rate.operations_per_second),
            bytes: Bucket::new(rate.bytes_per_second),
            filled_at: None,
        }
    }

    /// When the next operation may begin; none means now.
    pub fn blocked_until(&mut self) -> Option<Instant> {
        // Without a limit, not even the clock is asked.
        if self.operations.is_none() && self.bytes.is_none() {
            return None;
        }
        self.blocked_at(Instant::now())
    }

    fn blocked_at(&mut self, now: Instant) -> Option<Instant> {
        let since = self.filled_at.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let buckets = [&mut self.operations, &mut self.bytes];
        let wait = buckets.into_iter().flatten().map(|bucket| {
            bucket.fill(since);
            bucket.wait()
        });
        wait.max().filter(|wait| !wait.is_zero()).and_then(|wait| now.checked_add(wait))
    }

    /// An operation of this many bytes was done.
    pub fn done(&mut self, bytes: u64) {
        if let Some(operations) = &mut self.operations {
            operations.take(1);
        }
        if let Some(all) = &mut self.bytes {
            all.take(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(operations_per_second: u64, bytes_per_second: u64) -> Rate {
        Rate { operations_per_second, bytes_per_second }
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut limiter = Limiter::new(Rate::default());
        limiter.done(u64::MAX);
        assert_eq!(limiter.blocked_until(), None);
    }

    #[test]
    fn a_large_operation_is_done_at_once_and_paid_afterwards() {
        let mut limiter = Limiter::new(rate(0, 1000));
        let start = Instant::now();
        assert_eq!(limiter.blocked_at(start), None);
        limiter.done(5000);
        assert_eq!(limiter.blocked_at(start), Some(start + Duration::from_secs(4)));
        assert_eq!(limiter.blocked_at(start + Duration::from_secs(4)), None);
    }

    proptest! {
        /// Over any time, at most a bucket, a rate's worth, and one operation more are let through; and waiting as told is enough.
        #[test]
        fn never_faster_than_the_rate(
            per_second in 1u64..1_000_000,
            steps in proptest::collection::vec((0u64..3_000_000, 0u64..2_000_000_000), 1..200),
        ) {
            let mut limiter = Limiter::new(rate(0, per_second));
            let start = Instant::now();
            let (mut now, mut total, mut largest) = (start, 0u128, 0u64);
            for (bytes, pause) in steps {
                now += Duration::from_nanos(pause);
                if let Some(until) = limiter.blocked_at(now) {
                    prop_assert!(until > now);
                    prop_assert_eq!(limiter.blocked_at(until), None);
                    now = until;
                }
                limiter.done(bytes);
                total += u128::from(bytes);
                largest = largest.max(bytes);
                let allowed = u128::from(per_second) * (now - start).as_nanos() / NANOS + u128::from(per_second) + 1;
                prop_assert!(total <= allowed + u128::from(largest), "{total} in {:?}", now - start);
            }
        }
    }
}
