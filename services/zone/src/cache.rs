//! A copy of some kinds of resources that follows the state engine: read without asking it, told when it changes.
//!
//! Invariant: what is in the copy was true at one revision. After the state engine restarts, or has forgotten the
//! revision, the copy catches up on its own; until then it shows what was.

use crate::client::{Changes, Client, Event};
use crate::error::ErrorKind;
use crate::resource::{Kind, Resource};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// How long to wait before the state engine is asked again after it could not be reached.
const RETRY: Duration = Duration::from_millis(200);

/// A copy of all resources of kind `K`. Cheap to clone.
#[derive(Debug)]
pub struct Cache<K: Kind> {
    items: Arc<RwLock<BTreeMap<String, Arc<Resource<K>>>>>,
    changed: watch::Sender<u64>,
}

impl<K: Kind> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), changed: self.changed.clone() }
    }
}

impl<K: Kind> Cache<K> {
    /// Starts to follow the state engine. The copy is empty until it has been reached.
    #[must_use]
    pub fn follow(client: Client) -> Self {
        let cache = Self { items: Arc::default(), changed: watch::Sender::new(0) };
        let mine = cache.clone();
        tokio::spawn(async move {
            loop {
                // Every reason to fail is a reason to list again: nothing can be missed by that.
                let _ = mine.list_and_watch(&client).await;
                tokio::time::sleep(RETRY).await;
            }
        });
        cache
    }

    /// Everything, in the order of the names.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Resource<K>>> {
        self.items.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// One resource.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Resource<K>>> {
        self.items.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Tells the state engine's revision each time the copy has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    async fn list_and_watch(&self, client: &Client) -> Result<(), crate::ApiError> {
        let list = client.list::<K>().await?;
        let items = list.items.into_iter().map(|r| (r.meta.name.clone(), Arc::new(r))).collect();
        *self.items.write().unwrap_or_else(PoisonError::into_inner) = items;
        self.changed.send_replace(list.revision);
        let mut seen = list.revision;
        loop {
            let mut watch = match client.watch(&[K::NAME], seen).await {
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                other => other?,
            };
            while let Ok(Some(changes)) = watch.next().await {
                seen = changes.revision;
                if self.take(&changes) {
                    self.changed.send_replace(seen);
                }
            }
        }
    }

    fn take(&self, changes: &Changes) -> bool {
        let mut items = self.items.write().unwrap_or_else(PoisonError::into_inner);
        for event in &changes.events {
            let Some(resource) = event.resource::<K>() else { continue };
            match event {
                Event::Put { .. } => items.insert(resource.meta.name.clone(), Arc::new(resource)),
                Event::Delete { .. } => items.remove(&resource.meta.name),
            };
        }
        !changes.events.is_empty()
    }
}
