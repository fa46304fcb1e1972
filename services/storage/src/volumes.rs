//! Volumes: each `volume` resource is a dataset below the pool's `volumes`, and only those are there.
//!
//! [`plan`] compares and decides without running anything; [`Volumes::reconcile`] carries it out and writes the statuses.
//! Must never: destroy a dataset that does not carry this service's mark.

use crate::run::{Cause, RunError, Runner};
use crate::zfs::{self, Dataset};
use crate::{argv, pool};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zone::client::Client;
use zone::volume::{Volume, VolumeAccess, VolumeSpec, VolumeStatus};
use zone::{ApiError, ErrorKind, Resource};

/// A block device's size when none is asked for.
const DEFAULT_BLOCK: u64 = 10 << 30;
/// The user property that says that a block device has got its file system.
const FORMATTED: &str = "kraud:formatted";
/// udev makes the link in milliseconds; on a loaded machine it takes seconds.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);
/// ZFS allows 255 bytes with the pool, the parent and a snapshot's name.
const MAX_NAME: usize = 200;

/// What a volume's spec asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Files, at most `quota` bytes (0 = no limit).
    Files {
        /// Bytes.
        quota: u64,
    },
    /// A block device.
    Block {
        /// Bytes.
        size: u64,
    },
}

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

/// What a spec asks for.
///
/// # Errors
/// A sentence for people when it cannot be.
pub fn wanted(name: &str, spec: &VolumeSpec) -> Result<Wanted, String> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.bytes().all(legal) && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !good || name.len() > MAX_NAME {
        return Err(format!(
            "a volume's name must be 1 to {MAX_NAME} letters, digits, '_', '.', '-', and start with a letter or digit"
        ));
    }
    let size = match spec.options.get("size") {
        None => None,
        Some(text) => Some(
            zfs::parse_size(text)
                .ok_or_else(|| format!("the size {text:?} is wrong; write bytes, or 512M, 10G, 1T"))?,
        ),
    };
    match spec.driver.as_str() {
        "" | "local" | "nfs" => Ok(Wanted::Files { quota: size.unwrap_or(0) }),
        // volblocksize is 16 KiB; a device's size must be a multiple of it.
        "lv2" => Ok(Wanted::Block { size: size.unwrap_or(DEFAULT_BLOCK).next_multiple_of(16 << 10).max(16 << 20) }),
        other => Err(format!("there is no volume driver {other:?}; use local, nfs or lv2")),
    }
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
    let unwanted =
        existing.iter().filter(|(name, d)| !volumes.contains_key(*name) && d.owner.as_deref() == Some(name.as_str()));
    actions.extend(unwanted.map(|(name, _)| Action::Destroy(name.clone())));
    actions
}

/// What a pass over the volumes found.
#[derive(Debug, Default)]
pub struct Pass {
    /// The datasets of volumes, by volume.
    pub datasets: BTreeMap<String, Dataset>,
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
        let before = self.datasets().await?;
        let mut errors: BTreeMap<String, String> = BTreeMap::new();
        let mut pass = Pass::default();
        for action in plan(&self.parent, &wanted, &before) {
            pass.again |= self.carry_out(action, &mut errors).await;
        }
        for dataset in self.datasets().await? {
            let name = dataset.name.strip_prefix(&self.parent).and_then(|n| n.strip_prefix('/')).map(str::to_owned);
            if let Some(name) = name.filter(|n| dataset.owner.as_ref() == Some(n)) {
                pass.datasets.insert(name, dataset);
            }
        }
        for resource in &resources {
            let error = errors.remove(&resource.meta.name);
            pass.again |= self.report(resource, pass.datasets.get(&resource.meta.name), error, refresh).await?;
        }
        Ok(pass)
    }

    async fn datasets(&self) -> Result<Vec<Dataset>, RunError> {
        Ok(zfs::parse_datasets(&self.runner.json(&zfs::list_datasets(&self.parent)).await?))
    }

    /// Does one thing; true when it must be tried again.
    async fn carry_out(&self, action: Action, errors: &mut BTreeMap<String, String>) -> bool {
        let dataset = |name: &str| format!("{}/{name}", self.parent);
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
                errors.insert(name, error.to_string());
                true
            }
        }
    }

    /// Destroys a dataset; a pod that still ends holds it busy for a while.
    async fn destroy(&self, name: &str) -> bool {
        match self.runner.run(&zfs::destroy_dataset(&format!("{}/{name}", self.parent))).await {
            Ok(_) => {
                tracing::info!(volume = name, "destroyed a volume that nobody wants any more");
                let _ = std::fs::remove_dir(self.mount.join(name));
                false
            }
            Err(error) if error.cause() == Cause::NotFound => false,
            Err(error) => {
                tracing::warn!(volume = name, %error, "cannot destroy a volume yet");
                true
            }
        }
    }

    /// Writes a volume's status if it changed; true when the volume is not ready and trying again may help.
    async fn report(
        &self,
        resource: &Resource<Volume>,
        dataset: Option<&Dataset>,
        error: Option<String>,
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

    #[test]
    fn unknown_drivers_bad_sizes_and_bad_names_are_refused() {
        for (name, spec) in [
            ("a", spec("ceph", "")),
            ("a", spec("lv2", "huge")),
            ("../a", spec("local", "")),
            ("a@b", spec("local", "")),
            ("-r", spec("local", "")),
            ("", spec("local", "")),
        ] {
            assert!(wanted(name, &spec).is_err(), "{name} {spec:?}");
        }
    }
}
