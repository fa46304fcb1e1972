//! Writes statuses of resources that `node` owns, and makes the resources when they are not there.

use std::collections::BTreeMap;
use zone::client::Client;
use zone::{ErrorKind, Kind};

/// Writes, and remembers what it wrote so that nothing is written twice.
pub struct Writer {
    client: Client,
    written: BTreeMap<String, serde_json::Value>,
}

impl Writer {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, written: BTreeMap::new() }
    }

    /// Writes a status, unless the last one written is as good. What cannot be written now is written at the next call.
    pub async fn put<K: Kind<Spec = ()>>(
        &mut self,
        name: &str,
        status: &K::Status,
        same: impl Fn(&K::Status, &K::Status) -> bool,
    ) {
        let Ok(value) = serde_json::to_value(status) else { return };
        let last = self.written.get(name).and_then(|v| serde_json::from_value::<K::Status>(v.clone()).ok());
        if last.is_some_and(|last| same(&last, status)) {
            return;
        }
        let set = |s: &mut K::Status| {
            *s = status.clone();
            true
        };
        let mut result = self.client.modify_status::<K>(name, set).await.map(|_| ());
        if matches!(&result, Err(error) if error.kind == ErrorKind::NotFound) {
            result = match self.client.create::<K>(name, &()).await {
                Ok(_) => self.client.modify_status::<K>(name, set).await.map(|_| ()),
                Err(error) => Err(error),
            };
        }
        match result {
            Ok(()) => {
                self.written.insert(name.to_owned(), value);
            }
            Err(error) => tracing::warn!(kind = K::NAME, name, %error, "cannot write a status"),
        }
    }

    /// Deletes the resources of kind `K` that are not named.
    pub async fn keep_only<K: Kind>(&mut self, names: &[String]) {
        let Ok(list) = self.client.list::<K>().await else { return };
        for gone in list.items.iter().map(|r| &r.meta.name).filter(|n| !names.contains(n)) {
            self.written.remove(gone);
            if let Err(error) = self.client.delete::<K>(gone).await {
                tracing::warn!(kind = K::NAME, name = gone, %error, "cannot delete a resource");
            }
        }
    }
}
