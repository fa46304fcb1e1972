//! Runs `mkfs.erofs`, the one part that interprets a stranger's files, in a worker with limits of its own.
//!
//! A layer is built with uncompressed data and without inline data, since only such layers can be merged. The merged
//! file ("rebuild" mode) has metadata alone, and counts on the layers standing behind it on the same disk, in order.
//! Rebuild mode of erofs-utils 1.8 leaves `/` with mode 0777; [`RootInode::patch`] puts right what belongs there.

use crate::digest::Digest;
use crate::fail::{Result, internal, invalid, io};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// A layer of 32 GiB at 50 MB/s takes eleven minutes.
const WALL_LIMIT: Duration = Duration::from_secs(20 * 60);
const CPU_LIMIT_S: u64 = 600;
const MEMORY_LIMIT: u64 = 2 << 30;
/// For archives, mkfs.erofs makes its output 2 TiB long (with holes), keeps its buffer in the upper half, and cuts it off at
/// the end. What it really writes is bounded by the archive, which is checked before.
const FILE_LIMIT: u64 = 2 << 40;

/// The program that makes EROFS file systems, erofs-utils 1.8.
#[derive(Clone, Debug)]
pub struct Mkfs {
    /// Where it is.
    pub program: PathBuf,
}

impl Mkfs {
    /// Makes a layer's file system from its uncompressed archive.
    ///
    /// # Errors
    /// `Invalid` when the archive cannot be turned into one; `Internal` when the program cannot be run.
    pub async fn layer(&self, archive: &Path, output: &Path, diff_id: &Digest) -> Result<()> {
        let uuid = format!("-U{}", uuid(diff_id));
        let flags = ["--quiet", "--tar=f", "--aufs", "-T0", "--mkfs-time", "-b4096", "-Enoinline_data", &uuid];
        let args = flags.iter().map(OsStr::new).chain([output.as_os_str(), archive.as_os_str()]);
        let shown = [output.as_os_str(), archive.as_os_str()];
        self.run(&shown, args.map(OsString::from).collect(), &format!("layer {diff_id}")).await
    }

    /// Makes an image's merged metadata from its layers, lowest first.
    ///
    /// # Errors
    /// As [`Mkfs::layer`].
    pub async fn merge(&self, layers: &[PathBuf], output: &Path, image: &Digest) -> Result<()> {
        let uuid = format!("-U{}", uuid(image));
        let flags = ["--quiet", "-T0", "--mkfs-time", "-b4096", "--ovlfs-strip=1", "-Enosbcrc", &uuid];
        let args = flags.iter().map(OsStr::new).chain([output.as_os_str()]).chain(layers.iter().map(|l| l.as_os_str()));
        let shown: Vec<_> = [output.as_os_str()].into_iter().chain(layers.iter().map(|l| l.as_os_str())).collect();
        self.run(&shown, args.map(OsString::from).collect(), &format!("image {image}")).await
    }

    /// Runs the program in a worker ([`crate::worker`]) that sees only the files `shown`, of which it may write the first.
    async fn run(&self, shown: &[&OsStr], args: Vec<OsString>, what: &str) -> Result<()> {
        let program = self.program.display();
        let began = Instant::now();
        let ourselves = std::env::current_exe().map_err(io("cannot find the worker"))?;
        let child = Command::new(ourselves)
            .arg(crate::worker::NAME)
            .args(shown)
            .arg("--")
            .arg(&self.program)
            .args(&args)
            .env_clear()
            .envs(std::env::var_os("KRAUD_WORKER_READ").map(|v| ("KRAUD_WORKER_READ", v)))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| internal(format!("cannot run {program}: {e}; erofs-utils 1.8 must be installed")))?;
        limit(child.id());
        let output = tokio::time::timeout(WALL_LIMIT, child.wait_with_output())
            .await
            .map_err(|_| {
                invalid(format!("{what} took longer than {} s to turn into a file system", WALL_LIMIT.as_secs()))
            })?
            .map_err(io(format!("cannot wait for {program}")))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail =
            stderr.get(stderr.floor_char_boundary(stderr.len().saturating_sub(500))..).unwrap_or_default().trim();
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(what, ?args, status = %output.status, duration_ms, stderr = tail, "ran mkfs.erofs");
        if output.status.success() {
            return Ok(());
        }
        let message = format!("{what} cannot be turned into a file system: {program}: {}: {tail}", output.status);
        if ["No space left", "quota exceeded"].iter().any(|text| tail.contains(text)) {
            return Err(io(what)(std::io::ErrorKind::StorageFull.into()));
        }
        Err(invalid(message))
    }
}

fn limit(pid: Option<u32>) {
    let Some(pid) = pid.and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw) else { return };
    let limits = [
        (Resource::Cpu, CPU_LIMIT_S),
        (Resource::As, MEMORY_LIMIT),
        (Resource::Fsize, FILE_LIMIT),
        (Resource::Core, 0),
    ];
    for (resource, limit) in limits {
        if let Err(error) = prlimit(Some(pid), resource, Rlimit { current: Some(limit), maximum: Some(limit) }) {
            tracing::warn!(?resource, %error, "cannot limit mkfs.erofs");
        }
    }
}

/// The same content gives the same file: the uuid comes from the digest (RFC 9562, version 8).
fn uuid(digest: &Digest) -> String {
    let h = digest.hex();
    format!("{}-{}-8{}-8{}-{}", &h[0..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
}

/// What the inode of `/` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInode {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Default for RootInode {
    fn default() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0 }
    }
}

impl RootInode {
    /// What an archive's entry says.
    pub fn from_header(header: &tar::Header) -> Self {
        let number = |n: std::io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let mode = header.mode().ok().map_or(0o755, |m| m & 0o7777);
        Self { mode: u16::try_from(mode).unwrap_or(0o755), uid: number(header.uid()), gid: number(header.gid()) }
    }

    /// Writes itself into the root inode of an EROFS file made with `-Enosbcrc` (fs/erofs/erofs_fs.h: super block at 1024
    /// with `root_nid` at 14 and `meta_blkaddr` at 40; inodes of 32 or, extended, 64 bytes).
    ///
    /// # Errors
    /// When the file is not as expected.
    pub fn patch(&self, path: &Path) -> Result<()> {
        let what = || format!("cannot set the root directory of {}", path.display());
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io(what()))?;
        let at = root_inode_offset(&file).map_err(io(what()))?;
        let mut inode = [0; 64];
        file.read_exact_at(&mut inode, at).map_err(io(what()))?;
        let old_mode = u16::from_le_bytes([inode[4], inode[5]]);
        if old_mode & 0o170_000 != 0o040_000 {
            return Err(internal(format!("{}: the root inode is no directory", what())));
        }
        file.write_all_at(&(0o040_000 | self.mode).to_le_bytes(), at + 4).map_err(io(what()))?;
        if inode[0] & 1 == 1 {
            file.write_all_at(&self.uid.to_le_bytes(), at + 24).map_err(io(what()))?;
            file.write_all_at(&self.gid.to_le_bytes(), at + 28).map_err(io(what()))
        } else {
            let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
            file.write_all_at(&short(self.uid), at + 24).map_err(io(what()))?;
            file.write_all_at(&short(self.gid), at + 26).map_err(io(what()))
        }
    }
}

fn root_inode_offset(file: &File) -> std::io::Result<u64> {
    let mut block = [0; 128];
    file.read_exact_at(&mut block, 1024)?;
    if block[0..4] != 0xe0f5_e1e2_u32.to_le_bytes() {
        return Err(std::io::Error::other("it is no EROFS file"));
    }
    let nid = u64::from(u16::from_le_bytes([block[14], block[15]]));
    let meta = u64::from(u32::from_le_bytes([block[40], block[41], block[42], block[43]]));
    Ok(meta * 4096 + nid * 32)
}
