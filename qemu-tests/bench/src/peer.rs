//! The peer: QEMU's microvm machine without ACPI and with every option off. The guest's agent sends its log through vhost-vsock.

use crate::guest::{GUEST, Guest, MEMORY_MIB};
use crate::initramfs;
use crate::run::{Args, Channel, Monitor, PATIENCE, Run, Seen};
use crate::vsock::{Listener, connect};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::Instant;
use zone::bundle::{AGENT_PORT, LOG_PORT, READY_PORT};
use zone::log::Record;

/// The context id of the first guest; the others follow.
const FIRST_CID: u32 = 42;
/// The kernel's command line: what our monitor gives, without the devices, which QEMU adds.
const CMDLINE: &str =
    "reboot=t panic=-1 no_timer_check tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1 quiet 8250.nr_uarts=0";

type Waiting = Arc<Mutex<BTreeMap<u32, Sender<File>>>>;

/// QEMU.
pub struct Peer<'a> {
    guest: &'a Guest,
    waiting: Waiting,
    /// What it is, with its version.
    pub version: String,
    /// The kernel carries its network packets.
    pub vhost_net: bool,
}

impl<'a> Peer<'a> {
    /// Finds QEMU and listens for its guests.
    ///
    /// # Errors
    /// When there is no QEMU, or the kernel has no vsock for guests.
    pub fn new(guest: &'a Guest) -> Result<Self> {
        let _ = Command::new("modprobe").arg("vhost_vsock").status();
        let shown = Command::new("qemu-system-x86_64").arg("--version").output().context("start QEMU")?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let number = text.split_whitespace().nth(3).unwrap_or("?").to_owned();
        let waiting = Waiting::default();
        let (log, ready) = (Listener::bind(LOG_PORT)?, Listener::bind(READY_PORT)?);
        let whose = Arc::clone(&waiting);
        std::thread::spawn(move || {
            while let Ok((stream, guest)) = log.accept() {
                if let Some(wants) = whose.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest) {
                    let _ = wants.send(stream);
                }
            }
        });
        // Nobody asks whether a guest answers; the newest connections are kept, so that none is reset while its guest runs.
        std::thread::spawn(move || {
            let mut kept = std::collections::VecDeque::new();
            while let Ok(connection) = ready.accept() {
                kept.push_back(connection);
                if kept.len() > 32 {
                    kept.pop_front();
                }
            }
        });
        let vhost_net = Command::new("modprobe").arg("vhost_net").status().is_ok_and(|status| status.success());
        Ok(Self { guest, waiting, version: format!("QEMU {number} microvm"), vhost_net })
    }

    /// The same with another guest: only one listens for guests.
    #[must_use]
    pub fn with<'b>(&self, guest: &'b Guest) -> Peer<'b> {
        let (waiting, version) = (Arc::clone(&self.waiting), self.version.clone());
        Peer { guest, waiting, version, vhost_net: self.vhost_net }
    }

    fn initrd(&self, args: Args, number: u32) -> Result<PathBuf> {
        let agent = std::fs::read(Guest::artefact("initramfs.cpio")?).context("read the initramfs")?;
        let initrd = self.guest.folder.join(format!("peer-{number}.cpio"));
        let name = zone::guest::SPEC_FILE.trim_start_matches('/');
        let content = initramfs::with_file(&agent, name, &self.guest.spec(args)?);
        std::fs::write(&initrd, content).context("write the initramfs")?;
        Ok(initrd)
    }

    fn command(&self, args: Args, initrd: &Path, cid: u32) -> Result<Command> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off"]);
        command.args(["-enable-kvm", "-cpu", "host", "-smp", "1", "-nodefaults", "-no-user-config", "-nographic"]);
        command.arg("-no-reboot").arg("-m").arg(format!("{MEMORY_MIB}M"));
        command.arg("-kernel").arg(Guest::artefact("vmlinux")?).arg("-initrd").arg(initrd);
        command.arg("-append").arg(format!("{CMDLINE} {}", args.cmdline()).trim_end());
        let drive = format!("id=image,if=none,format=raw,readonly=on,file={}", self.guest.disk.display());
        command.arg("-drive").arg(drive).args(["-device", "virtio-blk-device,drive=image"]);
        if let Some(data) = &self.guest.data {
            let drive = format!("id=data,if=none,format=raw,readonly=on,aio=io_uring,file={}", data.display());
            command.arg("-drive").arg(drive).args(["-device", "virtio-blk-device,drive=data"]);
        }
        if let Some(tap) = self.guest.tap {
            let vhost = if self.vhost_net { "on" } else { "off" };
            command.arg("-netdev").arg(format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost={vhost}"));
            command.arg("-device").arg(format!("virtio-net-device,netdev=net,mac={}", GUEST.1));
        }
        command.arg("-device").arg(format!("vhost-vsock-device,guest-cid={cid}"));
        command.args(["-device", "virtio-rng-device"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }
}

impl Monitor for Peer<'_> {
    fn program(&self) -> &'static str {
        "qemu-system-x86_64"
    }

    fn agent(&self, number: u32) -> Result<Box<dyn Channel>> {
        let begun = Instant::now();
        loop {
            // The agent listens a moment after the line.
            match connect(FIRST_CID + number, AGENT_PORT) {
                Err(_) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
                other => return Ok(Box::new(other?)),
            }
        }
    }

    fn start(&self, args: Args, number: u32, together: &Barrier) -> Result<Run> {
        let initrd = self.initrd(args, number)?;
        let cid = FIRST_CID + number;
        let (sender, streams) = channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(cid, sender);
        let mut command = self.command(args, &initrd, cid)?;
        together.wait();
        let started = Instant::now();
        let mut child = command.spawn().context("start QEMU")?;
        let Ok(stream) = streams.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            bail!("its guest sent no log in {PATIENCE:?}");
        };
        let mut log = BufReader::new(stream);
        let mut seen = Seen::new(started);
        let mut line = Vec::new();
        while !seen.is_complete() {
            line.clear();
            if log.read_until(b'\n', &mut line).context("read the guest's log")? == 0 {
                let _ = child.kill();
                bail!("its guest closed the log before the line came");
            }
            records(&line).iter().for_each(|record| seen.take(record));
        }
        Ok(Run { child, started, seen, log: Some(log), files: None })
    }
}

/// The records in lines of a log.
#[must_use]
pub fn records(lines: &[u8]) -> Vec<Record> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}
