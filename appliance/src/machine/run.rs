//! `cargo appliance run` after the build: prepares the machine, starts its supervisor, waits, tells, and stays or leaves.

#![allow(unsafe_code)]

use super::disks::{self, Prepared};
use super::host::{self, Acceleration};
use super::report::{Report, print, say};
use super::state::{Lock, Phase, Plan, Ports, StateDir, Zone};
use super::supervisor::Message;
use super::{lan, qemu, signals};
use crate::build::{Built, Tools};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Return when the zone answers.
    pub detach: bool,
    /// MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u16,
    /// The pool disk's size, or with `one_disk` that of the only one.
    pub disk_gib: Option<u32>,
    /// A new zone has its pool on the disk that it starts from.
    pub one_disk: bool,
    /// Forget the zone that was.
    pub fresh: bool,
    /// A port for the web page.
    pub web_port: Option<u16>,
    /// A port for the Docker API.
    pub docker_port: Option<u16>,
    /// Never wait for the disk.
    pub unsafe_cache: bool,
    /// How long the zone may take to answer, seconds.
    pub deadline_s: u64,
    /// The guest's journal also goes to `serial.log`.
    pub console_journal: bool,
    /// A network of its own instead of forwards.
    pub lan: bool,
    /// Firmware with Secure Boot; new disks have it in setup mode.
    pub secure_boot: bool,
}

/// What is booted, and with what.
#[derive(Clone, Debug)]
pub struct Image {
    /// The raw disk image.
    pub file: PathBuf,
    /// Its hash.
    pub sha256: String,
    /// UEFI firmware code.
    pub ovmf_code: PathBuf,
    /// UEFI variables, to be copied.
    pub ovmf_vars: PathBuf,
    /// QEMU is in here.
    pub tools: Tools,
}

impl From<Built> for Image {
    fn from(built: Built) -> Self {
        let Built { image, sha256, ovmf_code, ovmf_vars, tools, .. } = built;
        Self { file: image, sha256, ovmf_code, ovmf_vars, tools }
    }
}

/// The image of the last zone, which its disks lie over.
///
/// # Errors
/// When there was no zone, or the builder's cache no longer has the programs that it ran with.
pub fn last_image(dir: &StateDir) -> Result<Image> {
    let plan: Option<Plan> = dir.read_json("plan.json")?;
    let sha256 = disks::image_of(dir)?;
    let (Some(plan), Some(sha256)) = (plan, sha256) else {
        bail!("there is no zone to start again in {}: begin one with `cargo appliance run`", dir.path().display());
    };
    let ovmf_vars = plan.ovmf_code.with_file_name("OVMF_VARS_4M.fd");
    if !plan.ovmf_code.is_file() || !ovmf_vars.is_file() {
        bail!(
            "the programs that the last zone ran with are not in {} any more: `cargo appliance run` makes them anew",
            plan.tools.display()
        );
    }
    let (ovmf_code, tools) = (plan.ovmf_code, Tools::new(plan.tools));
    Ok(Image { file: dir.file(disks::BASE), sha256, ovmf_code, ovmf_vars, tools })
}

/// Where a zone answers when nobody says otherwise.
const FIRST_PORTS: Ports = Ports { web: 8443, docker: 2376, door: ::door::PORT };
/// The least space that a zone's disks are started with.
const MIN_SPACE_MIB: u64 = 4096;
/// How often the console's last line is shown while the zone boots.
const REFRESH: Duration = Duration::from_millis(500);

enum Event {
    Signal,
    Message(Message),
    SupervisorGone,
}

struct Supervised {
    child: Child,
    /// Its end stops the zone.
    leash: Option<ChildStdin>,
    inbox: Receiver<Event>,
}

/// Refuses early what would fail after a long build.
///
/// # Errors
/// When a zone runs already, a port is taken, or there is no room for a zone.
pub fn check(dir: &StateDir, options: &Options) -> Result<()> {
    alone(dir)?;
    if options.lan {
        lan::check()?;
    }
    if options.web_port.is_some() && options.web_port == options.docker_port {
        bail!("--web-port and --docker-port are the same port: give them two");
    }
    ports(options, FIRST_PORTS)?;
    host::check_memory(options.memory_mib)?;
    host::check_space(dir.path(), MIN_SPACE_MIB)
}

/// Nobody else begins a zone here for as long as the result lives.
fn alone(dir: &StateDir) -> Result<Lock> {
    dir.try_lock()?.with_context(|| {
        let pid = dir.holder().ok().flatten().map(|pid| format!(" (process {pid})")).unwrap_or_default();
        format!(
            "a zone runs on this computer already{pid}: use it (`cargo appliance status`), or end it with `cargo appliance stop`"
        )
    })
}

/// Boots the image and waits until the zone answers. In the foreground it then stays until the zone ends.
///
/// # Errors
/// What kept the zone from starting or answering.
pub fn run(dir: &StateDir, image: &Image, options: &Options) -> Result<()> {
    let plan = plan(dir, image, options)?;
    // Another one may have begun while this one was built, and its disks are in use.
    let alone = alone(dir)?;
    match disks::prepare(dir, image, options)? {
        Prepared::Kept => say("  the zone goes on with the disks it has (`--fresh` makes new ones)"),
        Prepared::New => {}
        Prepared::PutAside => say(&format!(
            "  the image is another one than before: a new zone begins; the disks of the one before are in {}",
            dir.file("previous").display()
        )),
    }
    dir.write_json("plan.json", &plan)?;
    drop(alone);
    let started = Instant::now();
    let mut supervised = spawn(dir, options.detach)?;
    let answered = wait(dir, &mut supervised, started);
    match answered {
        Ok(true) => tell(dir, &dir.require_running()?, started),
        Ok(false) => return finish(supervised),
        Err(error) if dir.holder()?.is_some() => {
            let error = error
                .context("the zone does not answer; its machine still runs (`cargo appliance exec`, `logs`, `stop`)");
            if options.detach {
                return Err(error);
            }
            say(&format!("{error:#}\nCtrl-C ends it."));
        }
        Err(error) => return Err(error),
    }
    if options.detach {
        return Ok(());
    }
    stay(supervised)
}

fn plan(dir: &StateDir, image: &Image, options: &Options) -> Result<Plan> {
    let before: Option<Plan> = dir.read_json("plan.json").unwrap_or(None);
    let before = before.filter(|plan| !plan.lan).map_or(FIRST_PORTS, |plan| plan.ports);
    let ports = ports(options, before)?;
    let acceleration = host::acceleration();
    if let Acceleration::Tcg(why) = &acceleration {
        say(&format!("  no usable KVM ({why}): the machine is emulated, which is slow but complete"));
    }
    Ok(Plan {
        tools: image.tools.tree().to_owned(),
        ovmf_code: image.ovmf_code.clone(),
        image_sha256: image.sha256.clone(),
        kvm: acceleration == Acceleration::Kvm,
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        ports,
        unsafe_cache: options.unsafe_cache,
        deadline_s: options.deadline_s,
        console_journal: options.console_journal,
        lan: options.lan,
        secure_boot: options.secure_boot,
    })
}

/// The ports of 127.0.0.1 that were asked for, else those of `before` as far as they are free.
fn ports(options: &Options, before: Ports) -> Result<Ports> {
    if options.lan {
        return Ok(Ports { web: qemu::GUEST_WEB, docker: qemu::GUEST_DOCKER, door: ::door::PORT });
    }
    Ok(Ports {
        web: host::pick_port("the web page", "--web-port", options.web_port, before.web)?,
        docker: host::pick_port("the Docker API", "--docker-port", options.docker_port, before.docker)?,
        door: host::pick_port("the exec door", "--door-port", None, before.door)?,
    })
}

fn spawn(dir: &StateDir, detach: bool) -> Result<Supervised> {
    let (sender, inbox) = mpsc::channel();
    let wanted = [signals::SIGINT, signals::SIGTERM, signals::SIGHUP];
    signals::forward(&wanted, sender.clone(), |_| Event::Signal)?;
    let log = dir.file("supervisor.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    // The file at this program's path may be another one by now, or none: cargo replaces it.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("appliance").arg("supervise").arg(dir.path()).stdout(Stdio::piped()).stderr(log).current_dir("/");
    if detach {
        command.stdin(Stdio::null());
    } else {
        command.arg("--leash").stdin(Stdio::piped());
    }
    // SAFETY: one system call between fork and exec; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?));
    }
    let mut child = command.spawn().context("cannot start the zone's supervisor")?;
    let leash = child.stdin.take();
    let output = child.stdout.take().context("the supervisor has no output")?;
    std::thread::spawn(move || read_messages(output, &sender));
    Ok(Supervised { child, leash, inbox })
}

fn read_messages(output: impl std::io::Read, sender: &Sender<Event>) {
    for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
        if let Ok(message) = serde_json::from_str(&line) {
            let _ = sender.send(Event::Message(message));
        }
    }
    let _ = sender.send(Event::SupervisorGone);
}

/// True when the zone answers, false when the user has stopped it before.
fn wait(dir: &StateDir, supervised: &mut Supervised, started: Instant) -> Result<bool> {
    let mut report = Report::new();
    let mut step = String::from("starting the machine");
    let mut since = started;
    report.begin(&step);
    loop {
        let event = match supervised.inbox.recv_timeout(REFRESH) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => {
                report.at(&dir.serial_tail(1));
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => Event::SupervisorGone,
        };
        match event {
            Event::Message(Message::Step(next)) => {
                report.end(&step, "done", since.elapsed());
                step = next;
                since = Instant::now();
                report.begin(&step);
            }
            Event::Message(Message::Ready) => {
                report.end(&step, "done", since.elapsed());
                return Ok(true);
            }
            Event::Message(Message::Note(text)) => report.line(&format!("  note: {text}")),
            Event::Message(Message::Failed(why)) => bail!("{why}"),
            Event::Message(Message::Ended(why)) => {
                let _ = supervised.child.wait();
                bail!("{why}\nThe end of its console, {}:\n{}", dir.serial_log().display(), dir.serial_tail(20));
            }
            Event::SupervisorGone => {
                let _ = supervised.child.wait();
                bail!("the zone's supervisor has ended: look into {}", dir.file("supervisor.log").display());
            }
            Event::Signal => {
                report.line("  stopping the zone");
                rustix::process::kill_process(
                    rustix::process::Pid::from_child(&supervised.child),
                    rustix::process::Signal::TERM,
                )?;
                return Ok(false);
            }
        }
    }
}

fn tell(dir: &StateDir, zone: &Zone, started: Instant) {
    let (address, ports) = (zone.plan.address(), zone.plan.ports);
    let certificates = dir.client_dir();
    let certificates = certificates.display();
    debug_assert_eq!(zone.phase, Phase::Ready);
    print(&format!(
        "The zone answers after {:.0} s.\n\
         \x20 web page        https://{address}:{}/\n\
         \x20 pairing code    {}\n\
         \x20 docker          eval \"$(cargo appliance env)\"\n\
         \x20 docker context  docker context create kraud --docker \
         \"host=tcp://{address}:{},ca={certificates}/ca.pem,cert={certificates}/cert.pem,key={certificates}/key.pem\"",
        started.elapsed().as_secs_f64(),
        ports.web,
        zone.pairing_code.as_deref().unwrap_or("(none)"),
        ports.docker,
    ));
    if let Some(namespace) = lan::namespace(zone) {
        print(&format!("  its network     nsenter --net={} COMMAND", namespace.display()));
    }
}

/// Stays until the zone ends; the first signal stops it, the second cuts its power.
fn stay(mut supervised: Supervised) -> Result<()> {
    say("Ctrl-C stops it.");
    loop {
        match supervised.inbox.recv().unwrap_or(Event::SupervisorGone) {
            Event::Signal => {
                say("stopping the zone (again Ctrl-C: at once)");
                drop(supervised.leash.take());
                return finish(supervised);
            }
            Event::Message(Message::Ended(why) | Message::Note(why)) => say(&why),
            Event::Message(_) => {}
            Event::SupervisorGone => {
                let status = supervised.child.wait().context("cannot wait for the supervisor")?;
                return if status.success() { Ok(()) } else { Err(anyhow::anyhow!("the zone has ended")) };
            }
        }
    }
}

/// Waits for the end of a zone that is being stopped.
fn finish(mut supervised: Supervised) -> Result<()> {
    loop {
        match supervised.inbox.recv().unwrap_or(Event::SupervisorGone) {
            Event::Signal => {
                let pid = rustix::process::Pid::from_child(&supervised.child);
                rustix::process::kill_process(pid, rustix::process::Signal::USR1)?;
            }
            Event::Message(_) => {}
            Event::SupervisorGone => {
                supervised.child.wait().context("cannot wait for the supervisor")?;
                say("stopped");
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_zone_before_or_its_programs_nothing_is_started_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        assert!(last_image(&dir).unwrap_err().to_string().contains("cargo appliance run"));
        let firmware = temp.path().join("OVMF_CODE_4M.fd");
        let plan = serde_json::json!({
            "tools": temp.path(), "ovmf_code": firmware, "image_sha256": "before", "kvm": false, "memory_mib": 2048, "cpus": 1,
            "ports": { "web": 1, "docker": 2, "door": 3 }, "unsafe_cache": false, "deadline_s": 1
        });
        dir.write_json("plan.json", &plan).unwrap();
        dir.write_secret(disks::BASE, b"image").unwrap();
        dir.write_json("disks.json", &serde_json::json!({ "image_sha256": "abc" })).unwrap();
        assert!(last_image(&dir).unwrap_err().to_string().contains("not in"));
        for name in ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        let image = last_image(&dir).unwrap();
        assert_eq!((image.file, image.sha256), (dir.file(disks::BASE), "abc".to_owned()));
    }
}
