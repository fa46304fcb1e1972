//! The guest that both monitors boot: the same kernel, initramfs, image disk and spec.

use crate::run::Args;
use anyhow::{Context as _, Result, ensure};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use zone::guest::{GuestContainer, GuestSpec, Nic, Upper};
use zone::log::Record;

/// Virtual CPUs.
pub const VCPUS: u8 = 1;
/// Guest memory, MiB.
pub const MEMORY_MIB: u32 = 128;
/// What the container prints.
pub const LINE: &str = "hello";

/// The host's address on the guest's only link, and its MAC address.
pub const HOST: (Ipv4Addr, &str) = (Ipv4Addr::new(10, 99, 0, 1), "02:00:0a:63:00:01");
/// The guest's.
pub const GUEST: (Ipv4Addr, &str) = (Ipv4Addr::new(10, 99, 0, 2), "02:00:0a:63:00:02");

/// Where the artefacts lie.
#[derive(Debug)]
pub struct Guest {
    /// A folder in memory.
    pub folder: PathBuf,
    /// The image, EROFS.
    pub disk: PathBuf,
    /// A second disk.
    pub data: Option<PathBuf>,
    /// A tap, with the addresses [`HOST`] and [`GUEST`].
    pub tap: Option<&'static str>,
}

impl Guest {
    /// Makes the image disk.
    ///
    /// # Errors
    /// When busybox or mkfs.erofs is missing.
    pub fn make() -> Result<Self> {
        Self::with("/run/kraud-bench", |_| Ok(()))
    }

    /// Makes the image disk in a folder, with what `add` puts into the image.
    ///
    /// # Errors
    /// When busybox or mkfs.erofs is missing.
    pub fn with(folder: &str, add: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let folder = PathBuf::from(folder);
        let _ = std::fs::remove_dir_all(&folder);
        let root = folder.join("root");
        for name in ["bin", "etc", "tmp", "dev", "proc", "sys"] {
            std::fs::create_dir_all(root.join(name)).context("make the image's folders")?;
        }
        std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).context("copy busybox")?;
        for applet in ["sh", "echo", "sleep"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).context("link an applet")?;
        }
        add(&root)?;
        let disk = folder.join("image.erofs");
        let made =
            Command::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(&root).output().context("start mkfs.erofs")?;
        ensure!(made.status.success(), "mkfs.erofs failed: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Self { folder, disk, data: None, tap: None })
    }

    /// What the agent is told, as JSON.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn spec(&self, args: Args) -> Result<Vec<u8>> {
        // Only what asks the kernel for its messages, or reads a disk, needs more than any container has.
        let privileged = args.wants_messages() || self.data.is_some();
        let container = serde_json::json!({
            "id": "0".repeat(64), "image_disk": 0, "upper": {"type": "tmpfs"}, "args": args.0, "privileged": privileged, "env": ["PATH=/bin"],
        });
        let container: GuestContainer = serde_json::from_value(container).context("build the container's spec")?;
        debug_assert_eq!(container.upper, Upper::Tmpfs);
        let spec = GuestSpec {
            run: 1,
            now_ns: zone::time::now_ns(),
            hostname: "bench".into(),
            nics: self.tap.map(|_| nic()).into_iter().collect(),
            containers: vec![container],
            ..GuestSpec::default()
        };
        serde_json::to_vec(&spec).context("encode the spec")
    }

    /// One of the artefacts that pods run from: of the signed image that `pods` unpacked last.
    ///
    /// # Errors
    /// When `pods` has not unpacked any.
    pub fn artefact(name: &str) -> Result<PathBuf> {
        let versions = std::fs::read_dir(zone::paths::CRADLE).context("look for the monitor's image")?;
        let mut found: Vec<_> = versions
            .flatten()
            .map(|v| v.path().join("cradle").join(name))
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .collect();
        found.sort();
        found.pop().map(|(_, path)| path).with_context(|| format!("there is no {name} in {}", zone::paths::CRADLE))
    }
}

fn nic() -> Nic {
    Nic { ipv4: GUEST.0, prefix: 24, gateway: HOST.0, gateway_mac: HOST.1.into(), default_route: true }
}

/// Whether the record is the line.
#[must_use]
pub fn is_line(record: &Record) -> bool {
    record.data.as_output().is_some_and(|(_, bytes)| bytes.starts_with(LINE.as_bytes()))
}
