//! Volumes of a pool that another database made: they become resources again, so that nothing is lost with a database.
//!
//! What a volume is stands with its dataset: name, driver, size, snapshots. Labels, and containers, are not there to be
//! found again. Must never: destroy anything. Until this has been through, nobody else does either.

use crate::options::DEFAULT_INTERVAL_S;
use crate::run::Runner;
use crate::zfs::{self, Dataset};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::Path;
use zone::client::Client;
use zone::marker::{self, Claim};
use zone::volume::{Snapshot, SnapshotSpec, Volume, VolumeSpec};
use zone::{ApiError, ErrorKind, VolumeName};

/// The label of a volume that was found.
const LABEL: &str = "kr.recovered-from";

/// Makes the pool's volumes those of the zone whose database answers; the zone's id.
///
/// # Errors
/// When the state engine or the pool cannot be asked; then nothing may be removed yet.
pub async fn ensure(runner: &Runner, zone: &Client, parent: &str, store: &Path) -> anyhow::Result<String> {
    let (id, claim) = marker::claim(zone, store).await?;
    let from = match claim {
        Claim::Ours => return Ok(id),
        Claim::Unmarked => "unknown".to_owned(),
        Claim::Foreign { zone } => zone,
    };
    let datasets = zfs::parse_datasets(&runner.json(&zfs::list_datasets(parent)).await?);
    let mut volumes = 0;
    for dataset in &datasets {
        let Some(volume) = found(dataset, parent) else { continue };
        volumes += u32::from(create::<Volume>(zone, &volume, &spec(dataset, &from)).await?);
        for snap in zfs::parse_snapshots(&runner.json(&zfs::list_snapshots(&dataset.name)).await?) {
            if snap.marked {
                let spec = SnapshotSpec { volume: VolumeName::new(&volume), automatic: snap.automatic };
                create::<Snapshot>(zone, &format!("{volume}@{}", snap.short()), &spec).await?;
            }
        }
    }
    if volumes > 0 {
        tracing::warn!(
            volumes,
            from,
            zone = id,
            "the pool held volumes of another database; they are volumes here now"
        );
    }
    marker::write(store, &id).with_context(|| format!("cannot mark {} as this zone's", store.display()))?;
    Ok(id)
}

/// The volume that a dataset is or was.
fn found(dataset: &Dataset, parent: &str) -> Option<String> {
    let name = dataset.name.strip_prefix(parent)?.strip_prefix('/')?;
    let volume = crate::rollback::part_of(name).unwrap_or(name);
    (dataset.owner.as_deref() == Some(volume)).then(|| volume.to_owned())
}

fn spec(dataset: &Dataset, from: &str) -> VolumeSpec {
    let size = if dataset.is_block { dataset.volsize } else { dataset.quota };
    let mut options = BTreeMap::from([("snapshots".to_owned(), format!("{DEFAULT_INTERVAL_S}s"))]);
    if size > 0 {
        options.insert("size".to_owned(), size.to_string());
    }
    VolumeSpec {
        driver: if dataset.is_block { "lv2" } else { "local" }.to_owned(),
        options,
        labels: BTreeMap::from([(LABEL.to_owned(), from.to_owned())]),
        ..VolumeSpec::default()
    }
}

/// True when it was not there.
async fn create<K: zone::Kind>(zone: &Client, name: &str, spec: &K::Spec) -> Result<bool, ApiError> {
    match zone.create::<K>(name, spec).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == ErrorKind::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}
