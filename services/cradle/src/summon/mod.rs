//! `kcradle summon`: from an image's archive to a bundle that `kcradle run` boots without any other service.
//!
//! Everything is made in a directory beside the wanted one, which gets its name last: a bundle is whole or not there.
//! Nothing of `run` is shared but the bundle's format: this part never opens /dev/kvm, that part never reads an archive.

mod archive;
pub mod args;
mod config;
mod disk;
mod mkfs;
#[path = "../../../images/src/oldtar.rs"]
mod oldtar;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail, ensure};
use archive::{Archive, MAX_ARCHIVE, unpack};
use args::Options;
use config::{ImageConfig, Start};
use mkfs::Mkfs;
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use zone::ContainerId;
use zone::bundle::{BUNDLE_FILE, Bundle, Disk, Extent, LogFiles};
use zone::guest::{GuestContainer, GuestSpec, Upper};
use zone::ids::hex;

/// Where the monitor's files lie in a directory that has them.
const PLACES: [&str; 4] = ["", "bin", "cradle", "usr/lib/cradle"];
const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";
const SPEC: &str = "spec.json";
const LOGS: [&str; 2] = ["log.0", "log.1"];

/// Writes the bundle.
///
/// # Errors
/// When the directory is there and not empty, when the image is not usable, or when a program or file that is needed is
/// missing.
pub fn summon(options: &Options) -> Result<()> {
    let (kernel, initramfs) = guest_files(options)?;
    let target = std::path::absolute(&options.dir).with_context(|| format!("{} is no path", options.dir.display()))?;
    refuse_what_is_there(&target)?;
    let draft = Draft::new(&target)?;
    let archive = open(&options.image, &draft.path).and_then(Archive::open);
    let archive = archive.with_context(|| format!("the archive {} cannot be used", options.image.display()))?;
    let image = archive.image().with_context(|| format!("the archive {} cannot be used", options.image.display()))?;
    let config = ImageConfig::parse(&image.config)?;
    let start = config.start(&options.command)?;
    let id = hex(&Sha256::digest(&image.config));
    let mkfs = Mkfs { program: options.mkfs_erofs.clone() };
    let extents = disk::build(&archive, &image.layers, &config.layers()?, &id, &mkfs, &draft.path)?;

    write(&draft.path.join(SPEC), &to_json(&spec(&id, start))?)?;
    for log in LOGS {
        write(&draft.path.join(log), b"")?;
    }
    write(&draft.path.join(BUNDLE_FILE), &to_json(&bundle(options, kernel, initramfs, extents))?)?;
    draft.finish(&target)
}

fn spec(id: &str, start: Start) -> GuestSpec {
    let container = GuestContainer {
        id: ContainerId::new(id),
        image_disk: 0,
        upper: Upper::Tmpfs,
        args: start.args,
        env: start.env,
        cwd: start.cwd,
        user: start.user,
        group_add: Vec::new(),
        tty: false,
        open_stdin: false,
        stdin_once: false,
        readonly_rootfs: false,
        init: false,
        privileged: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privileges: false,
        ulimits: Vec::new(),
        sysctls: std::collections::BTreeMap::new(),
        shm_size: 0,
        memory_limit: 0,
        pids_limit: 0,
        devices: Vec::new(),
        health: None,
        mounts: Vec::new(),
    };
    GuestSpec {
        run: 1,
        // KVM's clock is right at every start; a time that stands in a file is not.
        now_ns: 0,
        hostname: id.get(..12).unwrap_or(id).to_owned(),
        containers: vec![container],
        ..GuestSpec::default()
    }
}

fn bundle(options: &Options, kernel: PathBuf, initramfs: PathBuf, extents: Vec<Extent>) -> Bundle {
    Bundle {
        kvm: None,
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        kernel,
        initramfs,
        guest_spec: SPEC.into(),
        cmdline: String::new(),
        disks: vec![Disk { extents, read_only: true, ..Disk::default() }],
        nets: Vec::new(),
        shares: Vec::new(),
        agent: "agent.sock".into(),
        log: Some(LogFiles { files: LOGS.map(Into::into), max_bytes: zone::log::DEFAULT_MAX_BYTES }),
        template: None,
        console: options.console.then(|| "console.log".into()),
        control: None,
        spare_slots: 0,
    }
}

/// The archive as a file that is no longer compressed.
fn open(image: &Path, draft: &Path) -> Result<File> {
    let file = File::open(image).context("it cannot be opened")?;
    ensure!(file.metadata().context("it cannot be read")?.is_file(), "it is no file");
    let mut first = [0; 2];
    let is_gzip = file.read_exact_at(&mut first, 0).is_ok() && first == [0x1f, 0x8b];
    if !is_gzip {
        return Ok(file);
    }
    let path = draft.join("archive.tar");
    let mut plain =
        File::options().read(true).write(true).create_new(true).open(&path).context("cannot make a copy")?;
    // Only the descriptor is needed; the space is free again when it is closed.
    fs::remove_file(&path).context("cannot make a copy")?;
    unpack(file, &mut plain, MAX_ARCHIVE)?;
    std::io::Seek::rewind(&mut plain).context("cannot make a copy")?;
    Ok(plain)
}

/// Kernel and initramfs: the named ones, else beside this program, else the zone's newest.
fn guest_files(options: &Options) -> Result<(PathBuf, PathBuf)> {
    let found = options.kernel.is_none() || options.initramfs.is_none();
    let found = if found { find_guest_files() } else { None };
    let choose = |named: &Option<PathBuf>, flag: &str, file: &str| {
        let path = named.clone().or_else(|| found.as_ref().map(|dir| dir.join(file)));
        let path = path.with_context(|| {
            format!("there is no {file} beside kcradle or in {}: name one with {flag}", zone::paths::CRADLE)
        })?;
        let path = path.canonicalize().with_context(|| format!("cannot use {}", path.display()))?;
        ensure!(path.is_file(), "{} is no file: name another one with {flag}", path.display());
        Ok(path)
    };
    Ok((choose(&options.kernel, "--kernel", KERNEL)?, choose(&options.initramfs, "--initramfs", INITRAMFS)?))
}

fn find_guest_files() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let mut versions: Vec<(SystemTime, PathBuf)> = fs::read_dir(zone::paths::CRADLE)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    versions.sort();
    let versions = versions.into_iter().rev().map(|(_, path)| path);
    let has_both = |dir: &PathBuf| [KERNEL, INITRAMFS].iter().all(|file| dir.join(file).is_file());
    beside.into_iter().chain(versions).flat_map(|dir| PLACES.map(|below| dir.join(below))).find(has_both)
}

fn refuse_what_is_there(target: &Path) -> Result<()> {
    match fs::read_dir(target) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is there and not empty: name another directory", target.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot use {}", target.display())),
    }
}

/// A directory that is not done; it is removed unless it gets its name.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn new(target: &Path) -> Result<Self> {
        let name = target.file_name().with_context(|| format!("{} is no name for a directory", target.display()))?;
        let mut draft = OsString::from(".");
        draft.push(name);
        draft.push(format!(".{}", std::process::id()));
        let path = target.with_file_name(draft);
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self { path })
    }

    fn finish(self, target: &Path) -> Result<()> {
        // An empty directory is replaced; one that was filled meanwhile is not.
        fs::rename(&self.path, target).with_context(|| format!("cannot put the bundle at {}", target.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a rename, there is none.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value).context("cannot encode the bundle")?;
    json.push(b'\n');
    Ok(json)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
