//! A running pod's interfaces: what the guest started with, and what is plugged and unplugged as networks are connected and
//! disconnected. [`changes`] compares, the rest speaks with the monitor's control socket and the guest's agent.
//!
//! An interface of the start sits in a slot that cannot be emptied: the guest lets go of it, and its tap goes with the
//! endpoint. Must not: make or remove taps.

use crate::agent;
use crate::world::View;
use anyhow::{Context as _, bail};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zone::EndpointId;
use zone::bundle::Bundle;
use zone::control::{Appeared, CONTROL_SOCKET, MAX_PACKET, Plug, Reply, Request};
use zone::endpoint::EndpointStatus;
use zone::guest::Nic;
use zone::pod::Interface;

/// Slots before the bundle's disks: vsock and rng.
const FIXED_SLOTS: usize = 2;
/// A monitor that does not answer for so long will not.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be done, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The guest shall let go of it.
    Detach(EndpointId, Interface),
    /// It shall be plugged.
    Attach(EndpointId, Box<EndpointStatus>),
    /// The default route shall go there now.
    Default(EndpointId, Interface, Box<EndpointStatus>),
}

/// The interfaces that a bundle starts with, by the endpoints whose taps they are.
pub fn of_bundle(bundle: &Bundle, view: &View) -> BTreeMap<EndpointId, Interface> {
    let mut found = BTreeMap::new();
    for (index, net) in bundle.nets.iter().enumerate() {
        let Some(id) = view.endpoints.iter().find(|(_, e)| e.status.tap == net.tap).map(|(id, _)| id.clone()) else {
            continue;
        };
        let device = format!("virtio-mmio.{}", FIXED_SLOTS + bundle.disks.len() + index);
        found.insert(id, Interface { device, plugged: false, default_route: index == 0, error: None });
    }
    found
}

/// The first difference between what the guest has and the pod's endpoints. What failed is not tried again.
pub fn changes(view: &View, have: &BTreeMap<EndpointId, Interface>) -> Option<Change> {
    let wanted = &view.pod.spec.endpoints;
    if let Some((id, interface)) = have.iter().find(|(id, _)| !wanted.contains(id)) {
        return Some(Change::Detach(id.clone(), interface.clone()));
    }
    let ready = |id: &EndpointId| view.endpoints.get(id).map(|e| &e.status).filter(|s| s.ready && !s.tap.is_empty());
    for id in wanted.iter().filter(|id| !have.contains_key(id)) {
        if let Some(status) = ready(id) {
            return Some(Change::Attach(id.clone(), Box::new(status.clone())));
        }
    }
    let sound = |id: &&EndpointId| have.get(id).is_some_and(|i| i.error.is_none());
    let first = wanted.iter().find(sound)?;
    let interface = have.get(first).filter(|i| !i.default_route)?;
    Some(Change::Default(first.clone(), interface.clone(), Box::new(ready(first)?.clone())))
}

/// How the guest configures an endpoint's interface.
pub fn nic(status: &EndpointStatus, default_route: bool) -> Option<Nic> {
    let (ipv4, gateway) = (status.ipv4?, status.gateway?);
    Some(Nic { ipv4, prefix: status.prefix, gateway, gateway_mac: status.gateway_mac.clone(), default_route })
}

/// Plugs an interface and has the guest configure it; the device's name.
///
/// # Errors
/// Why not, for people; then the slot is empty again.
pub async fn attach(run: &Path, status: &EndpointStatus, default_route: bool) -> anyhow::Result<String> {
    let request = Request::Plug(Plug::Net { tap: status.tap.clone(), mac: status.mac.clone() });
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc_nonblock()).open("/dev/net/tun");
    let tun = tun.context("cannot open /dev/net/tun")?;
    let device = match ask(run, request, Some(tun)).await? {
        Reply::Plugged { device } => device,
        other => bail!("the monitor answers {other:?}"),
    };
    let appeared = appear(run, &device, status, default_route).await;
    if let Err(error) = appeared {
        detach(run, &device, true).await;
        return Err(error);
    }
    Ok(device)
}

/// Has the guest configure an interface, also once more.
///
/// # Errors
/// What the agent says.
pub async fn appear(run: &Path, device: &str, status: &EndpointStatus, default_route: bool) -> anyhow::Result<()> {
    let body = Appeared { device: device.to_owned(), nic: nic(status, default_route) };
    let socket = run.join("agent.sock");
    agent::request(&socket, hyper::Method::POST, "/v1/devices", serde_json::to_vec(&body)?).await
}

/// Has the guest let go of an interface and empties its slot. A guest that holds on finds an empty window.
pub async fn detach(run: &Path, device: &str, plugged: bool) {
    let path = format!("/v1/devices/{device}");
    if let Err(error) = agent::request(&run.join("agent.sock"), hyper::Method::DELETE, &path, Vec::new()).await {
        tracing::warn!(device, error = format!("{error:#}"), "the guest does not let go of an interface");
    }
    if plugged && let Err(error) = ask(run, Request::Unplug { device: device.to_owned() }, None).await {
        tracing::warn!(device, error = format!("{error:#}"), "an interface cannot be unplugged");
    }
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

async fn ask(run: &Path, request: Request, file: Option<File>) -> anyhow::Result<Reply> {
    let path = run.join(CONTROL_SOCKET);
    let reply = tokio::task::spawn_blocking(move || talk(&path, &request, file.as_ref())).await??;
    match reply {
        Reply::Error { message } => bail!("{message}"),
        reply => Ok(reply),
    }
}

fn talk(path: &PathBuf, request: &Request, file: Option<&File>) -> anyhow::Result<Reply> {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(&socket, &[IoSlice::new(&serde_json::to_vec(request)?)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answer = vec![0; MAX_PACKET];
        let (got, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(got);
        Ok(answer)
    };
    let answer = exchange().with_context(|| format!("cannot talk to the monitor at {}", path.display()))?;
    serde_json::from_slice(&answer).context("the monitor's answer is none")
}
