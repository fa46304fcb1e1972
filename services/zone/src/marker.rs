//! Which zone a store on disk belongs to: the file `.zone` in the store's folder holds the id that the state engine made
//! once for its database.
//!
//! Reconcilers remove what has no resource. With a database that is empty, because it was lost or because the disks came
//! from another machine, that would be everything: so whoever removes asks here first, and removes only from a store
//! that is [`Claim::Ours`].

use crate::client::Client;
use crate::error::{ApiError, ErrorKind};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// The file's name in the store's folder.
pub const FILE: &str = ".zone";

/// Whose a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The database that answers made it.
    Ours,
    /// Nobody's yet: there is no marker. Write one ([`write`]) once it is known that nothing in it can be lost.
    Unmarked,
    /// Another database's: nothing may be removed from it.
    Foreign {
        /// The id of that database.
        zone: String,
    },
}

/// Compares a store's marker with the zone's id.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(store: &Path, zone: &str) -> io::Result<Claim> {
    match std::fs::read_to_string(store.join(FILE)) {
        Ok(text) if text.trim() == zone => Ok(Claim::Ours),
        // Cut off while it was written, which can only have been the first time.
        Ok(text) if text.trim().is_empty() => Ok(Claim::Unmarked),
        Ok(text) => Ok(Claim::Foreign { zone: text.trim().chars().take(64).collect() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Claim::Unmarked),
        Err(error) => Err(error),
    }
}

/// Makes a store the zone's, durably.
///
/// # Errors
/// When the file cannot be written.
pub fn write(store: &Path, zone: &str) -> io::Result<()> {
    let temp = store.join(".zone.new");
    let mut file = File::create(&temp)?;
    writeln!(file, "{zone}")?;
    file.sync_all()?;
    std::fs::rename(&temp, store.join(FILE))?;
    File::open(store)?.sync_all()
}

/// Asks the state engine for the zone's id and compares; the id and whose the store is.
///
/// # Errors
/// `Unavailable` when the state engine cannot be reached, `Internal` when the marker cannot be read.
pub async fn claim(client: &Client, store: &Path) -> Result<(String, Claim), ApiError> {
    let zone = client.zone_id().await?;
    let claim = read(store, &zone).map_err(|error| {
        ApiError::new(ErrorKind::Internal, format!("cannot read {}: {error}", store.join(FILE).display()))
    })?;
    Ok((zone, claim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_its_zones_and_foreign_to_every_other() {
        let dir = std::env::temp_dir().join(format!("zone-marker-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(read(&dir, "a").unwrap(), Claim::Unmarked);
        File::create(dir.join(FILE)).unwrap();
        assert_eq!(read(&dir, "a").unwrap(), Claim::Unmarked, "an empty file is one that a power cut left");
        write(&dir, "a").unwrap();
        assert_eq!(read(&dir, "a").unwrap(), Claim::Ours);
        assert_eq!(read(&dir, "b").unwrap(), Claim::Foreign { zone: "a".into() });
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
