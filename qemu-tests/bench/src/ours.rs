//! Our monitor: `kcradle run` of a bundle, with a template that was made before or without. Its log file is watched by inotify.

use crate::guest::{GUEST, Guest, MEMORY_MIB, VCPUS};
use crate::run::{Args, Channel, Monitor, PATIENCE, Run, Seen};
use anyhow::{Context as _, Result, bail, ensure};
use inotify::{Inotify, WatchMask};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::Instant;
use zone::bundle::{BUNDLE_FILE, Bundle, Disk, Extent, LogFiles, Net};
use zone::log::LogReader;

/// Our monitor.
pub struct Ours<'a> {
    /// What it boots.
    pub guest: &'a Guest,
    /// What it goes on from instead.
    pub template: Option<PathBuf>,
}

impl<'a> Ours<'a> {
    /// With a template, as `pods` has it made beforehand, once for all guests of a size.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn with_template(guest: &'a Guest) -> Result<Self> {
        let folder = Self { guest, template: None }.bundle(Args::ECHO, 0)?;
        let made = Command::new(Guest::artefact("kcradle")?).arg("template").arg(&folder).output();
        let made = made.context("start kcradle")?;
        ensure!(made.status.success(), "it ended with {}: {}", made.status, String::from_utf8_lossy(&made.stderr));
        let place = guest.folder.join("template");
        std::fs::rename(&folder, &place).context("move the template")?;
        Ok(Self { guest, template: Some(place) })
    }

    fn bundle(&self, args: Args, number: u32) -> Result<PathBuf> {
        let folder = self.guest.folder.join(format!("ours-{number}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).context("make the bundle")?;
        for log in ["log.0", "log.1"] {
            std::fs::write(folder.join(log), "").context("make a log file")?;
        }
        std::fs::write(folder.join("spec.json"), self.guest.spec(args)?).context("write the spec")?;
        let extent = |path: PathBuf| Extent { path, offset: 0, len: 0 };
        let (image, data) = (extent(self.guest.disk.clone()), self.guest.data.clone().map(extent));
        let disk = |extent| Disk { extents: vec![extent], read_only: true, ..Disk::default() };
        let net = |tap: &str| Net { tap: tap.into(), mac: GUEST.1.into(), ..Net::default() };
        let bundle = Bundle {
            kvm: None,
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            kernel: Guest::artefact("vmlinux")?,
            initramfs: Guest::artefact("initramfs.cpio")?,
            guest_spec: folder.join("spec.json"),
            cmdline: args.cmdline().into(),
            disks: [image].into_iter().chain(data).map(disk).collect(),
            nets: self.guest.tap.map(net).into_iter().collect(),
            shares: Vec::new(),
            agent: folder.join("agent.sock"),
            log: Some(LogFiles { files: [folder.join("log.0"), folder.join("log.1")], max_bytes: 1 << 20 }),
            template: self.template.clone(),
            console: None,
            control: None,
            spare_slots: 0,
        };
        std::fs::write(folder.join(BUNDLE_FILE), serde_json::to_vec(&bundle)?).context("write the bundle")?;
        Ok(folder)
    }
}

impl Monitor for Ours<'_> {
    fn program(&self) -> &'static str {
        "kcradle"
    }

    fn agent(&self, number: u32) -> Result<Box<dyn Channel>> {
        let socket = self.guest.folder.join(format!("ours-{number}")).join("agent.sock");
        Ok(Box::new(UnixStream::connect(socket).context("connect to the agent")?))
    }

    fn start(&self, args: Args, number: u32, together: &Barrier) -> Result<Run> {
        let folder = self.bundle(args, number)?;
        let mut inotify = Inotify::init().context("start inotify")?;
        for log in ["log.0", "log.1"] {
            inotify.watches().add(folder.join(log), WatchMask::MODIFY).context("watch a log file")?;
        }
        let mut log = LogReader::new([folder.join("log.0"), folder.join("log.1")]);
        let mut command = Command::new(Guest::artefact("kcradle")?);
        command.arg("run").arg(&folder).stdin(Stdio::null());
        together.wait();
        let started = Instant::now();
        let mut child = command.spawn().context("start kcradle")?;
        let mut buffer = [0u8; 4096];
        let mut seen = Seen::new(started);
        loop {
            log.read().context("read the log")?.iter().for_each(|record| seen.take(record));
            if seen.is_complete() {
                return Ok(Run { child, started, seen, log: None, files: Some(log) });
            }
            // A monitor that dies closes nothing here: the wait is bounded by looking at it after each event or a while.
            if let Some(status) = child.try_wait().context("look at kcradle")? {
                bail!("it ended with {status} before the line came");
            }
            if started.elapsed() > PATIENCE {
                let _ = child.kill();
                bail!("no line came in {PATIENCE:?}");
            }
            wait_readable(&inotify)?;
            let _ = inotify.read_events(&mut buffer);
        }
    }
}

fn wait_readable(inotify: &Inotify) -> Result<()> {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(inotify.as_fd(), rustix::event::PollFlags::IN)];
    let while_ = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&while_)).context("wait for the log")?;
    Ok(())
}
