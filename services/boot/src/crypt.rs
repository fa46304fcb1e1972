//! Opens an encrypted device as `/dev/mapper/NAME`, and encrypts it at its first boot.
//!
//! The key is 32 random bytes: no guessing is to be made slow, so the key derivation is the least that the format allows. The
//! cipher is AES-256-XTS in sectors of 4 KiB; requests are encrypted where they are made, which is faster than the kernel's queues.

use crate::luks::{self, Content};
use crate::run::run;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Both ends of a device are looked at, and made zero when it is new.
const END_BYTES: u64 = 1 << 20;

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It was opened with the key in its header.
    Kept,
    /// It was encrypted now and holds nothing.
    New,
}

/// Opens `device`, or encrypts it when it is empty; `fill` is what a new device must have before it counts as one.
///
/// # Errors
/// When it holds something else, has no key that is ours, or a program fails.
pub fn open(device: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<(PathBuf, Opened)> {
    let shown = device.display();
    let mapped = Path::new("/dev/mapper").join(name);
    if mapped.exists() {
        return Ok((mapped, Opened::Kept));
    }
    let mut file =
        OpenOptions::new().read(true).write(true).open(device).with_context(|| format!("cannot open {shown}"))?;
    match luks::look(&mut file).with_context(|| format!("cannot understand {shown}"))? {
        Content::Open(key) => {
            map(device, name, &key)?;
            return Ok((mapped, Opened::Kept));
        }
        Content::Sealed => bail!("{shown} is encrypted with a key that is not in its header"),
        Content::Other if !ends_are_zero(&mut file)? => bail!("{shown} holds something that is not ours"),
        Content::Other | Content::Unfinished(_) => {}
    }
    let mut key = [0; 32];
    luks::random(&mut key)?;
    let path = device.to_str().context("a device's name is not text")?;
    run(
        &[
            "cryptsetup",
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks2",
            "--key-file",
            "-",
            "--label",
            name,
            "--subsystem",
            luks::SUBSYSTEM,
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--sector-size",
            "4096",
            "--key-size",
            "512",
            path,
        ],
        &key,
    )?;
    map(device, name, &key)?;
    clear_ends(&mapped)?;
    fill(&mapped)?;
    let Content::Unfinished(header) = luks::look(&mut file)? else { bail!("{shown} changed while it was made") };
    header.finish(&key, &mut file, |file: &mut File| file.sync_all())?;
    Ok((mapped, Opened::New))
}

fn map(device: &Path, name: &str, key: &[u8]) -> Result<()> {
    let path = device.to_str().context("a device's name is not text")?;
    let mut argv = vec!["cryptsetup", "open", "--type", "luks2", "--key-file", "-", "--allow-discards"];
    argv.extend(["--perf-no_read_workqueue", "--perf-no_write_workqueue", path, name]);
    run(&argv, key)
}

/// A new device's content is noise; whoever looks whether it is in use looks at its ends.
fn clear_ends(device: &Path) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).open(device).with_context(|| format!("cannot open {}", device.display()))?;
    let length = file.seek(SeekFrom::End(0))?;
    for at in [0, length.saturating_sub(END_BYTES)] {
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&vec![0; usize::try_from(END_BYTES)?])?;
    }
    file.sync_all().with_context(|| format!("cannot write {}", device.display()))
}

fn ends_are_zero(file: &mut File) -> Result<bool> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut part = vec![0; usize::try_from(END_BYTES)?];
    for at in [0, length.saturating_sub(END_BYTES)] {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
