//! `kcradle plug` and `kcradle unplug`: the other end of the control socket, for people and tests.
//!
//! Opens what is to be plugged as the user who calls it, passes it to the monitor, and asks the guest's agent to look.

use crate::bundle;
use crate::virtio::net;
use anyhow::{Context, Result, bail};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};
use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use zone::control::{Appeared, MAX_PACKET, Plug, Reply, Request};

const MAX_ANSWER: u64 = 64 * 1024;

/// What is to be plugged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A tap, the guest's MAC address, and how the guest shall configure it (`zone::guest::Nic` in JSON).
    Net(String, String, Option<String>),
    /// A file, which the guest can write or not.
    Disk(PathBuf, bool),
}

/// Plugs it; gives the agent's answer: what the guest calls it.
///
/// # Errors
/// When it cannot be opened, or monitor or agent refuse.
pub fn plug(dir: &Path, what: &What) -> Result<String> {
    let (plug, file, nic) = match what {
        What::Net(tap, mac, nic) => {
            let nic = nic.as_deref().map(serde_json::from_str).transpose().context("this is no configuration")?;
            (Plug::Net { tap: tap.clone(), mac: mac.clone() }, net::open_tun()?, nic)
        }
        What::Disk(path, read_only) => {
            let file = File::options().read(true).write(!read_only).open(path);
            (
                Plug::Disk { read_only: *read_only },
                file.with_context(|| format!("cannot open {}", path.display()))?,
                None,
            )
        }
    };
    match ask(dir, &Request::Plug(plug), Some(&file))? {
        Reply::Plugged { device } => {
            agent(dir, "POST", "/v1/devices", &serde_json::to_string(&Appeared { device, nic })?)
        }
        other => bail!("the monitor answers {other:?}"),
    }
}

/// Has the guest let go of the device, and unplugs it.
///
/// # Errors
/// When there is no such device. What the agent says does not matter.
pub fn unplug(dir: &Path, device: &str) -> Result<()> {
    let _ = agent(dir, "DELETE", &format!("/v1/devices/{device}"), "");
    match ask(dir, &Request::Unplug { device: device.to_owned() }, None)? {
        Reply::Unplugged {} => Ok(()),
        other => bail!("the monitor answers {other:?}"),
    }
}

fn ask(dir: &Path, request: &Request, file: Option<&File>) -> Result<Reply> {
    let (bundle, names) = bundle::load(dir)?;
    let path = names.path(&bundle.control.context("the bundle has no control socket")?);
    let talk = || -> std::io::Result<Vec<u8>> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = serde_json::to_vec(request)?;
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answer = vec![0; MAX_PACKET];
        let (got, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        answer.truncate(got);
        Ok(answer)
    };
    let answer = talk().with_context(|| format!("cannot talk to the monitor at {}", path.display()))?;
    match serde_json::from_slice(&answer).context("the monitor has gone")? {
        Reply::Error { message } => bail!("{message}"),
        reply => Ok(reply),
    }
}

/// One request to the guest's agent; gives the answer's body.
fn agent(dir: &Path, method: &str, path: &str, body: &str) -> Result<String> {
    let (bundle, names) = bundle::load(dir)?;
    let socket = names.path(&bundle.agent);
    let talk = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = talk().with_context(|| format!("cannot talk to the agent at {}", socket.display()))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the agent has not answered")?;
    if head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
        return Ok(body.to_owned());
    }
    bail!("the agent answers {}", body.trim())
}
