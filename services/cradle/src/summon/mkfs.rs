//! Runs `mkfs.erofs`, the one program that interprets a stranger's files, with limits on what it may use up.
//!
//! The same arguments as the content store's, so that a summoned image is the disk that the zone would boot: layers
//! uncompressed and without inline data, since only such ones merge, and a merged file that counts on the layers' standing
//! behind it. erofs-utils 1.8 leaves the merged `/` with mode 0777; [`RootInode::patch`] puts right what belongs there.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const CPU_LIMIT_S: u64 = 600;
const MEMORY_LIMIT: u64 = 2 << 30;
/// While it works, its output is 2 TiB long, with holes.
const FILE_LIMIT: u64 = 2 << 40;
/// How much of its complaints is shown.
const TAIL: usize = 500;
const SUPER_BLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

/// The program that makes EROFS file systems, erofs-utils 1.8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mkfs {
    /// Where it is.
    pub program: PathBuf,
}

impl Mkfs {
    /// Makes a layer's file system from its uncompressed archive, whose SHA-256 is `hash`.
    ///
    /// # Errors
    /// When the program cannot be run, or does not take the archive.
    pub fn layer(&self, archive: &Path, output: &Path, hash: &str) -> Result<()> {
        let uuid = format!("-U{}", uuid(hash));
        let flags = ["--quiet", "--tar=f", "--aufs", "-T0", "--mkfs-time", "-b4096", "-Enoinline_data", &uuid];
        let args: Vec<_> = flags.iter().map(OsStr::new).chain([output.as_os_str(), archive.as_os_str()]).collect();
        self.run(&args).with_context(|| format!("layer {hash} cannot be turned into a file system"))
    }

    /// Makes an image's merged metadata from its layers, lowest first.
    ///
    /// # Errors
    /// As [`Mkfs::layer`].
    pub fn merge(&self, layers: &[PathBuf], output: &Path, hash: &str) -> Result<()> {
        let uuid = format!("-U{}", uuid(hash));
        let flags = ["--quiet", "-T0", "--mkfs-time", "-b4096", "--ovlfs-strip=1", "-Enosbcrc", &uuid];
        let layers = layers.iter().map(|layer| layer.as_os_str());
        let args: Vec<_> = flags.iter().map(OsStr::new).chain([output.as_os_str()]).chain(layers).collect();
        self.run(&args).context("the layers cannot be merged into one file system")
    }

    fn run(&self, args: &[&OsStr]) -> Result<()> {
        let program = self.program.display();
        let mut child = Command::new(&self.program)
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}: install erofs-utils 1.8, or name it with --mkfs-erofs"))?;
        limit(&child);
        let complaints = child.stderr.take().map(tail).unwrap_or_default();
        let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
        ensure!(status.success(), "{program}: {status}: {}", complaints.trim());
        Ok(())
    }
}

/// The end of a stream, however long it is.
fn tail(mut stream: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(got @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..got]);
        kept.drain(..kept.len().saturating_sub(TAIL));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn limit(child: &Child) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    let limits = [
        (Resource::Cpu, CPU_LIMIT_S),
        (Resource::As, MEMORY_LIMIT),
        (Resource::Fsize, FILE_LIMIT),
        (Resource::Core, 0),
    ];
    for (resource, limit) in limits {
        // A child that has ended meanwhile needs no limit, and a stricter one may be there already.
        let _ = prlimit(Some(pid), resource, Rlimit { current: Some(limit), maximum: Some(limit) });
    }
}

/// The same content gives the same file: the uuid comes from its hash (RFC 9562, version 8).
fn uuid(hash: &str) -> String {
    let part = |range| hash.get(range).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0..8), part(8..12), part(13..16), part(17..20), part(20..32))
}

/// What the inode of `/` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let mode = header.mode().ok().and_then(|mode| u16::try_from(mode & 0o7777).ok()).unwrap_or(0o755);
        Self { mode, uid: number(header.uid()), gid: number(header.gid()) }
    }

    /// Writes itself into the root inode of an EROFS file made with `-Enosbcrc` (fs/erofs/erofs_fs.h: super block at 1024
    /// with `root_nid` at 14 and `meta_blkaddr` at 40; inodes of 32 or, extended, 64 bytes).
    ///
    /// # Errors
    /// When the file is not as expected.
    pub fn patch(&self, path: &Path) -> Result<()> {
        self.patch_file(path).with_context(|| format!("cannot set the root directory of {}", path.display()))
    }

    fn patch_file(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let at = root_inode_at(&file)?;
        let mut inode = [0; 64];
        file.read_exact_at(&mut inode, at)?;
        let old_mode = u16::from_le_bytes([inode[4], inode[5]]);
        ensure!(old_mode & 0o170_000 == 0o040_000, "the root inode is no directory");
        file.write_all_at(&(0o040_000 | self.mode).to_le_bytes(), at + 4)?;
        if inode[0] & 1 == 1 {
            file.write_all_at(&self.uid.to_le_bytes(), at + 24)?;
            file.write_all_at(&self.gid.to_le_bytes(), at + 28)?;
        } else {
            let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
            file.write_all_at(&short(self.uid), at + 24)?;
            file.write_all_at(&short(self.gid), at + 26)?;
        }
        Ok(())
    }
}

fn root_inode_at(file: &File) -> Result<u64> {
    let mut block = [0; 128];
    file.read_exact_at(&mut block, SUPER_BLOCK)?;
    ensure!(block[0..4] == MAGIC.to_le_bytes(), "it is no EROFS file");
    let nid = u64::from(u16::from_le_bytes([block[14], block[15]]));
    let meta = u64::from(u32::from_le_bytes([block[40], block[41], block[42], block[43]]));
    Ok(meta * 4096 + nid * 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_or_fails_is_named_with_the_end_of_its_complaints() {
        let run = |program: &str, args: &[&str]| {
            let args: Vec<_> = args.iter().map(OsStr::new).collect();
            format!("{:#}", Mkfs { program: program.into() }.run(&args).unwrap_err())
        };
        assert!(run("/no/mkfs.erofs", &[]).contains("--mkfs-erofs"));
        let said = run("/bin/sh", &["-c", "head -c 100000 /dev/zero | tr '\\0' x >&2; echo no good >&2; exit 3"]);
        assert!(said.ends_with("no good") && said.contains("exit status: 3") && said.len() < 700, "{said}");
    }

    #[test]
    fn the_root_inode_is_written_where_the_super_block_says() {
        for extended in [0_u8, 1] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut bytes = vec![0; 8192];
            bytes[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[1024 + 14] = 3;
            bytes[1024 + 40] = 1;
            let at = 4096 + 3 * 32;
            bytes[at] = extended;
            bytes[at + 4..at + 6].copy_from_slice(&0o040_777_u16.to_le_bytes());
            std::fs::write(file.path(), &bytes).unwrap();
            RootInode { mode: 0o700, uid: 5, gid: 6 }.patch(file.path()).unwrap();
            let new = std::fs::read(file.path()).unwrap();
            assert_eq!(new[at + 4..at + 6], 0o040_700_u16.to_le_bytes());
            let (uid, gid) = (new[at + 24], new[at + if extended == 1 { 28 } else { 26 }]);
            assert_eq!((uid, gid), (5, 6));
            std::fs::write(file.path(), vec![0; 8192]).unwrap();
            assert!(RootInode::default().patch(file.path()).is_err());
        }
    }
}
