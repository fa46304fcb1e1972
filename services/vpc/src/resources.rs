//! The resources that this service sees, as macro told them last.

use std::collections::BTreeMap;
use zone::Resource;
use zone::client::{Changes, Client, Event};
use zone::endpoint::Endpoint;
use zone::network::Network;
use zone::pod::Pod;
use zone::{ApiError, Kind};

/// All networks, endpoints and pods, by name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Networks, by id.
    pub networks: BTreeMap<String, Resource<Network>>,
    /// Endpoints, by id.
    pub endpoints: BTreeMap<String, Resource<Endpoint>>,
    /// Pods, by id.
    pub pods: BTreeMap<String, Resource<Pod>>,
}

/// The kinds to watch.
pub const KINDS: [&str; 3] = [Network::NAME, Endpoint::NAME, Pod::NAME];

impl Resources {
    /// Lists everything; the revision to watch from.
    ///
    /// # Errors
    /// Those of [`Client::list`].
    pub async fn list(client: &Client) -> Result<(Self, u64), ApiError> {
        let networks = client.list::<Network>().await?;
        let endpoints = client.list::<Endpoint>().await?;
        let pods = client.list::<Pod>().await?;
        // The first list is the oldest: from there nothing is missed; what is told twice is skipped by its revision.
        let revision = networks.revision.min(endpoints.revision).min(pods.revision);
        let all =
            Self { networks: by_name(networks.items), endpoints: by_name(endpoints.items), pods: by_name(pods.items) };
        Ok((all, revision))
    }

    /// Takes in a transaction's changes.
    pub fn apply(&mut self, changes: &Changes) {
        for event in &changes.events {
            apply(&mut self.networks, event);
            apply(&mut self.endpoints, event);
            apply(&mut self.pods, event);
        }
    }
}

fn by_name<K: Kind>(items: Vec<Resource<K>>) -> BTreeMap<String, Resource<K>> {
    items.into_iter().map(|item| (item.meta.name.clone(), item)).collect()
}

fn apply<K: Kind>(map: &mut BTreeMap<String, Resource<K>>, event: &Event) {
    let Some(resource) = event.resource::<K>() else { return };
    let known = map.get(&resource.meta.name).map(|known| known.meta.revision);
    match event {
        Event::Put { .. } if known.is_none_or(|revision| revision <= resource.meta.revision) => {
            map.insert(resource.meta.name.clone(), resource);
        }
        // A resource that was made anew under its name is newer than the deletion.
        Event::Delete { revision, .. } if known.is_some_and(|known| known <= *revision) => {
            map.remove(&resource.meta.name);
        }
        _ => {}
    }
}
