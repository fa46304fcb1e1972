//! The addresses under which others reach this machine, and when they change.
//!
//! An uplink is an interface of hardware: links that the kernel makes up (taps, bridges, loopback) have a kind of their
//! own in netlink's answer, or are the loopback.

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo};
use rtnetlink::{Handle, MulticastGroup};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tokio::sync::watch;

/// Follows the addresses; the receiver has the first ones when this returns.
///
/// # Errors
/// When the kernel does not answer.
pub async fn follow() -> Result<watch::Receiver<Vec<IpAddr>>> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    let (sender, receiver) = watch::channel(list(&handle).await?);
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            match list(&handle).await {
                Ok(new) => {
                    sender.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot list addresses"),
            }
        }
    });
    Ok(receiver)
}

async fn list(handle: &Handle) -> Result<Vec<IpAddr>> {
    let mut uplinks = BTreeSet::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
        let made_up = link.attributes.iter().any(|a| match a {
            LinkAttribute::LinkInfo(infos) => infos.iter().any(|i| matches!(i, LinkInfo::Kind(_))),
            _ => false,
        });
        if !made_up && !link.header.flags.contains(LinkFlags::Loopback) {
            uplinks.insert(link.header.index);
        }
    }
    let mut found = BTreeSet::new();
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.context("cannot list addresses")? {
        let public = address.header.scope == AddressScope::Universe;
        if !uplinks.contains(&address.header.index) || !public {
            continue;
        }
        found.extend(address.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        }));
    }
    // IPv4 first: it is what people type.
    Ok(found.into_iter().collect())
}
