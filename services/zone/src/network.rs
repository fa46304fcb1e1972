//! A network: a subnet whose endpoints reach each other and nothing else.

use crate::resource::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The resource kind `network`, named by [`crate::NetworkId`].
#[derive(Clone, Debug)]
pub struct Network;

impl Kind for Network {
    const NAME: &'static str = "network";
    type Spec = NetworkSpec;
    type Status = NetworkStatus;
}

/// The resource kind `networkname`: reserves a network's name for its id.
#[derive(Clone, Debug)]
pub struct NetworkName;

impl Kind for NetworkName {
    const NAME: &'static str = "networkname";
    type Spec = String;
    type Status = ();
}

/// The name of the network that a container is on when it names none; made by `vpc` at first start.
pub const DEFAULT_NETWORK: &str = "bridge";

/// What a network should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The name that users gave it.
    pub name: String,
    /// The driver that users asked for; `bridge`.
    pub driver: String,
    /// The subnet that users asked for, `10.1.0.0/24`; none = `vpc` picks one.
    #[serde(default)]
    pub subnet: Option<String>,
    /// The gateway that users asked for.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// The part of the subnet that addresses are picked from, `10.1.0.128/25`; none = all of it.
    #[serde(default)]
    pub ip_range: Option<String>,
    /// Addresses that nobody gets, by the names that users gave them.
    #[serde(default)]
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// Nothing goes in or out.
    #[serde(default)]
    pub internal: bool,
    /// Plain containers may join (Docker's flag; only echoed).
    #[serde(default)]
    pub attachable: bool,
    /// Asked for IPv6 as well.
    #[serde(default)]
    pub enable_ipv6: bool,
    /// Options of the address management (only echoed); none is another thing than an empty list of them.
    #[serde(default)]
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What a network is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStatus {
    /// The subnet is chosen and endpoints can be made.
    pub ready: bool,
    /// Why it cannot be (subnet overlaps…), for people.
    #[serde(default)]
    pub error: Option<String>,
    /// The subnet, `10.1.0.0/24`.
    #[serde(default)]
    pub subnet: String,
    /// The gateway and name server.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
}
