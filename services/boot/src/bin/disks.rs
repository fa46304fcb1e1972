//! `kraud-disks state` puts the state partition on /var; `kraud-disks pool` makes `/dev/mapper/kraud-pool` ready for storage.

use anyhow::{Context, Result};
use boot::crypt::{self, Opened};
use boot::firmware::{self, SecureBoot};
use boot::gpt::Table;
use boot::run::run;
use boot::sysfs::Disk;
use clap::{Parser, Subcommand};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const STATE: &str = "kraud-state";
const POOL: &str = "kraud-pool";
/// The blocks that mkfs keeps back are the state engine's (uid 901, as in sysusers): what else fills /var does not stop the zone.
const STATE_OPTIONS: &std::ffi::CStr = c"resuid=901";

/// Opens the machine's own disks, and encrypts them at the first boot.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The state partition, mounted on /var
    State,
    /// The pool's device: a disk with the serial number kraud-pool, else the last partition, grown to the disk's end
    Pool,
}

fn main() -> ExitCode {
    let (done, consequence) = match Args::parse().command {
        Command::State => (state(), "the zone's services do not start without its state"),
        Command::Pool => (pool(), "without its pool the zone has no images, containers and volumes"),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    // Who stands before the machine reads this on its console.
    say(&format!("kraudbox: {error:#}\nkraudbox: {consequence}; the disk is left as it is"));
    ExitCode::FAILURE
}

fn state() -> Result<()> {
    let secure_boot = SecureBoot::look();
    say(&format!("kraudbox: secure boot: {}", secure_boot.text()));
    // It only says what is; the machine goes on without.
    if let Err(error) = firmware::note(secure_boot) {
        say(&format!("{error:#}"));
    }
    let disk = Disk::of_root()?;
    let partition = disk.partition(STATE).with_context(|| format!("{} has no partition {STATE}", disk.name))?;
    let (mapped, opened) = crypt::open(&partition.device, STATE, |mapped| {
        let mapped = mapped.to_str().context("a device's name is not text")?;
        run(&["mkfs.ext4", "-q", "-F", "-L", STATE, "-m", "5", "-E", "nodiscard,lazy_itable_init=1", mapped], &[])
    })?;
    report(STATE, &partition.device, opened);
    let (flags, options) = (
        rustix::mount::MountFlags::NOATIME | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID,
        STATE_OPTIONS,
    );
    rustix::mount::mount(&mapped, "/var", "ext4", flags, options)
        .with_context(|| format!("cannot mount {} on /var", mapped.display()))
}

fn pool() -> Result<()> {
    let device = match Disk::with_serial(POOL) {
        Some(disk) => disk.device(),
        None => own_partition()?,
    };
    let (_, opened) = crypt::open(&device, POOL, |_| Ok(()))?;
    report(POOL, &device, opened);
    Ok(())
}

/// The pool's partition of the disk that the machine was started from. It grows only before it is used for the first time.
fn own_partition() -> Result<PathBuf> {
    let disk = Disk::of_root()?;
    let partition = disk.partition(POOL).with_context(|| format!("{} has no partition {POOL}", disk.name))?;
    if let Err(error) = grow(&disk, partition.number) {
        // Less room is no reason not to start.
        say(&format!("{POOL} does not grow to the end of {}: {error:#}", disk.name));
    }
    Ok(partition.device)
}

fn grow(disk: &Disk, number: u32) -> Result<()> {
    let device = disk.device();
    let mut file = OpenOptions::new().read(true).write(true).open(&device).context("cannot open the disk")?;
    let mut table = Table::read(&mut file)?;
    let Some(length) = table.grow(number, disk.length())? else { return Ok(()) };
    table.write(&mut file, |file: &mut File| file.sync_all())?;
    // Not resizepart(8), which the image does not have.
    run(&["partx", "--update", "--nr", &number.to_string(), &device.display().to_string()], &[])?;
    say(&format!("{POOL} now has {} MiB", length >> 20));
    Ok(())
}

fn report(name: &str, device: &Path, opened: Opened) {
    if opened == Opened::New {
        say(&format!("encrypted {} as {name}", device.display()));
    }
}

#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
