//! Volumes: each `volume` resource is a dataset below the pool's `volumes`, and only those are there.
//!
//! [`plan`] compares and decides without running anything; [`Volumes::reconcile`] carries it out and writes the statuses.
//! Must never: destroy a dataset that does not carry this service's mark.

use crate::options::{Wanted, wanted};
use crate::rollback;
use crate::run::{Cause, RunError, Runner};
use crate::zfs::{self, Dataset};
use crate::{argv, options, pool};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zone::client::Client;
use zone::volume::{RolledBack, Volume, VolumeAccess, VolumeSpec, VolumeStatus};
use zone::volume::{Snapshot, SnapshotSpec};
use zone::{ApiError, ErrorKind, Resource, VolumeName};

/// The user property that says that a block device has got its file system.
pub const FORMATTED: &str = "kraud:formatted";
/// udev makes the link in milliseconds; on a loaded machine it takes seconds.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);
/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make it.
    Create(String, Wanted),
    /// Change the quota.
    Quota(String, u64),
    /// Make the block device larger.
    Grow(String, u64),
    /// Mount it.
    Mount(String),
    /// Nobody wants it any more.
    Destroy(String),
    /// It cannot be; why.
    Refuse(String, String),
}

/// Compares what is wanted with the datasets below `parent`.
pub fn plan(parent: &str, volumes: &BTreeMap<String, VolumeSpec>, datasets: &[Dataset]) -> Vec<Action> {
    let below = |d: &Dataset| d.name.strip_prefix(parent)?.strip_prefix('/').map(str::to_owned);
    let existing: BTreeMap<String, &Dataset> = datasets.iter().filter_map(|d| Some((below(d)?, d))).collect();
    let mut actions = Vec::new();
    for (name, spec) in volumes {
        let refuse = |why: &str| Action::Refuse(name.clone(), why.to_owned());
        match (wanted(name, spec), existing.get(name)) {
            (Err(why), _) => actions.push(Action::Refuse(name.clone(), why)),
            (Ok(wanted), None) => actions.push(Action::Create(name.clone(), wanted)),
            (Ok(_), Some(d)) if d.owner.as_deref() != Some(name) => {
                actions.push(refuse("a dataset of this name is there that no volume made; rename or remove it"));
            }
            (Ok(Wanted::Files { quota }), Some(d)) if !d.is_block => {
                if d.quota != quota {
                    actions.push(Action::Quota(name.clone(), quota));
                }
                if !d.mounted {
                    actions.push(Action::Mount(name.clone()));
                }
            }
            (Ok(Wanted::Block { size }), Some(d)) if d.is_block => {
                if size > d.volsize {
                    actions.push(Action::Grow(name.clone(), size));
                } else if size < d.volsize {
                    actions.push(refuse("a block device cannot shrink; make a new volume and copy"));
                }
            }
            (Ok(_), Some(_)) => {
                actions.push(refuse("a volume cannot change between files and block device; make a new one"));
            }
        }
    }
    // Former and coming datasets of a volume go with it.
    let ours = |(name, d): (&String, &&Dataset)| {
        let volume = rollback::part_of(name).unwrap_or(name);
        (d.owner.as_deref() == Some(volume)).then(|| volume.to_owned())
    };
    let unwanted: BTreeSet<String> = existing.iter().filter_map(ours).filter(|v| !volumes.contains_key(v)).collect();
    actions.extend(unwanted.into_iter().map(Action::Destroy));
    actions
}

/// What a pass over the volumes found.
#[derive(Debug, Default)]
pub struct Pass {
    /// The datasets of volumes, by volume.
    pub datasets: BTreeMap<String, Dataset>,
    /// What volumes were before they were rolled back, by volume, the newest first.
    pub former: BTreeMap<String, Vec<Dataset>>,
    /// How often each volume's snapshots are taken, seconds.
    pub intervals: BTreeMap<String, u64>,
    /// Something must be tried again soon.
    pub again: bool,
}

/// Carries out what volumes ask for.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// Runs the tools.
    pub runner: Runner,
    /// The state engine.
    pub zone: Client,
    /// The dataset of all volumes, `zone/volumes`.
    pub parent: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Where block devices appear, `/dev/zvol`.
    pub devices: PathBuf,
}

impl Volumes {
    /// One pass. With `refresh`, the bytes used are written too.
    ///
    /// # Errors
    /// When the state engine or the pool cannot be asked; a single volume's trouble stands in its status.
    pub async fn reconcile(&self, refresh: bool) -> anyhow::Result<Pass> {
        let resources = self.zone.list::<Volume>().await?.items;
        let wanted = resources.iter().map(|r| (r.meta.name.clone(), r.spec.clone())).collect();
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        let mut pass = Pass::default();
        let mut before = self.datasets().await?;
        let mut rolled: BTreeMap<String, RolledBack> = BTreeMap::new();
        for resource in &resources {
            let name = &resource.meta.name;
            if rollback::resume(&self.runner, &self.dataset(name), &before).await? {
                before = self.datasets().await?;
            }
            if let Some(outcome) = self.roll_back(resource, &before).await? {
                rolled.insert(name.clone(), outcome);
                before = self.datasets().await?;
            }
        }
        for action in plan(&self.parent, &wanted, &before) {
            pass.again |= self.carry_out(action, &mut errors).await;
        }
        self.sort(self.datasets().await?, &mut pass);
        for resource in &resources {
            let name = &resource.meta.name;
            pass.intervals.insert(name.clone(), options::interval_s(&resource.spec).unwrap_or_default());
            let (error, rolled) = (errors.remove(name), rolled.remove(name));
            pass.again |= self.report(resource, pass.datasets.get(name), error, rolled, refresh).await?;
        }
        Ok(pass)
    }

    fn dataset(&self, volume: &str) -> String {
        format!("{}/{volume}", self.parent)
    }

    fn sort(&self, datasets: Vec<Dataset>, pass: &mut Pass) {
        for dataset in datasets {
            let Some(name) = dataset.name.strip_prefix(&self.parent).and_then(|n| n.strip_prefix('/')) else {
                continue;
            };
            let Some(owner) = dataset.owner.clone() else { continue };
            if name == owner {
                pass.datasets.insert(owner, dataset);
            } else if rollback::part_of(name) == Some(owner.as_str()) && rollback::number(name).is_some() {
                pass.former.entry(owner).or_default().push(dataset);
            }
        }
        for former in pass.former.values_mut() {
            former.sort_by_key(|d| std::cmp::Reverse(rollback::number(&d.name)));
        }
    }

    /// Carries out a request to roll back that has not been; its outcome.
    async fn roll_back(&self, resource: &Resource<Volume>, all: &[Dataset]) -> anyhow::Result<Option<RolledBack>> {
        let done = resource.status.rolled_back.as_ref().map_or(0, |r| r.request);
        let Some(wish) = resource.spec.rollback.as_ref().filter(|r| r.request > done) else { return Ok(None) };
        let volume = &resource.meta.name;
        let mut parts = Pass::default();
        self.sort(all.to_vec(), &mut parts);
        let Some(current) = parts.datasets.get(volume) else { return Ok(None) };
        let former = parts.former.remove(volume).unwrap_or_default();
        let mut found = None;
        for dataset in std::iter::once(current).chain(&former) {
            let there = zfs::parse_snapshots(&self.runner.json(&zfs::list_snapshots(&dataset.name)).await?);
            found = found.or_else(|| there.into_iter().find(|s| s.short() == wish.snapshot));
        }
        let next = former.iter().filter_map(|d| rollback::number(&d.name)).max().unwrap_or(0) + 1;
        let outcome = match found {
            None => Err(format!("volume {volume} has no snapshot {}", wish.snapshot)),
            Some(snapshot) => rollback::run(&self.runner, current, volume, &snapshot.name, next).await,
        };
        match &outcome {
            Ok(guard) => {
                tracing::info!(volume, snapshot = wish.snapshot, guard, "rolled a volume back");
                let spec = SnapshotSpec { volume: VolumeName::new(volume), automatic: false };
                match self.zone.create::<Snapshot>(&format!("{volume}@{guard}"), &spec).await {
                    Err(error) if error.kind != ErrorKind::Conflict => return Err(error.into()),
                    _ => {}
                }
            }
            Err(error) => tracing::warn!(volume, snapshot = wish.snapshot, error, "a volume was not rolled back"),
        }
        Ok(Some(RolledBack { request: wish.request, error: outcome.err() }))
    }

    async fn datasets(&self) -> Result<Vec<Dataset>, RunError> {
        Ok(zfs::parse_datasets(&self.runner.json(&zfs::list_datasets(&self.parent)).await?))
    }

    /// Does one thing; true when it must be tried again.
    async fn carry_out(&self, action: Action, errors: &mut BTreeMap<String, String>) -> bool {
        let dataset = |name: &str| self.dataset(name);
        let (name, argv) = match action {
            Action::Create(name, Wanted::Files { quota }) => {
                let argv = zfs::create_files(&dataset(&name), &name, quota);
                (name, argv)
            }
            Action::Create(name, Wanted::Block { size }) => {
                let argv = zfs::create_block(&dataset(&name), &name, size);
                (name, argv)
            }
            Action::Quota(name, quota) => {
                let value = if quota == 0 { "none".to_owned() } else { quota.to_string() };
                let argv = zfs::set(&dataset(&name), "refquota", &value);
                (name, argv)
            }
            Action::Grow(name, size) => {
                let argv = zfs::set(&dataset(&name), "volsize", &size.to_string());
                (name, argv)
            }
            Action::Mount(name) => {
                let argv = zfs::mount(&dataset(&name));
                (name, argv)
            }
            Action::Destroy(name) => return self.destroy(&name).await,
            Action::Refuse(name, why) => {
                errors.insert(name, why);
                return false;
            }
        };
        match self.runner.run(&argv).await {
            Ok(_) => {
                tracing::info!(volume = name, command = argv.join(" "), "changed a volume");
                false
            }
            Err(error) => {
                tracing::error!(volume = name, %error, "cannot change a volume");
                let full = "the pool is full; remove images, volumes or snapshots first";
                errors.insert(name, if error.cause() == Cause::Full { full.to_owned() } else { error.to_string() });
                true
            }
        }
    }

    /// Destroys a volume's dataset and those that it was before; a pod that still ends holds it busy for a while.
    async fn destroy(&self, name: &str) -> bool {
        let mut parts = Pass::default();
        match self.datasets().await {
            Ok(all) => self.sort(all, &mut parts),
            Err(error) => {
                tracing::warn!(volume = name, %error, "cannot destroy a volume yet");
                return true;
            }
        }
        // What was made from another goes first.
        let former = parts.former.remove(name).unwrap_or_default();
        for dataset in std::iter::once(self.dataset(name)).chain(former.into_iter().map(|d| d.name)) {
            match self.runner.run(&zfs::destroy_dataset(&dataset)).await {
                Ok(_) => tracing::info!(volume = name, dataset, "destroyed a volume that nobody wants any more"),
                Err(error) if error.cause() == Cause::NotFound => {}
                Err(error) => {
                    tracing::warn!(volume = name, %error, "cannot destroy a volume yet");
                    return true;
                }
            }
        }
        let _ = std::fs::remove_dir(self.mount.join(name));
        false
    }

    /// Writes a volume's status if it changed; true when the volume is not ready and trying again may help.
    async fn report(
        &self,
        resource: &Resource<Volume>,
        dataset: Option<&Dataset>,
        error: Option<String>,
        rolled: Option<RolledBack>,
        refresh: bool,
    ) -> Result<bool, ApiError> {
        let access = match (dataset, &error) {
            (Some(dataset), None) => self.access(&resource.meta.name, dataset).await,
            (_, Some(error)) => Err(error.clone()),
            (None, None) => Err("its dataset is not there".to_owned()),
        };
        let mut status = VolumeStatus {
            ready: access.is_ok(),
            error: access.as_ref().err().cloned(),
            access: access.ok(),
            used_bytes: dataset.map_or(0, |d| d.used),
            rolled_back: rolled.or_else(|| resource.status.rolled_back.clone()),
        };
        let settled = VolumeStatus { used_bytes: resource.status.used_bytes, ..status.clone() } == resource.status;
        if settled && !refresh {
            status.used_bytes = resource.status.used_bytes;
        }
        if status != resource.status {
            match self.zone.update_status(resource, &status).await {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Conflict => return Ok(true),
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(!status.ready && error.is_none())
    }

    async fn access(&self, name: &str, dataset: &Dataset) -> Result<VolumeAccess, String> {
        if !dataset.is_block {
            return match dataset.mounted {
                true => Ok(VolumeAccess::Directory { path: self.mount.join(name) }),
                false => Err("it is not mounted".to_owned()),
            };
        }
        let device = self.devices.join(&dataset.name);
        self.format_once(&dataset.name, &device).await.map_err(|e| format!("{e:#}"))?;
        Ok(VolumeAccess::Block { device })
    }

    /// Gives a new block device a file system. Only once: what a pod writes afterwards is not looked at.
    async fn format_once(&self, dataset: &str, device: &Path) -> anyhow::Result<()> {
        let done = self.runner.run(&argv!["zfs", "get", "-H", "-o", "value", FORMATTED, dataset]).await?;
        wait_for(device).await?;
        if done.starts_with(b"yes") {
            return Ok(());
        }
        if !pool::has_signature(&self.runner, device).await? {
            let device = device.display().to_string();
            self.runner
                .run(&argv![
                    "mke2fs",
                    "-q",
                    "-F",
                    "-t",
                    "ext4",
                    "-m",
                    "0",
                    "-E",
                    "lazy_itable_init=1,lazy_journal_init=1",
                    // It would be read at each mount, block by block.
                    "-O",
                    "^orphan_file",
                    device
                ])
                .await?;
        }
        self.runner.run(&zfs::set(dataset, FORMATTED, "yes")).await?;
        Ok(())
    }
}

/// Waits until udev has made a device's link.
async fn wait_for(device: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    while !device.exists() {
        if began.elapsed() > DEVICE_DEADLINE {
            anyhow::bail!("{} did not appear within {} s", device.display(), DEVICE_DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The names of volumes that are wanted.
pub fn names(resources: &[Resource<Volume>]) -> BTreeSet<String> {
    resources.iter().map(|r| r.meta.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(driver: &str, size: &str) -> VolumeSpec {
        let options =
            if size.is_empty() { BTreeMap::new() } else { BTreeMap::from([("size".to_owned(), size.to_owned())]) };
        VolumeSpec { driver: driver.into(), options, ..VolumeSpec::default() }
    }

    fn dataset(name: &str, owner: Option<&str>) -> Dataset {
        Dataset {
            name: format!("zone/volumes/{name}"),
            owner: owner.map(str::to_owned),
            is_block: false,
            mounted: true,
            used: 0,
            referenced: 0,
            written: 0,
            quota: 0,
            volsize: 0,
        }
    }

    fn planned(volumes: &[(&str, VolumeSpec)], datasets: &[Dataset]) -> Vec<Action> {
        let volumes = volumes.iter().map(|(n, s)| ((*n).to_owned(), s.clone())).collect();
        plan("zone/volumes", &volumes, datasets)
    }

    #[test]
    fn what_is_wanted_is_made_and_what_is_right_is_left_alone() {
        let block = Dataset { is_block: true, volsize: 10 << 30, ..dataset("b", Some("b")) };
        assert_eq!(
            planned(&[("a", spec("local", "")), ("b", spec("lv2", "10G"))], &[dataset("a", Some("a")), block]),
            []
        );
        assert_eq!(
            planned(&[("a", spec("nfs", "1G")), ("b", spec("lv2", ""))], &[]),
            [
                Action::Create("a".into(), Wanted::Files { quota: 1 << 30 }),
                Action::Create("b".into(), Wanted::Block { size: 10 << 30 })
            ]
        );
    }

    #[test]
    fn a_dataset_without_the_mark_is_never_destroyed_nor_used() {
        let strangers = [dataset("mine", None), dataset("copy", Some("other")), dataset("gone", Some("gone"))];
        assert_eq!(planned(&[], &strangers), [Action::Destroy("gone".into())]);
        let former = [dataset("a", Some("a")), dataset("a:1", Some("a")), dataset("gone:2", Some("gone"))];
        assert_eq!(planned(&[("a", spec("local", ""))], &former), [Action::Destroy("gone".into())]);
        assert!(
            matches!(&planned(&[("mine", spec("local", ""))], &strangers[..1])[..], [Action::Refuse(n, _)] if n == "mine")
        );
    }

    #[test]
    fn quotas_change_devices_grow_and_nothing_shrinks_or_changes_its_nature() {
        let block = Dataset { is_block: true, volsize: 10 << 30, ..dataset("a", Some("a")) };
        let files = Dataset { quota: 5, mounted: false, ..dataset("a", Some("a")) };
        assert_eq!(
            planned(&[("a", spec("lv2", "20G"))], std::slice::from_ref(&block)),
            [Action::Grow("a".into(), 20 << 30)]
        );
        assert!(matches!(planned(&[("a", spec("lv2", "1G"))], std::slice::from_ref(&block))[..], [Action::Refuse(..)]));
        assert!(matches!(planned(&[("a", spec("local", ""))], &[block])[..], [Action::Refuse(..)]));
        assert_eq!(
            planned(&[("a", spec("local", ""))], &[files]),
            [Action::Quota("a".into(), 0), Action::Mount("a".into())]
        );
    }
}
