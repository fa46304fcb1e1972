//! A pod's place on a network: its tap, addresses, names and published ports.
//!
//! Written by docker-api together with the pod; its status is written by `vpc`. The tap is made once the pod has its
//! uid, and goes away with the endpoint.

use crate::ids::{NetworkId, PodId};
use crate::resource::Kind;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// The resource kind `endpoint`, named by [`crate::EndpointId`].
#[derive(Clone, Debug)]
pub struct Endpoint;

impl Kind for Endpoint {
    const NAME: &'static str = "endpoint";
    type Spec = EndpointSpec;
    type Status = EndpointStatus;
}

/// What an endpoint should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// The pod.
    pub pod: PodId,
    /// The network.
    pub network: NetworkId,
    /// Names under which others on the network find it: container name, short id, `--network-alias`.
    #[serde(default)]
    pub names: Vec<String>,
    /// An address that the user asked for.
    #[serde(default)]
    pub requested_ipv4: Option<Ipv4Addr>,
    /// A MAC address that the user asked for, `02:42:…`.
    #[serde(default)]
    pub requested_mac: Option<String>,
    /// Ports published on the host; only a pod's first endpoint on a network that is not internal has any.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
}

/// The transport of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name as it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The transport.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The host's address; none = every address.
    #[serde(default)]
    pub host_ip: Option<IpAddr>,
    /// The host's port; none = one that `vpc` picks.
    #[serde(default)]
    pub host_port: Option<u16>,
}

/// A port that is published: every choice is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundPort {
    /// The transport.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The host's address; `0.0.0.0` = every address.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
}

/// The name server's address in a guest on a network that a user made; images have it in their configuration.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// What an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointStatus {
    /// Tap, addresses and rules are in place.
    pub ready: bool,
    /// Why it cannot be, for people; `port is already allocated` is one reason.
    #[serde(default)]
    pub error: Option<String>,
    /// The tap's name on the host, owned by the pod's uid.
    #[serde(default)]
    pub tap: String,
    /// The guest's MAC address.
    #[serde(default)]
    pub mac: String,
    /// The guest's address.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// The network's prefix length, as users see it; the guest itself has a /32.
    #[serde(default)]
    pub prefix: u8,
    /// The network's gateway, which is also its name server.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The gateway's MAC address: the guest gets it as a static neighbour, so nothing ever asks for it.
    #[serde(default)]
    pub gateway_mac: String,
    /// The name server that the guest is told of: the gateway on the network `bridge`, else Docker's 127.0.0.11, which
    /// leads to the gateway of the network that the guest's default route goes to.
    #[serde(default)]
    pub resolver: Option<Ipv4Addr>,
    /// Ports published while the pod runs.
    #[serde(default)]
    pub ports: Vec<BoundPort>,
}
