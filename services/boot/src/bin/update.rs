//! `kraud-update`: puts a signed update into the spare slot, and judges an image that was started for the first time.
//!
//! The slot that runs is never written. The new image has three tries; it is good once `check` says so, and anything else (a panic, a
//! reset, a service that does not come up) ends in the image before.

use anyhow::{Context, Result, ensure};
use boot::bundle::{Bundle, KERNEL, Machine, PARTS};
use boot::firmware::SecureBoot;
use boot::sysfs::Disk;
use boot::version::Version;
use boot::{entry, health, run};
use clap::{Parser, Subcommand};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const KEYS: &str = "/usr/lib/kraud/keys";
const ESP: &str = "/run/kraud-esp";
/// What was true before the update, for `check`.
const BEFORE: &str = "/var/lib/kraud/update-before.json";
/// One build that does not say has this channel.
const CHANNEL: &str = "stable";

/// Updates of this machine.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write an update to the spare slot and restart into it
    Apply {
        /// A file or an http: URL
        source: String,
        /// Leave the restart to somebody else
        #[arg(long)]
        no_restart: bool,
    },
    /// Judge the image that runs, if it has not proved itself: restart into the one before when it is not good
    Check {
        /// How long it may take to become good, in seconds
        #[arg(long, default_value_t = 180)]
        deadline: u64,
    },
    /// Show the version that runs, its slot, whether the firmware checks signatures, and what the boot menu has
    Status,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Apply { source, no_restart } => apply(&source, no_restart),
        Command::Check { deadline } => check(Duration::from_secs(deadline)),
        Command::Status => status(),
    }
}

fn apply(source: &str, no_restart: bool) -> Result<()> {
    let running = running_version()?;
    let mut bundle = Bundle::open(source, Path::new(KEYS)).context("the update is refused")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let machine = Machine { version: running.clone(), channel: CHANNEL.into(), now };
    let version = bundle.about.check(&machine).context("the update is refused")?;
    let disk = Disk::of_root()?;
    let spare = if disk.root_label()?.ends_with("-a") { "b" } else { "a" };
    let esp = Esp::mount(&disk)?;
    // From here on the other slot cannot be started until it is whole.
    entry::keep_only(&esp.menu(), &running)?;
    let kernel = esp.menu().join("update.tmp");
    bundle.parts(|name, length, data| {
        if name == KERNEL {
            return copy(data, File::create(&kernel)?, length);
        }
        let Some((_, label)) = PARTS.iter().find(|(part, _)| *part == name) else { return Ok(()) };
        let label = format!("{label}-{spare}");
        let partition = disk.partition(&label).with_context(|| format!("{} has no partition {label}", disk.name))?;
        ensure!(length <= partition.length, "it has {length} bytes, the slot {}", partition.length);
        copy(data, OpenOptions::new().write(true).open(&partition.device)?, length)
    })?;
    let before = serde_json::json!({"uplink": health::has_uplink(), "version": running.to_string()});
    fs::write(BEFORE, before.to_string()).with_context(|| format!("cannot write {BEFORE}"))?;
    entry::add(&esp.menu(), &version, &kernel)?;
    drop(esp);
    say(&format!("{version} is in slot {spare}; {running} stays in the other one"));
    if no_restart { Ok(()) } else { run::run(&["systemctl", "reboot"], &[]) }
}

fn copy(data: &mut dyn Read, mut to: File, length: u64) -> Result<()> {
    let copied = io::copy(data, &mut to)?;
    ensure!(copied == length, "it ends after {copied} of {length} bytes");
    to.flush()?;
    Ok(to.sync_all()?)
}

fn check(deadline: Duration) -> Result<()> {
    if !entry::is_counted() {
        return Ok(());
    }
    let running = running_version()?;
    let before: serde_json::Value =
        fs::read_to_string(BEFORE).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let judged = health::wait(deadline, before["uplink"] == true);
    let esp = Esp::mount(&Disk::of_root()?)?;
    entry::judge(&esp.menu(), &running, judged.is_ok())?;
    drop(esp);
    match judged {
        Ok(()) => say(&format!("{running} has proved itself")),
        Err(error) => {
            say(&format!("{running} is not good: {error:#}; going back"));
            run::run(&["systemctl", "reboot"], &[])?;
        }
    }
    Ok(())
}

#[allow(clippy::print_stdout)]
fn status() -> Result<()> {
    let disk = Disk::of_root()?;
    println!("running {} from {}", running_version()?, disk.root_label()?);
    println!("secure boot: {}", SecureBoot::look().text());
    let esp = Esp::mount(&disk)?;
    for entry in entry::all(&esp.menu())? {
        let state = match entry.tries {
            None => "good".to_owned(),
            Some(0) => "failed".to_owned(),
            Some(tries) => format!("{tries} tries left"),
        };
        println!("menu    {} {state}", entry.version);
    }
    Ok(())
}

/// What the kernel image was told: the version belongs to it, and not to the root.
fn running_version() -> Result<Version> {
    let line = fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?;
    let version = line.split_whitespace().find_map(|word| word.strip_prefix("kraud.version="));
    Version::parse(version.context("the kernel's command line has no kraud.version=")?)
}

/// The ESP, mounted as long as this lives.
struct Esp(PathBuf);

impl Esp {
    fn mount(disk: &Disk) -> Result<Self> {
        let partition = disk.partition("kraud-esp").context("the disk has no partition kraud-esp")?;
        let place = PathBuf::from(ESP);
        fs::create_dir_all(&place)?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(&partition.device, &place, "vfat", flags, c"umask=0077,iocharset=ascii,utf8=0")
            .context("cannot mount the ESP")?;
        Ok(Self(place))
    }

    fn menu(&self) -> PathBuf {
        self.0.join("EFI/Linux")
    }
}

impl Drop for Esp {
    fn drop(&mut self) {
        // What cannot be unmounted now goes with the restart; all that was written is flushed.
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::empty());
    }
}

#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
