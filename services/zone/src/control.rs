//! What can be changed at a microVM while it runs: requests to the monitor's control socket.
//!
//! The socket is `SOCK_SEQPACKET`; each packet of a client is one [`Request`] in JSON, with the descriptors that it needs
//! (`SCM_RIGHTS`), and is answered by one packet, a [`Reply`]. Afterwards the guest's agent is asked to look at the slot
//! (`POST /v1/devices` on its own socket): the monitor has no way to make a guest look.
//!
//! ```text
//!  client ── plug {net|disk} + descriptor ──> monitor      slot 5 is a device now: {"device":"virtio-mmio.5"}
//!  client ── POST /v1/devices {"device":…} ─> agent        binds the driver, configures the interface
//!  client ── DELETE /v1/devices/virtio-mmio.5 ─> agent     lets go of the driver
//!  client ── unplug {device} ──> monitor                   slot 5 is empty again
//! ```

use crate::guest::Nic;
use serde::{Deserialize, Serialize};

/// The longest packet, bytes.
pub const MAX_PACKET: usize = 4096;
/// The monitor's control socket in a pod's bundle.
pub const CONTROL_SOCKET: &str = "control.sock";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Makes a device of an empty slot.
    Plug(Plug),
    /// Empties a slot. The guest must have let go of the device.
    Unplug {
        /// What [`Reply::Plugged`] called it.
        device: String,
    },
    /// Whether the monitor is there, and how many slots are empty.
    State {},
}

/// A device to plug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Plug {
    /// An interface. Comes with one descriptor of /dev/net/tun, opened for reading and writing with `O_NONBLOCK`.
    Net {
        /// The tap that the monitor attaches it to, which exists and belongs to the monitor's uid; empty when the
        /// descriptor is attached already (with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`).
        #[serde(default)]
        tap: String,
        /// The guest's MAC address.
        mac: String,
    },
    /// A disk. Comes with one descriptor of a file or block device, opened for reading and, if so, writing.
    Disk {
        /// The guest cannot write.
        read_only: bool,
    },
}

/// The monitor's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The slot is a device.
    Plugged {
        /// Its name in the guest, below /sys/bus/platform/devices.
        device: String,
    },
    /// The slot is empty.
    Unplugged {},
    /// The monitor is there.
    State {
        /// How many slots are empty.
        empty_slots: usize,
    },
    /// Nothing has changed.
    Error {
        /// Why.
        message: String,
    },
}

/// The body of `POST /v1/devices` to the guest's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Appeared {
    /// The device's name, from [`Reply::Plugged`].
    pub device: String,
    /// How to configure it when it is an interface.
    #[serde(default)]
    pub nic: Option<Nic>,
}

/// The agent's answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The interface's name in the guest: `eth1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The disk's name in the guest: `vdc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_the_page_of_interfaces_says() {
        let net = Request::Plug(Plug::Net { tap: "t0".into(), mac: "02:00:00:00:00:01".into() });
        let text = r#"{"plug":{"net":{"tap":"t0","mac":"02:00:00:00:00:01"}}}"#;
        assert_eq!(serde_json::to_string(&net).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), net);
        let unplug = Request::Unplug { device: "virtio-mmio.5".into() };
        assert_eq!(serde_json::to_string(&unplug).unwrap(), r#"{"unplug":{"device":"virtio-mmio.5"}}"#);
        assert!(serde_json::from_str::<Request>(r#"{"plug":{"net":{"mac":"x","more":1}}}"#).is_err());
        let reply: Reply = serde_json::from_str(r#"{"plugged":{"device":"virtio-mmio.5"}}"#).unwrap();
        assert_eq!(reply, Reply::Plugged { device: "virtio-mmio.5".into() });
    }
}
