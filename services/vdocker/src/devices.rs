//! Devices that come and go while the guest runs: binds the driver to a slot that the monitor has filled, and lets go of it.
//!
//! The monitor shows an empty slot as a placeholder, which the driver has left alone at the boot; it is looked at again only
//! when it is bound by name. What such a device is called shows below its own folder in /sys.

use crate::http::response::{Answer, Response};
use crate::http::route::{Refusal, refuse};
use crate::net;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use zone::control::{Appeared, Found};

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const DEVICES: &str = "/sys/bus/platform/devices";

/// Binds the driver to the device in a slot, at the start of a guest that was made ready with empty slots.
///
/// # Errors
/// When the driver refuses it.
pub fn bind(slot: u8) -> io::Result<()> {
    fs::write(Path::new(DRIVER).join("bind"), format!("virtio-mmio.{slot}"))
}

/// `POST /v1/devices`: the monitor has plugged a device.
pub fn appeared(wanted: &Appeared) -> Result<Answer, Refusal> {
    let place = place(&wanted.device)?;
    if !place.join("driver").exists() {
        write("bind", &wanted.device)?;
    }
    let found = Found { interface: below(&place, "net"), disk: below(&place, "block") };
    if let Some(nic) = &wanted.nic {
        let Some(interface) = &found.interface else {
            return refuse(409, format!("{} is no interface", wanted.device));
        };
        net::configure_one(interface, nic).or_else(|problem| refuse(500, problem))?;
    }
    Ok(Response::json(200, &found).into())
}

/// `DELETE /v1/devices/{device}`: the monitor is about to unplug it.
pub fn leaves(device: &str) -> Result<Answer, Refusal> {
    if place(device)?.join("driver").exists() {
        write("unbind", device)?;
    }
    Ok(Response::empty(204).into())
}

/// The balloon's slot is the last one, and filled while the containers start: its driver is bound when they have had their time.
/// Without it the guest's free memory stays with it, which is no failure.
pub fn bind_balloon() {
    let number = |name: &str| name.strip_prefix("virtio-mmio.")?.parse::<u32>().ok();
    let Ok(names) = fs::read_dir(DEVICES) else { return };
    let last = names.filter_map(|entry| number(entry.ok()?.file_name().to_str()?)).max();
    if let Some(last) = last {
        let name = format!("virtio-mmio.{last}");
        if !Path::new(DEVICES).join(&name).join("driver").exists() {
            let _ = fs::write(Path::new(DRIVER).join("bind"), name);
        }
    }
}

fn place(device: &str) -> Result<PathBuf, Refusal> {
    let number = device.strip_prefix("virtio-mmio.").unwrap_or_default();
    let place = Path::new(DEVICES).join(device);
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) || !place.exists() {
        return refuse(404, format!("No such device: {device}"));
    }
    Ok(place)
}

fn write(what: &str, device: &str) -> Result<(), Refusal> {
    fs::write(Path::new(DRIVER).join(what), device)
        .or_else(|error| refuse(500, format!("cannot {what} the driver of {device}: {error}")))
}

/// `virtio-mmio.5/virtio3/net/eth1`: the last part, for `net`.
fn below(place: &Path, class: &str) -> Option<String> {
    let first = |dir: &Path, prefix: &str| -> io::Result<Option<PathBuf>> {
        let mut names = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(names.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))))
    };
    let virtio = first(place, "virtio").ok()??;
    let name = first(&virtio.join(class), "").ok()??;
    Some(name.file_name()?.to_string_lossy().into_owned())
}
