//! What all pods' tasks have in common: the other services, the flags, uids and claims.

use crate::admission::{self, Memory};
use crate::disk::Disks;
use crate::follow::Follower;
use crate::plan::Places;
use crate::systemd::Systemd;
use crate::templates::Templates;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use zone::client::Client;
use zone::{PodId, VolumeName};

/// The first uid that a pod gets.
pub const FIRST_UID: u32 = 200_000;

/// Programs and places.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where bundles lie, one directory per pod.
    pub run: PathBuf,
    /// Where layers and logs lie, one directory per pod.
    pub data: PathBuf,
    /// Monitor, agent and kernel.
    pub cradle: PathBuf,
    /// `virtiofsd`.
    pub virtiofsd: PathBuf,
    /// `setpriv`.
    pub setpriv: PathBuf,
    /// Keep the guests' serial consoles.
    pub console: bool,
    /// How layers and logs are made.
    pub disks: Disks,
}

/// What all pods' tasks have in common.
pub struct Shared {
    /// The state engine.
    pub client: Client,
    /// systemd.
    pub systemd: Systemd,
    /// Tells when log files change.
    pub follower: Follower,
    /// Programs and places.
    pub config: Config,
    /// Guests to go on from.
    pub templates: Arc<Templates>,
    uids: Mutex<BTreeSet<u32>>,
    claims: Mutex<BTreeMap<VolumeName, PodId>>,
    promised: Mutex<BTreeMap<PodId, u32>>,
    start: Instant,
}

impl Shared {
    /// Nothing is taken yet.
    #[must_use]
    pub fn new(client: Client, systemd: Systemd, follower: Follower, config: Config) -> Self {
        let (uids, claims, promised) = (Mutex::default(), Mutex::default(), Mutex::default());
        let templates = Arc::new(Templates::new(&config.cradle));
        Self { client, systemd, follower, config, templates, uids, claims, promised, start: Instant::now() }
    }

    /// Milliseconds of a clock that only goes forward.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where a pod's things lie.
    #[must_use]
    pub fn places(&self, pod: &PodId) -> Places {
        Places {
            cradle: self.config.cradle.clone(),
            run: self.config.run.join(pod.as_str()),
            data: self.config.data.join(pod.as_str()),
            console: self.config.console,
        }
    }

    /// Marks a uid as taken.
    pub fn keep_uid(&self, uid: u32) {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
    }

    /// Takes the lowest free uid.
    pub fn take_uid(&self) -> u32 {
        let mut uids = self.uids.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FIRST_UID;
        while uids.contains(&free) {
            free += 1;
        }
        uids.insert(free);
        free
    }

    /// Gives a uid back.
    pub fn free_uid(&self, uid: u32) {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// Takes block volumes for one pod alone: all or none.
    ///
    /// # Errors
    /// The volume that another pod has, and that pod.
    pub fn claim<'a>(
        &self,
        pod: &PodId,
        volumes: impl Iterator<Item = &'a VolumeName> + Clone,
    ) -> Result<(), (VolumeName, PodId)> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        for volume in volumes.clone() {
            if let Some(holder) = claims.get(volume).filter(|h| *h != pod) {
                return Err((volume.clone(), holder.clone()));
            }
        }
        for volume in volumes {
            claims.insert(volume.clone(), pod.clone());
        }
        Ok(())
    }

    /// Notes that a pod has a guest of so many MiB.
    pub fn promise(&self, pod: &PodId, memory_mib: u32) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.clone(), memory_mib);
    }

    /// Notes it if the machine has the memory.
    ///
    /// # Errors
    /// Why it has not, for people.
    pub fn admit(&self, pod: &PodId, memory_mib: u32) -> Result<(), String> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let others = promised.iter().filter(|(p, _)| *p != pod).map(|(_, mib)| u64::from(*mib)).sum();
        if let Some(memory) = Memory::now() {
            admission::admit(memory, others, memory_mib.into())?;
        }
        promised.insert(pod.clone(), memory_mib);
        Ok(())
    }

    /// Gives up all that a pod has claimed.
    pub fn release(&self, pod: &PodId) {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, holder| holder != pod);
    }
}
