//! Makes a volume what it was when a snapshot was taken, and loses nothing by it.
//!
//! ```text
//!   data            zfs snapshot data@before-…        the state now, as a snapshot that can be gone back to
//!   data@S          zfs clone data@S → data:new       what the volume shall be
//!   data            zfs rename data → data:1          the dataset that was, with its later snapshots
//!   data:new        zfs rename data:new → data
//! ```
//! Never `zfs rollback`, which destroys every later snapshot. Datasets named `VOLUME:N` are what a volume was; their snapshots
//! are the volume's too, and going back to one of them undoes it. Killed between any two steps, [`resume`] finds what is to
//! be done from the names alone: a volume is never made anew, empty, while its `:new` waits.

use crate::run::{Cause, RunError, Runner};
use crate::zfs::{self, Dataset};
use jiff::Timestamp;

/// What a volume shall become.
const NEW: &str = "new";

/// The volume whose former or coming dataset this is.
pub fn part_of(name: &str) -> Option<&str> {
    name.split_once(':').map(|(volume, _)| volume)
}

/// The number of a former dataset.
pub fn number(name: &str) -> Option<u32> {
    name.split_once(':')?.1.parse().ok()
}

fn coming(dataset: &str) -> String {
    format!("{dataset}:{NEW}")
}

/// Ends the renames of a rollback that was cut off. True when it changed something.
///
/// # Errors
/// What `zfs` said.
pub async fn resume(runner: &Runner, dataset: &str, all: &[Dataset]) -> Result<bool, RunError> {
    let there = |name: &str| all.iter().any(|d| d.name == name);
    if there(dataset) || !there(&coming(dataset)) {
        return Ok(false);
    }
    runner.run(&zfs::rename(&coming(dataset), dataset)).await?;
    Ok(true)
}

/// Goes back to `snapshot`, the full name of one of the volume's snapshots. `former` is how many former datasets there
/// are at most. Gives the short name of the snapshot of how the volume was before.
///
/// # Errors
/// Why not, for people; then the volume is as it was.
pub async fn run(
    runner: &Runner,
    dataset: &Dataset,
    volume: &str,
    snapshot: &str,
    next: u32,
) -> Result<String, String> {
    let name = &dataset.name;
    let guard = format!("before-rollback-{}", Timestamp::now().strftime("%Y%m%d-%H%M%S"));
    let failed = |error: RunError| match error.cause() {
        Cause::Busy => format!("volume {volume} is in use; stop the containers that use it first"),
        Cause::Full => "the pool is full; remove images, volumes or snapshots first".to_owned(),
        _ => error.to_string(),
    };
    match runner.run(&zfs::snapshot(&format!("{name}@{guard}"), false)).await {
        Err(error) if error.cause() != Cause::Exists => return Err(failed(error)),
        _ => {}
    }
    // What an interrupted attempt left; it was never the volume.
    match runner.run(&zfs::destroy_dataset(&coming(name))).await {
        Err(error) if error.cause() != Cause::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut properties = Vec::new();
    if dataset.is_block {
        properties.push((crate::volumes::FORMATTED, "yes".to_owned()));
    } else {
        let quota = if dataset.quota == 0 { "none".to_owned() } else { dataset.quota.to_string() };
        properties.extend([("refquota", quota), ("snapdir", "hidden".to_owned()), ("canmount", "noauto".to_owned())]);
        if dataset.mounted {
            // Fails when a file is open, before anything has changed.
            runner.run(&zfs::unmount(name)).await.map_err(failed)?;
        }
    }
    let switched = async {
        runner.run(&zfs::clone(snapshot, &coming(name), volume, &properties)).await?;
        if !dataset.is_block {
            // From here on it is only mounted when somebody wants to look.
            runner.run(&zfs::set(name, "canmount", "noauto")).await?;
        }
        runner.run(&zfs::rename(name, &format!("{name}:{next}"))).await?;
        runner.run(&zfs::rename(&coming(name), name)).await
    };
    switched.await.map_err(failed)?;
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_volume_are_known_by_their_names() {
        assert_eq!((part_of("data:1"), number("data:1")), (Some("data"), Some(1)));
        assert_eq!((part_of("data:new"), number("data:new")), (Some("data"), None));
        assert_eq!((part_of("data"), number("data")), (None, None));
    }
}
