//! When volumes' automatic snapshots are due: at each multiple of the volume's interval on the clock. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// The last multiple of its interval that each volume has had.
#[derive(Debug, Default)]
pub struct Schedule {
    slots: BTreeMap<String, (u64, u64)>,
}

impl Schedule {
    /// The volumes that are due now, each told once. `intervals` in seconds, 0 = never. A volume seen for the first time
    /// waits for its next multiple.
    pub fn due(&mut self, intervals: &BTreeMap<String, u64>, now_s: u64) -> Vec<String> {
        self.slots.retain(|volume, _| intervals.contains_key(volume));
        let mut due = Vec::new();
        for (volume, interval_s) in intervals.iter().filter(|(_, i)| **i > 0) {
            let slot = now_s / interval_s;
            let (interval_before, slot_before) = *self.slots.get(volume).unwrap_or(&(*interval_s, slot));
            if interval_before == *interval_s && slot > slot_before {
                due.push(volume.clone());
            }
            self.slots.insert(volume.clone(), (*interval_s, slot));
        }
        due
    }

    /// How long until the next volume is due.
    pub fn until_next(&self, now_s: u64) -> Duration {
        let next =
            self.slots.values().filter_map(|(interval_s, slot)| slot.checked_add(1)?.checked_mul(*interval_s)).min();
        next.map_or(Duration::MAX, |at| Duration::from_secs(at.saturating_sub(now_s).max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_multiple_of_an_interval_is_due_once_and_a_change_of_it_begins_anew() {
        let with = |s: u64| BTreeMap::from([("a".to_owned(), s), ("never".to_owned(), 0)]);
        let mut schedule = Schedule::default();
        assert!(schedule.due(&with(10), 1005).is_empty(), "the first sight is not due");
        assert_eq!(schedule.until_next(1005), Duration::from_secs(5));
        assert_eq!(schedule.due(&with(10), 1010), ["a"]);
        assert!(schedule.due(&with(10), 1019).is_empty());
        assert_eq!(schedule.due(&with(10), 1055), ["a"], "what was missed is taken once");
        assert!(schedule.due(&with(600), 1199).is_empty());
        assert_eq!(schedule.due(&with(600), 1200), ["a"]);
        assert!(schedule.due(&BTreeMap::new(), 9000).is_empty());
        assert_eq!(schedule.until_next(9000), Duration::MAX);
    }
}
