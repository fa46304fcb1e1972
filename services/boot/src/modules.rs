//! Which modules a machine's hardware needs before its disk can be read, and loading them.
//!
//! The lists are the image's (`image-recipes/initrd/modules.list`, put into files by the builder): a group each, in the order of loading.

use rustix::io::Errno;
use std::fs::{self, File};
use std::path::Path;

/// The groups that a PCI device asks for, by what sysfs says of it (`0x1af4`, `0x1042`, class `0x010000`).
#[must_use]
pub fn group_of(vendor: &str, device: &str, class: &str) -> Option<&'static str> {
    match (vendor, device, class) {
        ("0x1af4", "0x1004" | "0x1048", _) => Some("virtio-scsi"),
        ("0x1af4", "0x1001" | "0x1042", _) => Some("virtio"),
        (_, _, "0x010802") => Some("nvme"),
        (_, _, "0x010601") => Some("ahci"),
        (_, _, "0x0c0330") => Some("usb"),
        _ => None,
    }
}

/// The order in which disks are looked for: those that answer at once, then those of other controllers.
const ORDER: [&str; 5] = ["virtio", "nvme", "virtio-scsi", "ahci", "usb"];

/// The groups of all PCI devices, each once, the likeliest first.
#[must_use]
pub fn groups(devices: &Path) -> Vec<&'static str> {
    let mut found = Vec::new();
    for device in fs::read_dir(devices).into_iter().flatten().flatten() {
        let attribute = |name: &str| fs::read_to_string(device.path().join(name)).unwrap_or_default();
        let (vendor, product, class) = (attribute("vendor"), attribute("device"), attribute("class"));
        if let Some(group) = group_of(vendor.trim(), product.trim(), class.trim())
            && !found.contains(&group)
        {
            found.push(group);
        }
    }
    found.sort_by_key(|group| ORDER.iter().position(|known| known == group));
    found
}

/// Loads a group; gives what was wrong with each module that could not be loaded. A group that is not there has no modules.
#[must_use]
pub fn load(dir: &Path, group: &str) -> Vec<String> {
    let list = fs::read_to_string(dir.join(format!("{group}.list"))).unwrap_or_default();
    let mut troubles = Vec::new();
    for name in list.lines() {
        let loaded = File::open(dir.join(name)).map_err(|error| error.to_string()).and_then(|file| {
            match rustix::system::finit_module(&file, c"", 0) {
                // What is for another processor says that there is no device.
                Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        if let Err(error) = loaded {
            troubles.push(format!("{name}: {error}"));
        }
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_name_the_group_that_drives_them_and_others_none() {
        for (vendor, device, class, group) in [
            ("0x1af4", "0x1042", "0x010000", Some("virtio")),
            ("0x1af4", "0x1048", "0x010000", Some("virtio-scsi")),
            ("0x1af4", "0x1041", "0x020000", None),
            ("0x144d", "0xa808", "0x010802", Some("nvme")),
            ("0x8086", "0x2922", "0x010601", Some("ahci")),
            ("0x8086", "0x1e31", "0x0c0330", Some("usb")),
        ] {
            assert_eq!(group_of(vendor, device, class), group, "{vendor} {device} {class}");
        }
    }

    #[test]
    fn each_group_is_named_once_and_the_likeliest_first() {
        let temp = tempfile::tempdir().unwrap();
        let virtio = ["0x1af4\n", "0x1042\n", "0x010000\n"];
        for (name, texts) in [("0", ["0x8086\n", "0x2922\n", "0x010601\n"]), ("1", virtio), ("2", virtio)] {
            let dir = temp.path().join(name);
            fs::create_dir(&dir).unwrap();
            for (file, text) in ["vendor", "device", "class"].iter().zip(texts) {
                fs::write(dir.join(file), text).unwrap();
            }
        }
        assert_eq!(groups(temp.path()), ["virtio", "ahci"]);
        assert!(groups(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn a_module_that_is_missing_is_told_and_the_rest_go_on() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("always.list"), "one.ko\ntwo.ko\n").unwrap();
        assert_eq!(load(temp.path(), "always").len(), 2);
        assert!(load(temp.path(), "nvme").is_empty());
    }
}
