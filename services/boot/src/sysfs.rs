//! Which disk this machine was started from and what is on it, by sysfs alone: udev need not run.

use anyhow::{Context, Result};
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A partition, by its name in the partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The node in /dev.
    pub device: PathBuf,
    /// Its number, from 1.
    pub number: u32,
    /// Bytes.
    pub length: u64,
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name for it.
    pub name: String,
    sysfs: PathBuf,
    /// The root's partition, when the disk was found by it.
    root: Option<PathBuf>,
}

impl Disk {
    /// The disk that the root file system lies on, below dm-verity.
    ///
    /// # Errors
    /// When the root is not on a partition of a disk.
    pub fn of_root() -> Result<Self> {
        let dev = fs::metadata("/").context("cannot look at /")?.st_dev();
        let root = PathBuf::from(format!("/sys/dev/block/{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)));
        let partition = fs::read_dir(root.join("slaves"))
            .with_context(|| format!("cannot read {}/slaves", root.display()))?
            .flatten()
            .map(|slave| slave.path())
            .next()
            .context("the root lies on no partition")?;
        let partition = fs::canonicalize(&partition).context("cannot follow the root's partition")?;
        let disk = Self::at(partition.parent().context("the root's partition is on no disk")?)?;
        // Data or hash tree: the names of both end with the slot.
        Ok(Self { root: Some(partition), ..disk })
    }

    /// The name of the partition that the root, or its hash tree, lies on; it ends with the slot's letter.
    ///
    /// # Errors
    /// When the disk was not found by the root.
    pub fn root_label(&self) -> Result<String> {
        let root = self.root.as_ref().context("this is not the root's disk")?;
        let uevent = fs::read_to_string(root.join("uevent")).context("cannot read the root's partition")?;
        let name = uevent.lines().find_map(|line| line.strip_prefix("PARTNAME="));
        Ok(name.context("the root's partition has no name")?.to_owned())
    }

    /// The disk whose serial number is `serial`, as virtual machines give them.
    #[must_use]
    pub fn with_serial(serial: &str) -> Option<Self> {
        let disks = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
        let mut found = disks.filter(|disk| read(&disk.join("serial")).is_some_and(|s| s == serial));
        found.next().and_then(|path| Self::at(&fs::canonicalize(path).ok()?).ok())
    }

    fn at(sysfs: &Path) -> Result<Self> {
        let name = sysfs.file_name().context("a disk without a name")?.to_string_lossy().into_owned();
        Ok(Self { name, sysfs: sysfs.to_owned(), root: None })
    }

    /// The node in /dev.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        sectors(&self.sysfs)
    }

    /// The partition called `label`.
    #[must_use]
    pub fn partition(&self, label: &str) -> Option<Partition> {
        let wanted = format!("PARTNAME={label}");
        for entry in fs::read_dir(&self.sysfs).ok()?.flatten() {
            let path = entry.path();
            let Some(number) = read(&path.join("partition")) else { continue };
            if fs::read_to_string(path.join("uevent")).is_ok_and(|text| text.lines().any(|line| line == wanted)) {
                let device = Path::new("/dev").join(entry.file_name());
                return Some(Partition { device, number: number.parse().ok()?, length: sectors(&path) });
            }
        }
        None
    }
}

/// sysfs counts in units of 512 bytes, whatever the disk's own are.
fn sectors(sysfs: &Path) -> u64 {
    read(&sysfs.join("size")).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 512
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
