//! `cradle`: our monitor beside QEMU's microvm machine, from exec to the container's first byte leaving the monitor.
//!
//! Both boot the same kernel, initramfs, disk and spec with one vCPU; the guest's agent sends its log over vsock: to our
//! monitor's log file (seen by inotify), or through vhost-vsock to this program.

use crate::guest::{Guest, LINE, MEMORY_MIB, VCPUS, is_line};
use crate::samples::{self, About};
use crate::vsock::Listener;
use crate::{initramfs, memory};
use anyhow::{Context as _, Result, bail, ensure};
use inotify::{Inotify, WatchMask};
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zone::bundle::{AGENT_PORT, BUNDLE_FILE, Bundle, Disk, Extent, LOG_PORT, LogFiles, READY_PORT};
use zone::log::{LogReader, Record};

/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The context id of the peer's guest.
const GUEST_CID: u32 = 42;

/// Runs of both monitors in turns, then their memory.
///
/// # Errors
/// When either cannot run.
pub fn run(runs: u32) -> Result<()> {
    let guest = Guest::make()?;
    let template = Ours::make_template(&guest).context("kcradle template")?;
    let ours = Ours { guest: &guest, template: Some(template) };
    let cold = Ours { guest: &guest, template: None };
    let peer = Peer::new(&guest)?;
    let [mut first, mut exit, mut booted] = [(); 3].map(|()| (Vec::new(), Vec::new()));
    for _ in 0..runs {
        let (line, end) = ours.time().context("kcradle")?;
        first.0.push(line);
        exit.0.push(end);
        booted.0.push(cold.time().context("kcradle without a template")?.0);
        let (line, end) = peer.time().context("QEMU microvm")?;
        first.1.push(line);
        booted.1.push(line);
        exit.1.push(end);
    }
    let payload = "busybox echo hello, EROFS image, tmpfs upper";
    let about = |metric, unit| About {
        bench: "cradle",
        metric,
        unit,
        peer: &peer.version,
        payload,
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
    };
    // Ours goes on from a template, as every pod of the zone does; `booted` is without one.
    samples::print(about("first_byte_ms_p50", "ms"), &first.0, &first.1)?;
    samples::print_percentile(about("first_byte_ms_p99", "ms"), 99, &first.0, &first.1)?;
    samples::print(about("first_byte_booted_ms_p50", "ms"), &booted.0, &booted.1)?;
    samples::print(about("exit_ms_p50", "ms"), &exit.0, &exit.1)?;
    let (own, other) = (ours.memory()?, peer.memory()?);
    let kib = |value: u64| [value as f64];
    samples::print(about("vmm_pss_kib", "KiB"), &kib(own.pss_kib), &kib(other.pss_kib))?;
    samples::print(about("vmm_private_dirty_kib", "KiB"), &kib(own.private_dirty_kib), &kib(other.private_dirty_kib))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

struct Ours<'a> {
    guest: &'a Guest,
    template: Option<PathBuf>,
}

impl Ours<'_> {
    /// What `pods` has made beforehand, once for all guests of a size.
    fn make_template(guest: &Guest) -> Result<PathBuf> {
        let folder = Ours { guest, template: None }.bundle(&[])?;
        let made = Command::new(Guest::artefact("kcradle")?).arg("template").arg(&folder).output();
        let made = made.context("start kcradle")?;
        ensure!(made.status.success(), "it ended with {}: {}", made.status, String::from_utf8_lossy(&made.stderr));
        let place = guest.folder.join("template");
        std::fs::rename(&folder, &place).context("move the template")?;
        Ok(place)
    }

    fn bundle(&self, args: &[&str]) -> Result<PathBuf> {
        let folder = self.guest.folder.join("ours");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).context("make the bundle")?;
        for log in ["log.0", "log.1"] {
            std::fs::write(folder.join(log), "").context("make a log file")?;
        }
        std::fs::write(folder.join("spec.json"), Guest::spec(args)?).context("write the spec")?;
        let bundle = Bundle {
            kvm: None,
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            kernel: Guest::artefact("vmlinux")?,
            initramfs: Guest::artefact("initramfs.cpio")?,
            guest_spec: folder.join("spec.json"),
            cmdline: String::new(),
            disks: vec![Disk {
                extents: vec![Extent { path: self.guest.disk.clone(), offset: 0, len: 0 }],
                read_only: true,
                ..Disk::default()
            }],
            nets: Vec::new(),
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

    fn start(&self, args: &[&str]) -> Result<(Child, Instant, f64)> {
        let folder = self.bundle(args)?;
        let mut inotify = Inotify::init().context("start inotify")?;
        for log in ["log.0", "log.1"] {
            inotify.watches().add(folder.join(log), WatchMask::MODIFY).context("watch a log file")?;
        }
        let mut log = LogReader::new([folder.join("log.0"), folder.join("log.1")]);
        let started = Instant::now();
        let mut child = Command::new(Guest::artefact("kcradle")?)
            .arg("run")
            .arg(&folder)
            .stdin(Stdio::null())
            .spawn()
            .context("start kcradle")?;
        let mut buffer = [0u8; 4096];
        loop {
            // A monitor that dies closes nothing here: the wait is bounded by looking at it after each event or a while.
            if log.read().context("read the log")?.iter().any(is_line) {
                return Ok((child, started, ms(started)));
            }
            if let Some(status) = child.try_wait().context("look at kcradle")? {
                bail!("it ended with {status} before the line came");
            }
            ensure!(started.elapsed() < PATIENCE, "no line came in {PATIENCE:?}");
            wait_readable(&inotify)?;
            let _ = inotify.read_events(&mut buffer);
        }
    }

    fn time(&self) -> Result<(f64, f64)> {
        let (mut child, started, line) = self.start(&["echo", LINE])?;
        let status = child.wait().context("wait for kcradle")?;
        ensure!(status.success(), "it ended with {status}");
        Ok((line, ms(started)))
    }

    fn memory(&self) -> Result<memory::Own> {
        let (mut child, _, _) = self.start(&["sh", "-c", "echo hello; sleep 1000"])?;
        let own = memory::own(child.id(), u64::from(MEMORY_MIB) * 1024);
        let _ = child.kill();
        let _ = child.wait();
        own
    }
}

fn wait_readable(inotify: &Inotify) -> Result<()> {
    use std::os::fd::AsFd as _;
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(inotify.as_fd(), rustix::event::PollFlags::IN)];
    let while_ = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&while_)).context("wait for the log")?;
    Ok(())
}

struct Peer<'a> {
    guest: &'a Guest,
    log: Listener,
    ready: Listener,
    version: String,
}

impl<'a> Peer<'a> {
    fn new(guest: &'a Guest) -> Result<Self> {
        let _ = Command::new("modprobe").arg("vhost_vsock").status();
        let shown = Command::new("qemu-system-x86_64").arg("--version").output().context("start QEMU")?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let number = text.split_whitespace().nth(3).unwrap_or("?");
        Ok(Self {
            guest,
            log: Listener::bind(LOG_PORT)?,
            ready: Listener::bind(READY_PORT)?,
            version: format!("QEMU {number} microvm"),
        })
    }

    fn start(&self, args: &[&str]) -> Result<(Child, Instant, f64, BufReader<std::fs::File>)> {
        let agent = std::fs::read(Guest::artefact("initramfs.cpio")?).context("read the initramfs")?;
        let initrd = self.guest.folder.join("peer.cpio");
        let name = zone::guest::SPEC_FILE.trim_start_matches('/');
        std::fs::write(&initrd, initramfs::with_file(&agent, name, &Guest::spec(args)?))
            .context("write the initramfs")?;
        let mut command = self.command(&initrd)?;
        let started = Instant::now();
        let mut child = command.spawn().context("start QEMU")?;
        let mut log = BufReader::new(self.log.accept()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if log.read_until(b'\n', &mut line).context("read the guest's log")? == 0 {
                let _ = child.kill();
                bail!("its guest closed the log before the line came (agent's port {AGENT_PORT})");
            }
            if serde_json::from_slice::<Record>(&line).is_ok_and(|record| is_line(&record)) {
                return Ok((child, started, ms(started), log));
            }
        }
    }

    fn command(&self, initrd: &std::path::Path) -> Result<Command> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,x-option-roms=off"]);
        command.args([
            "-enable-kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
        ]);
        command.arg("-m").arg(format!("{MEMORY_MIB}M"));
        command.arg("-kernel").arg(Guest::artefact("vmlinux")?).arg("-initrd").arg(initrd);
        command.args(["-append", "reboot=t panic=-1 no_timer_check tsc=reliable random.trust_cpu=on rcupdate.rcu_expedited=1 quiet 8250.nr_uarts=0"]);
        command
            .arg("-drive")
            .arg(format!("id=image,if=none,format=raw,readonly=on,file={}", self.guest.disk.display()));
        command.args(["-device", "virtio-blk-device,drive=image"]);
        command.arg("-device").arg(format!("vhost-vsock-device,guest-cid={GUEST_CID}"));
        command.args(["-device", "virtio-rng-device"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }

    fn time(&self) -> Result<(f64, f64)> {
        let (mut child, started, line, mut log) = self.start(&["echo", LINE])?;
        // The agent waits until its log is taken to the end.
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut log, &mut rest).context("read the guest's log to its end")?;
        drop(log);
        let status = child.wait().context("wait for QEMU")?;
        ensure!(status.success(), "it ended with {status}");
        let end = ms(started);
        self.drain_ready();
        Ok((line, end))
    }

    fn memory(&self) -> Result<memory::Own> {
        let (mut child, _, _, _log) = self.start(&["sh", "-c", "echo hello; sleep 1000"])?;
        let own = memory::own(child.id(), u64::from(MEMORY_MIB) * 1024);
        let _ = child.kill();
        let _ = child.wait();
        own
    }

    /// Takes the "ready" connections of runs that are over, so that they do not fill the queue.
    fn drain_ready(&self) {
        while self.ready.is_waiting() {
            let _ = self.ready.accept();
        }
    }
}
