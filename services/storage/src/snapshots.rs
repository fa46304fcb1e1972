//! Snapshots: each `snapshot` resource is a snapshot of a volume's dataset. The schedule only creates and deletes resources;
//! one reconciler makes and destroys.
//!
//! Must never: destroy a snapshot without this service's mark, or the snapshot of anything but a volume.

use crate::run::{Cause, Runner};
use crate::volumes::Pass;
use crate::zfs::{self, Dataset, Snap};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use zone::client::Client;
use zone::volume::{Snapshot, SnapshotSpec, SnapshotStatus, Volume};
use zone::{ApiError, ErrorKind, Resource, VolumeName};

/// The newest automatic snapshots of a volume, all kept.
const KEEP_NEWEST: usize = 12;
/// Of older ones, the newest of each period, for this many periods: seconds and how many.
const LADDER: [(u64, usize); 3] = [(3600, 48), (86_400, 30), (30 * 86_400, 12)];

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
    /// Creates a resource for each volume of `due` that was written to since its last snapshot, and deletes those that the
    /// ladder does not keep.
    ///
    /// # Errors
    /// When the state engine cannot be asked.
    pub async fn schedule(&self, pass: &Pass, due: &[String], now_s: u64) -> Result<(), ApiError> {
        let stamp = Timestamp::from_second(i64::try_from(now_s).unwrap_or(0)).unwrap_or_default();
        let name = format!("auto-{}", stamp.strftime("%Y%m%d-%H%M%S"));
        for volume in due.iter().filter(|v| pass.datasets.get(*v).is_some_and(|d| d.written > 0)) {
            let spec = SnapshotSpec { volume: VolumeName::new(volume), automatic: true };
            match self.zone.create::<Snapshot>(&format!("{volume}@{name}"), &spec).await {
                Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                _ => {}
            }
        }
        let mut times: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
        for snapshot in self.zone.list::<Snapshot>().await?.items {
            if snapshot.spec.automatic && snapshot.status.ready && due.contains(&snapshot.spec.volume.0) {
                let taken_s = snapshot.status.taken_ns / 1_000_000_000;
                times.entry(snapshot.spec.volume.0).or_default().push((taken_s, snapshot.meta.name));
            }
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
    pub async fn reconcile(&self, pass: &Pass, refresh: bool) -> anyhow::Result<bool> {
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
        for (volume, dataset) in &pass.datasets {
            let wanted = wanted.remove(volume).unwrap_or_default();
            let former = pass.former.get(volume).map(Vec::as_slice).unwrap_or_default();
            again |= self.reconcile_volume(volume, dataset, former, &wanted, refresh).await?;
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
        former: &[Dataset],
        wanted: &[Resource<Snapshot>],
        refresh: bool,
    ) -> anyhow::Result<bool> {
        // Without a resource nothing is asked of the pool but at the regular refresh: listing costs.
        if wanted.iter().all(|s| s.status.ready) && !refresh && wanted.is_empty() {
            return Ok(false);
        }
        let all: Vec<&Dataset> = std::iter::once(dataset).chain(former).collect();
        let mut there = self.list(&all).await?;
        let have: BTreeSet<String> = there.iter().map(|s| s.short().to_owned()).collect();
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        let short = |id: &str| parts(id).filter(|(v, _)| *v == volume).map(|(_, n)| n.to_owned());
        let mut changed = false;
        for snapshot in wanted {
            match short(&snapshot.meta.name) {
                None => {
                    let text = "its name must be VOLUME@NAME, NAME of at most 40 letters, digits, '_', '.', '-', ':'";
                    errors.insert(snapshot.meta.name.clone(), text.to_owned());
                }
                Some(name) if !have.contains(&name) && !snapshot.status.ready => {
                    changed = true;
                    let name = format!("{}@{name}", dataset.name);
                    if let Err(error) = self.runner.run(&zfs::snapshot(&name, snapshot.spec.automatic)).await {
                        errors.insert(snapshot.meta.name.clone(), error.to_string());
                    }
                }
                Some(_) => {}
            }
        }
        let keep: BTreeSet<String> = wanted.iter().filter_map(|s| short(&s.meta.name)).collect();
        let mut again = false;
        for unwanted in there.iter().filter(|s| s.marked && !keep.contains(s.short())) {
            changed = true;
            again |= self.destroy(&unwanted.name).await;
        }
        if changed {
            there = self.list(&all).await?;
        }
        for snapshot in wanted {
            let found = short(&snapshot.meta.name).and_then(|n| there.iter().find(|s| s.short() == n));
            let status = status_of(found, errors.remove(&snapshot.meta.name));
            let settled =
                SnapshotStatus { used_bytes: snapshot.status.used_bytes, ..status.clone() } == snapshot.status;
            if !settled || refresh {
                self.report(snapshot, status).await?;
            }
        }
        Ok(again)
    }

    /// The snapshots of a volume's datasets.
    async fn list(&self, datasets: &[&Dataset]) -> anyhow::Result<Vec<Snap>> {
        let mut found = Vec::new();
        for dataset in datasets {
            found.extend(zfs::parse_snapshots(&self.runner.json(&zfs::list_snapshots(&dataset.name)).await?));
        }
        Ok(found)
    }

    async fn destroy(&self, name: &str) -> bool {
        let Some(argv) = zfs::destroy_snapshot(name) else { return false };
        match self.runner.run(&argv).await {
            Ok(_) => false,
            // The volume, rolled back, began as this one: it goes with the volume.
            Err(error) if matches!(error.cause(), Cause::NotFound | Cause::HasClones) => false,
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
    let mut periods: [BTreeSet<u64>; LADDER.len()] = Default::default();
    let mut gone = Vec::new();
    for (place, (time_s, name)) in snapshots.into_iter().enumerate() {
        let mut keep = place < KEEP_NEWEST;
        for ((length_s, count), seen) in LADDER.iter().zip(&mut periods) {
            let period = time_s / length_s;
            if !seen.contains(&period) && (keep || seen.len() < *count) {
                seen.insert(period);
                keep = true;
            }
        }
        if !keep {
            gone.push(name);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_800_000_000 / 86_400 * 86_400;

    /// What is left after `days` of a snapshot each ten minutes.
    fn held_after(days: u64) -> Vec<u64> {
        let mut held: Vec<(u64, String)> = Vec::new();
        for i in 0..6 * 24 * days {
            held.push((START + i * 600, format!("s{i:06}")));
            let gone = expired(held.clone());
            held.retain(|(_, n)| !gone.contains(n));
        }
        held.into_iter().map(|(t, _)| t).collect()
    }

    #[test]
    fn the_ladder_keeps_two_hours_then_hours_then_days_and_stays_small() {
        let held = held_after(75);
        let newest = *held.last().unwrap();
        let within = |from: u64, to: u64| held.iter().filter(|t| (from..to).contains(&(newest - **t))).count();
        assert_eq!(within(0, 7200), 12, "each of two hours: {held:?}");
        assert!((44..=48).contains(&within(7200, 49 * 3600)), "one for each of two days' hours");
        assert!((26..=30).contains(&within(49 * 3600, 31 * 86_400)), "one for each of a month's days");
        assert!((1..=3).contains(&within(31 * 86_400, 75 * 86_400)), "one for each month");
        assert!(held.len() < 100, "{}", held.len());
    }

    #[test]
    fn a_volume_with_few_snapshots_keeps_them_all() {
        assert_eq!(expired((0..12).map(|i| (START + i, format!("s{i}"))).collect()), Vec::<String>::new());
    }

    #[test]
    fn names_that_cannot_be_snapshots_are_refused() {
        assert_eq!(parts("vol@auto-1"), Some(("vol", "auto-1")));
        for bad in ["vol", "vol@", "vol@a@b", "vol@a/b", "vol@a b", &format!("v@{}", "x".repeat(41))] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
