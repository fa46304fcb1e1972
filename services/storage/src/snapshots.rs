//! Snapshots: each `snapshot` resource is a snapshot of a volume's dataset. The schedule only creates and deletes resources;
//! one reconciler makes and destroys.
//!
//! Must never: destroy a snapshot without this service's mark, or the snapshot of anything but a volume.

use crate::run::{Cause, Runner};
use crate::zfs::{self, Dataset, Snap};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use zone::client::Client;
use zone::volume::{Snapshot, SnapshotSpec, SnapshotStatus, Volume};
use zone::{ApiError, ErrorKind, Resource, VolumeName};

/// The newest automatic snapshots of a volume, all kept.
const KEEP_NEWEST: usize = 12;
/// Of older ones, one for each of this many hours.
const KEEP_HOURS: usize = 48;

/// Keeps snapshots as resources say.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Runs the tools.
    pub runner: Runner,
    /// The state engine.
    pub zone: Client,
}

/// `VOLUME@NAME` in its parts, when it can be a snapshot.
fn parts(id: &str) -> Option<(&str, &str)> {
    let (volume, name) = id.split_once('@')?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b':');
    (!name.is_empty() && name.len() <= 40 && name.bytes().all(legal)).then_some((volume, name))
}

impl Snapshots {
    /// Creates a resource for each volume that was written to since its last snapshot, and deletes those that the ladder
    /// does not keep.
    ///
    /// # Errors
    /// When the state engine cannot be asked.
    pub async fn schedule(&self, datasets: &BTreeMap<String, Dataset>, now_s: u64) -> Result<(), ApiError> {
        let stamp = Timestamp::from_second(i64::try_from(now_s).unwrap_or(0)).unwrap_or_default();
        let name = format!("auto-{}", stamp.strftime("%Y%m%d-%H%M%S"));
        for (volume, _) in datasets.iter().filter(|(_, d)| d.written > 0) {
            let spec = SnapshotSpec { volume: VolumeName::new(volume), automatic: true };
            match self.zone.create::<Snapshot>(&format!("{volume}@{name}"), &spec).await {
                Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                _ => {}
            }
        }
        let mut times: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
        for snapshot in
            self.zone.list::<Snapshot>().await?.items.into_iter().filter(|s| s.spec.automatic && s.status.ready)
        {
            times
                .entry(snapshot.spec.volume.0)
                .or_default()
                .push((snapshot.status.taken_ns / 1_000_000_000, snapshot.meta.name));
        }
        for expired in times.into_values().flat_map(expired) {
            match self.zone.delete::<Snapshot>(&expired).await {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// One pass: makes what is wanted, destroys what is not, writes statuses. True when something must be tried again.
    ///
    /// # Errors
    /// When the state engine cannot be asked.
    pub async fn reconcile(&self, datasets: &BTreeMap<String, Dataset>, refresh: bool) -> anyhow::Result<bool> {
        let volumes = crate::volumes::names(&self.zone.list::<Volume>().await?.items);
        let mut wanted: BTreeMap<String, Vec<Resource<Snapshot>>> = BTreeMap::new();
        for snapshot in self.zone.list::<Snapshot>().await?.items {
            if volumes.contains(snapshot.spec.volume.as_str()) {
                wanted.entry(snapshot.spec.volume.0.clone()).or_default().push(snapshot);
            } else {
                // The volume is gone, and its snapshots with it.
                ignore_missing(self.zone.delete::<Snapshot>(&snapshot.meta.name).await)?;
            }
        }
        let mut again = false;
        for (volume, dataset) in datasets {
            let wanted = wanted.remove(volume).unwrap_or_default();
            again |= self.reconcile_volume(volume, dataset, &wanted, refresh).await?;
        }
        for snapshot in wanted.into_values().flatten() {
            let error = Some("its volume is not ready".to_owned());
            self.report(&snapshot, SnapshotStatus { error, ..SnapshotStatus::default() }).await?;
            again = true;
        }
        Ok(again)
    }

    async fn reconcile_volume(
        &self,
        volume: &str,
        dataset: &Dataset,
        wanted: &[Resource<Snapshot>],
        refresh: bool,
    ) -> anyhow::Result<bool> {
        // Without a resource nothing is asked of the pool but at the regular refresh: listing costs.
        if wanted.iter().all(|s| s.status.ready) && !refresh && wanted.is_empty() {
            return Ok(false);
        }
        let mut there = self.list(dataset).await?;
        let have: BTreeSet<String> = there.iter().map(|s| s.name.clone()).collect();
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        let full = |id: &str| parts(id).filter(|(v, _)| *v == volume).map(|(_, n)| format!("{}@{n}", dataset.name));
        let mut changed = false;
        for snapshot in wanted {
            match full(&snapshot.meta.name) {
                None => {
                    let text = "its name must be VOLUME@NAME, NAME of at most 40 letters, digits, '_', '.', '-', ':'";
                    errors.insert(snapshot.meta.name.clone(), text.to_owned());
                }
                Some(name) if !have.contains(&name) && !snapshot.status.ready => {
                    changed = true;
                    if let Err(error) = self.runner.run(&zfs::snapshot(&name, snapshot.spec.automatic)).await {
                        errors.insert(snapshot.meta.name.clone(), error.to_string());
                    }
                }
                Some(_) => {}
            }
        }
        let keep: BTreeSet<String> = wanted.iter().filter_map(|s| full(&s.meta.name)).collect();
        let mut again = false;
        for unwanted in there.iter().filter(|s| s.marked && !keep.contains(&s.name)) {
            changed = true;
            again |= self.destroy(&unwanted.name).await;
        }
        if changed {
            there = self.list(dataset).await?;
        }
        for snapshot in wanted {
            let found = full(&snapshot.meta.name).and_then(|n| there.iter().find(|s| s.name == n));
            let status = status_of(found, errors.remove(&snapshot.meta.name));
            let settled =
                SnapshotStatus { used_bytes: snapshot.status.used_bytes, ..status.clone() } == snapshot.status;
            if !settled || refresh {
                self.report(snapshot, status).await?;
            }
        }
        Ok(again)
    }

    async fn list(&self, dataset: &Dataset) -> anyhow::Result<Vec<Snap>> {
        Ok(zfs::parse_snapshots(&self.runner.json(&zfs::list_snapshots(&dataset.name)).await?))
    }

    async fn destroy(&self, name: &str) -> bool {
        let Some(argv) = zfs::destroy_snapshot(name) else { return false };
        match self.runner.run(&argv).await {
            Ok(_) => false,
            Err(error) if error.cause() == Cause::NotFound => false,
            Err(error) => {
                tracing::warn!(snapshot = name, %error, "cannot destroy a snapshot yet");
                true
            }
        }
    }

    async fn report(&self, snapshot: &Resource<Snapshot>, status: SnapshotStatus) -> Result<(), ApiError> {
        if status == snapshot.status {
            return Ok(());
        }
        match self.zone.update_status(snapshot, &status).await {
            Err(error) if !matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => Err(error),
            _ => Ok(()),
        }
    }
}

fn ignore_missing(result: Result<(), ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn status_of(found: Option<&Snap>, error: Option<String>) -> SnapshotStatus {
    match found {
        Some(snap) => SnapshotStatus {
            ready: true,
            error: None,
            taken_ns: snap.creation_s * 1_000_000_000,
            used_bytes: snap.used,
        },
        None => SnapshotStatus {
            error: error.or_else(|| Some("the snapshot is not there any more".to_owned())),
            ..SnapshotStatus::default()
        },
    }
}

/// Those of a volume's automatic snapshots (seconds, name) that the ladder does not keep.
fn expired(mut snapshots: Vec<(u64, String)>) -> Vec<String> {
    snapshots.sort_by(|a, b| b.cmp(a));
    let mut hours: BTreeSet<u64> = BTreeSet::new();
    let mut gone = Vec::new();
    for (place, (time_s, name)) in snapshots.into_iter().enumerate() {
        let hour = time_s / 3600;
        let keep = place < KEEP_NEWEST || (hours.len() < KEEP_HOURS && !hours.contains(&hour));
        if keep {
            hours.insert(hour);
        } else {
            gone.push(name);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_keeps_twelve_and_then_one_an_hour_for_two_days() {
        let start = 1_800_000_000_u64 / 3600 * 3600;
        let all: Vec<_> = (0..6 * 24 * 5).map(|i| (start + i * 600, format!("s{i:04}"))).collect();
        let gone = expired(all.clone());
        let kept: Vec<u64> = all.iter().filter(|(_, n)| !gone.contains(n)).map(|(t, _)| *t).collect();
        // Twelve at the top cover two hours; the other 46 hours have one each.
        assert_eq!(kept.len(), 12 + 46);
        let newest = all.last().unwrap().0;
        assert!(kept.iter().rev().take(12).zip(0..).all(|(t, i)| *t == newest - i * 600));
        assert!(kept[..46].windows(2).all(|w| w[1] - w[0] == 3600));
    }

    #[test]
    fn the_ladder_is_stable_when_it_is_applied_each_ten_minutes() {
        let mut held: Vec<(u64, String)> = Vec::new();
        for i in 0..6 * 24 * 4 {
            held.push((1_800_000_000 + i * 600, format!("s{i:04}")));
            let gone = expired(held.clone());
            held.retain(|(_, n)| !gone.contains(n));
        }
        assert!((55..=60).contains(&held.len()), "{}", held.len());
        let span = held.last().unwrap().0 - held[0].0;
        assert!((46 * 3600..=49 * 3600).contains(&span), "{span}");
    }

    #[test]
    fn names_that_cannot_be_snapshots_are_refused() {
        assert_eq!(parts("vol@auto-1"), Some(("vol", "auto-1")));
        for bad in ["vol", "vol@", "vol@a@b", "vol@a/b", "vol@a b", &format!("v@{}", "x".repeat(41))] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
