//! Whether what lies in the pods' folder is this zone's, before anything in it is removed for want of a pod.
//!
//! After a lost database, or on disks from another machine, every folder would be an orphan: they are set aside instead, in
//! a folder that nothing here looks into. What still runs is left alone until the machine boots.

use std::path::Path;
use std::time::Duration;
use zone::client::Client;
use zone::marker::{self, Claim};

/// Waits for the state engine; its zone's id, and whether what has no pod may be removed. `idle`: no monitor runs.
pub async fn ensure(client: &Client, data: &Path, idle: bool) -> (String, bool) {
    let mut pause = Duration::from_millis(50);
    loop {
        match marker::claim(client, data).await {
            Ok((zone, claim)) => match settle(data, &zone, claim, idle) {
                Ok(collects) => return (zone, collects),
                Err(error) => tracing::error!(dir = %data.display(), %error, "cannot mark the pods' folder"),
            },
            Err(error) => tracing::warn!(%error, "the state engine is away"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

fn settle(data: &Path, zone: &str, claim: Claim, idle: bool) -> std::io::Result<bool> {
    let Claim::Foreign { zone: other } = claim else {
        if claim == Claim::Unmarked {
            marker::write(data, zone)?;
        }
        return Ok(true);
    };
    if !idle {
        tracing::error!(
            of = other,
            zone,
            "pods of another database run; they, and their files, are left alone until the next boot"
        );
        return Ok(false);
    }
    let aside = data.join(format!(".of-{other}"));
    std::fs::create_dir_all(&aside)?;
    let mut count = 0;
    for entry in std::fs::read_dir(data)?.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with('.') && entry.path().is_dir() {
            std::fs::rename(entry.path(), aside.join(name))?;
            count += 1;
        }
    }
    tracing::warn!(count, aside = %aside.display(), of = other, "the files of another database's pods were set aside");
    marker::write(data, zone)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_databases_pods_are_set_aside_once_nothing_runs_and_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pod")).unwrap();
        std::fs::write(dir.path().join("pod/rw-0.img"), "kept").unwrap();
        marker::write(dir.path(), "old").unwrap();
        let claim = || marker::read(dir.path(), "new").unwrap();
        assert!(!settle(dir.path(), "new", claim(), false).unwrap());
        assert!(dir.path().join("pod").exists());
        assert!(settle(dir.path(), "new", claim(), true).unwrap());
        assert_eq!(std::fs::read_to_string(dir.path().join(".of-old/pod/rw-0.img")).unwrap(), "kept");
        assert_eq!(claim(), Claim::Ours);
    }
}
