//! Taps, addresses and routes in the kernel: what is there, and what leads to what should be.
//!
//! Ours are the devices named by [`tap::name`] and [`tap::GATEWAYS`], and the routes of protocol 107; nothing else is touched.

use crate::plan::{GATEWAY_MAC, NetworkPlan, TapPlan};
use crate::subnet::Subnet;
use crate::tap;
use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoTun, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// Marks our routes (rtnetlink(7), rtm_protocol; from 64 on free for use).
const PROTOCOL: u8 = 107;
/// The group of all taps (ip-link(8)): the firewall knows by it what is a pod's, also a tap that nobody wants any more.
pub const TAP_GROUP: u32 = 107;
/// IFLA_TUN_OWNER (linux/if_link.h).
const IFLA_TUN_OWNER: u16 = 1;

/// Changes links, addresses and routes.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens a netlink socket in this network namespace; must be called in a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn new() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The zone whose networks these are: an alias of the gateways' device, gone with a boot as they are. Set when there is
    /// none; true when it is `zone`.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn belong_to(&self, zone: &str) -> Result<bool> {
        let index = self.gateways_device().await?;
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let link = link.with_context(|| format!("cannot look at the device {}", tap::GATEWAYS))?;
        let alias = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) if !alias.is_empty() => Some(alias),
            _ => None,
        });
        if let Some(alias) = alias {
            return Ok(alias == zone);
        }
        let named = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::IfAlias(zone.to_owned()));
        let set = self.handle.link().set(named.build()).execute().await;
        set.with_context(|| format!("cannot mark the device {}", tap::GATEWAYS))?;
        Ok(true)
    }

    /// Our taps that are there, with their owners.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn taps(&self) -> Result<BTreeMap<String, Option<u32>>> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.context("cannot list links")?;
        Ok(links
            .iter()
            .filter_map(|link| Some((link_name(link)?, owner(link))))
            .filter(|(name, _)| tap::is_ours(name))
            .collect())
    }

    /// Subnets that the machine's own routes lead to: not the default route, not ours.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn host_subnets(&self) -> Result<Vec<Subnet>> {
        let ours = |route: &&RouteMessage| route.header.protocol == RouteProtocol::Other(PROTOCOL);
        let gateways = self.index(tap::GATEWAYS).await?;
        let device = |route: &RouteMessage| {
            route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None })
        };
        let routes = self.routes().await?;
        let unicast = routes.iter().filter(|r| r.header.kind == RouteType::Unicast && !ours(r));
        let subnets = unicast.filter(|r| gateways.is_none() || device(r) != gateways).filter_map(destination);
        Ok(subnets.filter(|subnet| subnet.prefix() > 0).collect())
    }

    /// Makes a tap what it should be: it exists, belongs to the pod's user, has its route and its neighbour. A tap that is
    /// in use is not opened.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn ensure_tap(&self, name: &str, plan: &TapPlan, owner: Option<Option<u32>>) -> Result<()> {
        if owner.is_some_and(|owner| owner != Some(plan.uid)) {
            self.delete(name).await?;
        }
        if owner != Some(Some(plan.uid)) {
            tap::create(name, plan.uid).with_context(|| format!("cannot make the tap {name}"))?;
        }
        settings(name);
        let index = self.index(name).await?.with_context(|| format!("the tap {name} went away"))?;
        let group = LinkAttribute::Group(TAP_GROUP);
        let link = LinkUnspec::new_with_index(index).address(GATEWAY_MAC.to_vec()).append_extra_attribute(group);
        let link = link.up().build();
        self.handle.link().set(link).execute().await.with_context(|| format!("cannot set up the tap {name}"))?;
        self.handle
            .neighbours()
            .add(index, IpAddr::V4(plan.address))
            .link_layer_address(&plan.mac)
            .replace()
            .execute()
            .await
            .with_context(|| format!("cannot set the neighbour of the tap {name}"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(plan.address, 32)
            .output_interface(index)
            .pref_source(plan.gateway)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build();
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .with_context(|| format!("cannot route {} to the tap {name}", plan.address))
    }

    /// Removes a device; one that is not there is fine.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        self.handle.link().del(index).execute().await.with_context(|| format!("cannot remove the tap {name}"))
    }

    /// Makes the gateways' addresses exactly those of the networks, and keeps what is sent to an unused address of a
    /// network from leaving by the uplink.
    ///
    /// # Errors
    /// The step that failed.
    pub async fn ensure_networks(&self, networks: &BTreeMap<Ipv4Addr, NetworkPlan>) -> Result<()> {
        let index = self.gateways_device().await?;
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .context("cannot list addresses")?;
        let mut present = BTreeSet::new();
        for message in addresses {
            let Some(address) = ipv4(&message) else { continue };
            if networks.contains_key(&address) {
                present.insert(address);
            } else {
                self.handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .with_context(|| format!("cannot remove {address}"))?;
            }
        }
        for gateway in networks.keys().filter(|gateway| !present.contains(gateway)) {
            let add = self.handle.address().add(index, IpAddr::V4(*gateway), 32);
            add.execute().await.with_context(|| format!("cannot add the gateway {gateway}"))?;
        }
        self.ensure_unreachable(networks.values().map(|network| network.subnet).collect()).await
    }

    async fn ensure_unreachable(&self, wanted: BTreeSet<Subnet>) -> Result<()> {
        let mut present = BTreeSet::new();
        for route in self.routes().await? {
            let ours =
                route.header.protocol == RouteProtocol::Other(PROTOCOL) && route.header.kind == RouteType::Unreachable;
            let Some(subnet) = destination(&route).filter(|_| ours) else { continue };
            if wanted.contains(&subnet) {
                present.insert(subnet);
            } else {
                self.handle
                    .route()
                    .del(route)
                    .execute()
                    .await
                    .with_context(|| format!("cannot remove the route to {subnet}"))?;
            }
        }
        for subnet in wanted.difference(&present) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(subnet.network(), subnet.prefix())
                .kind(RouteType::Unreachable)
                .protocol(RouteProtocol::Other(PROTOCOL))
                .build();
            let add = self.handle.route().add(route).replace();
            add.execute().await.with_context(|| format!("cannot keep {subnet} from the uplink"))?;
        }
        Ok(())
    }

    async fn gateways_device(&self) -> Result<u32> {
        let name = tap::GATEWAYS;
        if self.index(name).await?.is_none() {
            tap::create(name, 0).with_context(|| format!("cannot make the device {name}"))?;
        }
        settings(name);
        let index = self.index(name).await?.with_context(|| format!("the device {name} went away"))?;
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(link).execute().await.with_context(|| format!("cannot set up the device {name}"))?;
        Ok(index)
    }

    async fn index(&self, name: &str) -> Result<Option<u32>> {
        // if_nametoindex by sysfs or ioctl needs more of the host than netlink does.
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -19 => Ok(None), // ENODEV
            Err(error) => Err(error).with_context(|| format!("cannot find the device {name}")),
        }
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        self.handle.route().get(filter).execute().try_collect().await.context("cannot list routes")
    }
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
}

fn owner(link: &LinkMessage) -> Option<u32> {
    let infos =
        link.attributes.iter().filter_map(|a| if let LinkAttribute::LinkInfo(infos) = a { Some(infos) } else { None });
    let tuns =
        infos.flatten().filter_map(|i| if let LinkInfo::Data(InfoData::Tun(tun)) = i { Some(tun) } else { None });
    tuns.flatten().find_map(|attribute| {
        let InfoTun::Other(attribute) = attribute else { return None };
        let mut bytes = [0; 4];
        if attribute.kind() != IFLA_TUN_OWNER || attribute.value_len() != bytes.len() {
            return None;
        }
        attribute.emit_value(&mut bytes);
        Some(u32::from_ne_bytes(bytes))
    })
}

fn ipv4(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

fn destination(route: &RouteMessage) -> Option<Subnet> {
    if route.header.address_family != AddressFamily::Inet {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Some(Subnet::of(*address, route.header.destination_prefix_length))
        }
        _ => None,
    })
}

/// Kernel settings of a device: no IPv6 of the host's own on it, strict source check, answers for no other address, and
/// 127/8 may be translated to it (the rules drop what a guest sends there).
fn settings(name: &str) {
    let set = |path: String, value: &str| {
        if Path::new(&path).exists()
            && let Err(error) = std::fs::write(&path, value)
        {
            tracing::warn!(path, value, %error, "a kernel setting cannot be set");
        }
    };
    set(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    for (setting, value) in [("rp_filter", "1"), ("proxy_arp", "0"), ("route_localnet", "1"), ("accept_redirects", "0")]
    {
        set(format!("/proc/sys/net/ipv4/conf/{name}/{setting}"), value);
    }
}

/// Lets the machine forward packets at all.
///
/// # Errors
/// When the setting cannot be written.
pub fn enable_forwarding() -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    std::fs::write(path, "1").with_context(|| format!("cannot set {path}"))
}
