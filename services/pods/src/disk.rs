//! A pod's files on the pool: directory, writable layers, log files. Everything here blocks.
//!
//! Owners: the directories belong to root and can be passed by all but listed by the group `kraud` only; a layer is its
//! pod's alone; the log files are written by the pod's uid and read by the group `kraud`.

use anyhow::{Context as _, bail};
use rustix::fs::SeekFrom;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The size of a writable layer when nobody says otherwise, bytes. Sparse: it takes what is written.
pub const DEFAULT_LAYER: u64 = 10 << 30;
/// Smaller layers cannot hold a file system with a journal.
const SMALLEST_LAYER: u64 = 64 << 20;

/// Where writable layers come from, and who may read logs.
#[derive(Clone, Debug)]
pub struct Disks {
    /// An empty ext4 file system of [`DEFAULT_LAYER`].
    pub template: PathBuf,
    /// Makes others.
    pub mkfs: PathBuf,
    /// The number of the group `kraud`; none leaves groups alone, for tests.
    pub group: Option<u32>,
}

impl Disks {
    /// Makes what a pod needs and is not there yet; may be called again after an interruption.
    ///
    /// # Errors
    /// When a file cannot be made; what was made by then stays.
    pub fn prepare(&self, dir: &Path, uid: u32, layer_sizes: &[u64]) -> anyhow::Result<()> {
        make_dir(dir, 0o751)?;
        self.give(dir, None, 0o751)?;
        for (index, size) in layer_sizes.iter().enumerate() {
            self.layer(&dir.join(format!("rw-{index}.img")), uid, *size)?;
        }
        for name in ["log.0", "log.1"] {
            self.log_file(&dir.join(name), uid)?;
        }
        Ok(())
    }

    fn give(&self, path: &Path, uid: Option<u32>, mode: u32) -> anyhow::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {path:?}"))?;
        if let Some(group) = self.group {
            chown(path, uid, Some(group)).with_context(|| format!("cannot give {path:?} to {uid:?}"))?;
        }
        Ok(())
    }

    /// Appears with its owner and mode: readers that wait for it need not look twice.
    fn log_file(&self, path: &Path, uid: u32) -> anyhow::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let new = path.with_extension("new");
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(&new)
            .with_context(|| format!("cannot make {new:?}"))?;
        self.give(&new, Some(uid), 0o640)?;
        fs::rename(&new, path).with_context(|| format!("cannot rename {new:?}"))
    }

    fn layer(&self, path: &Path, uid: u32, size: u64) -> anyhow::Result<()> {
        if path.exists() {
            return Ok(());
        }
        let new = path.with_extension("new");
        let size = if size == 0 { DEFAULT_LAYER } else { size.max(SMALLEST_LAYER).next_multiple_of(4096) };
        if size == DEFAULT_LAYER && self.template.exists() {
            copy_sparse(&self.template, &new).with_context(|| format!("cannot copy {:?} to {new:?}", self.template))?;
        } else {
            make_layer(&self.mkfs, &new, size)?;
        }
        if self.group.is_some() {
            chown(&new, Some(uid), Some(uid)).with_context(|| format!("cannot give {new:?} to {uid}"))?;
        }
        fs::rename(&new, path).with_context(|| format!("cannot rename {new:?}"))
    }

    /// Makes the template if it is not there.
    ///
    /// # Errors
    /// When `mkfs.ext4` is not there or fails.
    pub fn make_template(&self) -> anyhow::Result<()> {
        if self.template.exists() {
            return Ok(());
        }
        let new = self.template.with_extension("new");
        make_layer(&self.mkfs, &new, DEFAULT_LAYER)?;
        fs::rename(&new, &self.template).with_context(|| format!("cannot rename {new:?}"))
    }
}

/// Why a pod's files cannot be made, for people: a full pool by its name.
#[must_use]
pub fn explain(error: &anyhow::Error) -> String {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| matches!(e.kind(), StorageFull | QuotaExceeded))
    };
    let text = format!("{error:#}");
    // mkfs tells it in words.
    if error.chain().any(full) || text.contains("No space left") || text.contains("quota exceeded") {
        return format!("the zone's pool is full, remove what is not needed: {text}");
    }
    text
}

/// Makes a directory with its parents; no error when it is there.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(dir: &Path, mode: u32) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir).with_context(|| format!("cannot make {dir:?}"))
}

/// Removes a directory with all that is in it; no error when it is not there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {dir:?}")),
    }
}

fn make_layer(mkfs: &Path, path: &Path, size: u64) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
    file.and_then(|f| f.set_len(size)).with_context(|| format!("cannot make {path:?}"))?;
    // Little is written at first: tables and journal are made when they are used. No reserve for a root user.
    let output = Command::new(mkfs)
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-b",
            "4096",
            "-I",
            "256",
            "-J",
            "size=16",
            "-O",
            // An orphan file is read at each mount, block by block: 512 waits of a start.
            "^resize_inode,^orphan_file,sparse_super2,metadata_csum",
        ])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1"])
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", mkfs.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed on {}: {}", mkfs.display(), path.display(), said.trim());
    }
    Ok(())
}

/// Copies a file and leaves its holes out. On a file system that can, the copy shares the blocks.
fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at, length)? {
        copy_range(&source, &target, start, end)?;
        at = end;
    }
    Ok(())
}

fn next_data(file: &File, from: u64, length: u64) -> std::io::Result<Option<(u64, u64)>> {
    if from >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, end)))
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> std::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source.as_fd(), Some(&mut from), target.as_fd(), Some(&mut to), length) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::INVAL,
            ) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut at: u64, end: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        source.read_exact_at(&mut buffer[..want], at)?;
        target.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn disks(dir: &Path) -> Disks {
        Disks { template: dir.join("rw.ext4"), mkfs: "/usr/sbin/mkfs.ext4".into(), group: None }
    }

    #[test]
    fn a_copy_keeps_the_holes_and_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"middle", 300 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        let mut bytes = [0; 6];
        copy.read_exact_at(&mut bytes, 300 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        let meta = copy.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 10 << 20, "{} bytes were written", meta.blocks() * 512);
    }

    #[test]
    fn preparing_twice_keeps_what_the_first_made() {
        if !Path::new("/usr/sbin/mkfs.ext4").exists() {
            eprintln!("skipped: needs mkfs.ext4");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disks = disks(dir.path());
        disks.make_template().unwrap();
        let pod = dir.path().join("pod");
        disks.prepare(&pod, 200_000, &[0, 80 << 20]).unwrap();
        fs::write(pod.join("log.0"), "kept").unwrap();
        let layer = File::options().write(true).open(pod.join("rw-0.img")).unwrap();
        layer.write_all_at(b"kept", 4096).unwrap();
        disks.prepare(&pod, 200_000, &[0, 80 << 20]).unwrap();
        assert_eq!(fs::read_to_string(pod.join("log.0")).unwrap(), "kept");
        let mut bytes = [0; 4];
        File::open(pod.join("rw-0.img")).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"kept");
        assert_eq!(fs::metadata(pod.join("rw-0.img")).unwrap().len(), DEFAULT_LAYER);
        assert_eq!(fs::metadata(pod.join("rw-1.img")).unwrap().len(), 80 << 20);
        assert!(fs::metadata(pod.join("rw-0.img")).unwrap().blocks() * 512 < 4 << 20);
    }
}
