//! The pool's own datasets and who may enter them.
//!
//! `images` belongs to the content store's user, `pods` to root and the group of the services, `volumes` to root.

use crate::run::{Cause, Runner};
use crate::zfs;
use anyhow::Context as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// Name, owner, group, mode of each dataset.
const PLACES: [(&str, &str, &str, u32); 3] =
    [("images", "kraud-images", "kraud", 0o755), ("pods", "root", "kraud", 0o750), ("volumes", "root", "root", 0o755)];

/// Mounts the pool, makes and mounts the datasets right below it, and gives them their owners.
///
/// # Errors
/// When one cannot be made or mounted.
pub async fn ensure(runner: &Runner, pool: &str, mount: &Path) -> anyhow::Result<()> {
    let datasets = zfs::parse_datasets(&runner.json(&zfs::list_datasets(pool)).await?);
    let root =
        datasets.iter().find(|d| d.name == pool).with_context(|| format!("the pool {pool} has no root dataset"))?;
    if !root.mounted {
        runner.run(&zfs::mount(pool)).await.context("cannot mount the pool")?;
    }
    for (name, user, group, mode) in PLACES {
        let full = format!("{pool}/{name}");
        let argv = match datasets.iter().find(|d| d.name == full) {
            None => Some(zfs::create_dataset(&full)),
            Some(d) if !d.mounted => Some(zfs::mount(&full)),
            Some(_) => None,
        };
        if let Some(argv) = argv {
            match runner.run(&argv).await {
                Err(error) if error.cause() != Cause::Exists => {
                    return Err(error).context(format!("cannot set up {full}"));
                }
                _ => {}
            }
        }
        own(&mount.join(name), user, group, mode)?;
    }
    Ok(())
}

fn own(path: &Path, user: &str, group: &str, mode: u32) -> anyhow::Result<()> {
    let (uid, gid) = (id_of("/etc/passwd", user), id_of("/etc/group", group));
    if uid.is_none() || gid.is_none() {
        tracing::warn!(path = %path.display(), user, group, "there is no such user or group; the owner stays");
    }
    chown(path, uid, gid).with_context(|| format!("cannot give {} to {user}:{group}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

fn id_of(file: &str, name: &str) -> Option<u32> {
    id_in(&std::fs::read_to_string(file).ok()?, name)
}

/// The third field of the line that starts with the name (passwd(5), group(5)).
fn id_in(text: &str, name: &str) -> Option<u32> {
    text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name))?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let text =
            "root:x:0:0:root:/root:/bin/sh\nkraud-images2:x:7:7::/:\nkraud-images:x:990:980::/:/usr/sbin/nologin\n";
        assert_eq!(id_in(text, "kraud-images"), Some(990));
        assert_eq!(id_in(text, "root"), Some(0));
        assert_eq!(id_in(text, "kraud"), None);
    }
}
