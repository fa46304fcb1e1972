//! The process that owns a zone for as long as it lives: QEMU, its forwards, the state directory.
//!
//! It is this program again, in a session of its own. What it has to say to the `run` that started it goes to its stdout, a JSON
//! line each ([`Message`]); when that `run` is gone the lines are lost and nothing else happens. With a leash, the end of its
//! stdin stops the zone. SIGTERM stops the zone cleanly, a second one and SIGUSR1 cut its power.
//!
//! ```text
//! Booting ──answers──> Ready ──SIGTERM──> Stopping ──QEMU ends──> process ends, lock free
//!    └──deadline──> Failed ───SIGTERM──────^
//! ```

#![allow(unsafe_code)]

use super::door::Door;
use super::forwards;
use super::http::Client;
use super::qmp::Qmp;
use super::ready::Waiter;
use super::signals;
use super::state::{Phase, Plan, StateDir, Zone};
use super::{lan, qemu, state};
use crate::build::Tools;
use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zone::ids::hex;

/// What the supervisor tells the `run` that started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// What it waits for now.
    Step(String),
    /// The zone answers.
    Ready,
    /// Something that does not work, without which the zone goes on.
    Note(String),
    /// The zone does not answer; the machine still runs.
    Failed(String),
    /// The machine could not be started, or ended by itself; the supervisor ends too.
    Ended(String),
}

enum Event {
    Signal(i32),
    LeashGone,
    QemuEnded(std::io::Result<ExitStatus>),
    Step(String),
    Answered(Result<String>),
    Forwards(Vec<String>, Vec<String>),
}

/// How long a zone that has come up may take to shut down.
const STOP_DEADLINE: Duration = Duration::from_secs(120);
/// How long one that has not may: its firmware does not listen to a power button.
const EARLY_STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long QEMU may take to open its control socket.
const START_DEADLINE: Duration = Duration::from_secs(60);

struct Supervisor {
    dir: StateDir,
    zone: Zone,
    door: Door,
    qmp: Arc<Mutex<Qmp>>,
    qemu: OwnedFd,
    events: Sender<Event>,
    cancel: Option<Sender<()>>,
    door_answered: bool,
    stop_until: Option<Instant>,
    /// Those of the notes that are about ports.
    refused: Vec<String>,
}

/// Runs the zone that `plan.json` describes until its machine ends.
///
/// # Errors
/// When the machine cannot be started; the same text was sent as [`Message::Ended`].
pub fn supervise(dir: StateDir, leash: bool) -> Result<()> {
    let result = start(dir, leash);
    if let Err(error) = &result {
        tell(&Message::Ended(format!("{error:#}")));
    }
    result
}

fn start(dir: StateDir, leash: bool) -> Result<()> {
    let _lock = dir.try_lock()?.context("a zone runs on this computer already: `cargo appliance stop` ends it")?;
    let plan: Plan =
        dir.read_json("plan.json")?.context("there is no plan: start the zone with `cargo appliance run`")?;
    // Before there are other threads.
    let _dhcp = if plan.lan { Some(lan::make(&dir, &plan.tools)?) } else { None };
    let (events, inbox) = mpsc::channel();
    let wanted = [signals::SIGINT, signals::SIGTERM, signals::SIGHUP, signals::SIGUSR1];
    signals::forward(&wanted, events.clone(), Event::Signal)?;
    if leash {
        watch_leash(events.clone());
    }
    let door = Door::new((plan.address(), plan.ports.door).into(), new_token(&dir)?);
    let mut child = launch(&dir, &plan)?;
    let pidfd =
        pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty()).context("cannot watch QEMU")?;
    let qmp = connect(&dir, &mut child)?;
    let ended = events.clone();
    std::thread::spawn(move || ended.send(Event::QemuEnded(child.wait())));
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let zone = Zone {
        pid: std::process::id(),
        started,
        phase: Phase::Booting("starting".into()),
        plan,
        pairing_code: None,
        published: Vec::new(),
        notes: Vec::new(),
    };
    let supervisor = Supervisor {
        dir,
        zone,
        door,
        qmp: Arc::new(Mutex::new(qmp)),
        qemu: pidfd,
        events,
        cancel: None,
        door_answered: false,
        stop_until: None,
        refused: Vec::new(),
    };
    supervisor.run(&inbox)
}

/// Nobody reads any more when the `run` is gone; that is its right.
#[allow(clippy::print_stdout, reason = "stdout is the pipe to `run`")]
fn tell(message: &Message) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

fn watch_leash(events: Sender<Event>) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = events.send(Event::LeashGone);
    });
}

fn new_token(dir: &StateDir) -> Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    let token = hex(&bytes);
    dir.write_secret("door-token", token.as_bytes())?;
    dir.write_secret("smbios-credential", qemu::credential(&token).as_bytes())?;
    Ok(token)
}

fn launch(dir: &StateDir, plan: &Plan) -> Result<Child> {
    for leftover in [dir.qmp_socket(), dir.serial_log()] {
        let _ = std::fs::remove_file(leftover);
    }
    let log = dir.file("qemu.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Tools::new(plan.tools.clone()).command("qemu-system-x86_64");
    command.args(qemu::arguments(dir, plan));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: one system call between fork and exec; it neither allocates nor takes a lock. It asks that QEMU dies with the thread
    // that starts it, which is the supervisor's main thread.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command.spawn().context("cannot start QEMU")
}

fn connect(dir: &StateDir, child: &mut Child) -> Result<Qmp> {
    let until = Instant::now() + START_DEADLINE;
    loop {
        let error = match Qmp::connect(&dir.qmp_socket()) {
            Ok(qmp) => return Ok(qmp),
            Err(error) => error,
        };
        if let Some(status) = child.try_wait()? {
            bail!("QEMU did not start ({status}): {}", qemu_log(dir));
        }
        if Instant::now() > until {
            let _ = child.kill();
            return Err(error.context("QEMU does not answer"));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn qemu_log(dir: &StateDir) -> String {
    state::tail(&std::fs::read_to_string(dir.file("qemu.log")).unwrap_or_default(), 5)
}

impl Supervisor {
    fn run(mut self, inbox: &Receiver<Event>) -> Result<()> {
        self.save();
        self.wait_until_ready();
        loop {
            let event = match self.stop_until {
                None => inbox.recv().context("no events any more")?,
                Some(until) => match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => {
                        self.note("the zone did not shut down in time: its power was cut".into());
                        self.cut_power();
                        self.stop_until = Some(Instant::now() + STOP_DEADLINE);
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => bail!("no events any more"),
                },
            };
            if let Event::QemuEnded(status) = event {
                return self.ended(status);
            }
            self.handle(event);
            self.save();
        }
    }

    fn save(&self) {
        // A full disk must not end the zone; `status` then shows what was last written.
        let _ = self.dir.write_json("zone.json", &self.zone);
    }

    fn note(&mut self, text: String) {
        super::report::say(&text);
        tell(&Message::Note(text.clone()));
        self.zone.notes.push(text);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal(signals::SIGUSR1) => self.cut_power(),
            Event::Signal(_) if self.stop_until.is_some() => self.cut_power(),
            Event::LeashGone | Event::Answered(_) if self.stop_until.is_some() => {}
            Event::Signal(_) | Event::LeashGone => self.stop(),
            Event::Step(step) => {
                self.door_answered = step != super::ready::FIRST_STEP;
                if self.stop_until.is_none() {
                    self.zone.phase = Phase::Booting(step.clone());
                }
                tell(&Message::Step(step));
            }
            Event::Answered(Ok(code)) => {
                self.zone.pairing_code = Some(code);
                self.zone.phase = Phase::Ready;
                self.watch_ports();
                self.save();
                tell(&Message::Ready);
            }
            Event::Answered(Err(error)) => {
                let text = format!("{error:#}");
                self.zone.phase = Phase::Failed(text.clone());
                self.save();
                tell(&Message::Failed(text));
            }
            Event::Forwards(published, refused) => {
                self.zone.published = published;
                let before = std::mem::replace(&mut self.refused, refused);
                self.zone.notes.retain(|note| !before.contains(note));
                for text in self.refused.clone() {
                    if before.contains(&text) {
                        self.zone.notes.push(text);
                    } else {
                        self.note(text);
                    }
                }
            }
            Event::QemuEnded(_) => {}
        }
    }

    fn wait_until_ready(&mut self) {
        let (cancel, cancelled) = mpsc::channel();
        self.cancel = Some(cancel);
        let (address, ports) = (self.zone.plan.address(), self.zone.plan.ports);
        let (dir, door, events) = (self.dir.clone(), self.door.clone(), self.events.clone());
        let until = Instant::now() + Duration::from_secs(self.zone.plan.deadline_s);
        std::thread::spawn(move || {
            let waiter = Waiter { dir: &dir, address, ports, door, until, cancel: &cancelled };
            let answered = waiter.wait(|step| {
                let _ = events.send(Event::Step(step.into()));
            });
            let answered = answered.map_err(|error| explain(&error, &dir, &waiter));
            let _ = events.send(Event::Answered(answered));
        });
    }

    fn watch_ports(&mut self) {
        if self.zone.plan.lan {
            return;
        }
        let plan = &self.zone.plan;
        let client = match Client::new((plan.address(), plan.ports.docker).into(), &self.dir.client_dir()) {
            Ok(client) => client,
            Err(error) => return self.note(format!("published ports will not appear on this computer: {error:#}")),
        };
        let (qmp, events) = (Arc::clone(&self.qmp), self.events.clone());
        std::thread::spawn(move || {
            forwards::watch(&client, &qmp, |ports, notes| events.send(Event::Forwards(ports, notes)).is_ok());
        });
    }

    fn stop(&mut self) {
        self.cancel = None;
        self.zone.phase = Phase::Stopping;
        let deadline = if self.door_answered { STOP_DEADLINE } else { EARLY_STOP_DEADLINE };
        self.stop_until = Some(Instant::now() + deadline);
        let (door, qmp, by_door) = (self.door.clone(), Arc::clone(&self.qmp), self.door_answered);
        std::thread::spawn(move || {
            if by_door && door.output(&["systemctl", "poweroff"], Duration::from_secs(20)).is_ok() {
                return;
            }
            let _ = qmp.lock().unwrap_or_else(PoisonError::into_inner).command("system_powerdown", &json!({}));
        });
    }

    /// As pulling the plug: what the guest has not flushed may be lost.
    fn cut_power(&mut self) {
        self.cancel = None;
        self.zone.phase = Phase::Stopping;
        self.stop_until.get_or_insert(Instant::now() + STOP_DEADLINE);
        let _ = pidfd_send_signal(&self.qemu, Signal::KILL);
    }

    fn ended(self, status: std::io::Result<ExitStatus>) -> Result<()> {
        let _ = std::fs::remove_file(self.dir.file("zone.json"));
        if self.stop_until.is_some() {
            return Ok(());
        }
        match status.context("cannot wait for QEMU")? {
            status if status.success() => {
                tell(&Message::Ended("the machine has shut down by itself".into()));
                Ok(())
            }
            status => bail!("QEMU ended ({status}): {}", qemu_log(&self.dir)),
        }
    }
}

/// Adds what can be known about a zone that does not answer.
fn explain(error: &anyhow::Error, dir: &StateDir, waiter: &Waiter<'_>) -> anyhow::Error {
    let diagnosis = waiter.diagnosis();
    let mut text = format!("{error:#}");
    if !diagnosis.is_empty() {
        text.push_str("\nThe system says:\n");
        text.push_str(&diagnosis);
    }
    text.push_str(&format!("\nThe end of its console, {}:\n{}", dir.serial_log().display(), dir.serial_tail(20)));
    anyhow::Error::msg(text)
}
