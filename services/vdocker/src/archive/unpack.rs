//! A tar archive into a folder of a container.
//!
//! Every entry's folder is resolved anew inside of the container's root, so that a link, of the archive or of the container, leads
//! where it would lead a process of the container, never out.

use crate::inroot::{InRoot, proc_path};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, linkat,
    lsetxattr, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// Deeper folders are not removed: each takes a part of a small stack.
const MAX_DEPTH: u32 = 128;
/// What of a file is read and written at once.
const PIECE: usize = 64 * 1024;
/// How many folders get their times back at the end.
const MAX_TIMES: usize = 100_000;

/// How to unpack.
#[derive(Debug, Default)]
pub struct Options {
    /// A folder may not become something else, nor the other way round.
    pub keep_kinds: bool,
    /// Owner of everything, instead of the archive's.
    pub owner: Option<(u32, u32)>,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Docker's words.
    #[error("cannot overwrite {existing} {path:?} with {new} {path:?}")]
    Kind {
        /// What is there.
        existing: &'static str,
        /// What would be.
        new: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The body is no such archive.
    #[error("cannot read the archive")]
    Archive(#[source] io::Error),
    /// An entry cannot be made.
    #[error("cannot unpack {path:?}")]
    Entry {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Kind { .. } | Self::Archive(_) => 400,
            Self::Entry { source, .. } if source.raw_os_error() == Some(libc::EROFS) => 403,
            Self::Entry { .. } => 500,
        }
    }
}

struct Unpacker<'a> {
    root: &'a InRoot,
    folder: &'a Path,
    options: &'a Options,
    times: Vec<(PathBuf, Timestamps)>,
}

/// Unpacks an archive into the folder `folder` of `root`.
///
/// # Errors
/// When the archive is broken, an entry cannot be made, or would change a kind that must stay.
pub fn unpack(root: &InRoot, folder: &Path, options: &Options, archive: impl Read) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker { root, folder, options, times: Vec::new() };
    let mut archive = Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(&mut entry.map_err(UnpackError::Archive)?)?;
    }
    // The parts of a folder change its time, so that comes last.
    for (path, times) in unpacker.times {
        if let (Some(name), Ok(parent)) = (path.file_name(), root.handle(path.parent().unwrap_or(folder))) {
            let _ = utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
    Ok(())
}

/// A name of the archive as a path below the folder; None for the folder itself.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let Some(relative) = inside(&entry.path().map_err(UnpackError::Archive)?) else { return Ok(()) };
        let path = self.folder.join(relative);
        let is_dir = entry.header().entry_type().is_dir();
        let fail = |source: io::Error| UnpackError::Entry { path: path.clone(), source };
        let (parent, name) = self.place(&path).map_err(fail)?;
        let there = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        match there {
            Some(was_dir) if was_dir != is_dir && self.options.keep_kinds => {
                let kind = |dir| if dir { "directory" } else { "non-directory" };
                return Err(UnpackError::Kind { existing: kind(was_dir), new: kind(is_dir), path });
            }
            Some(true) if is_dir => {}
            Some(was_dir) => remove(parent.as_fd(), &name, was_dir, 0).map_err(fail)?,
            None => {}
        }
        self.make(entry, parent.as_fd(), &name, there == Some(true) && is_dir).map_err(fail)?;
        let times = self.attributes(entry, parent.as_fd(), &name).map_err(fail)?;
        if is_dir && self.times.len() < MAX_TIMES {
            self.times.push((path, times));
        }
        Ok(())
    }

    fn place(&self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
        Ok((self.root.make_dir_all(parent, 0o755)?, name.to_owned()))
    }

    fn make(&self, entry: &mut Entry<'_, impl Read>, at: BorrowedFd<'_>, name: &OsStr, exists: bool) -> io::Result<()> {
        let header = entry.header();
        let mode = Mode::from_raw_mode(0o600);
        let device = || -> io::Result<u64> {
            Ok(makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
        };
        match header.entry_type() {
            EntryType::Directory if exists => {}
            EntryType::Directory => mkdirat(at, name, Mode::from_raw_mode(0o700))?,
            EntryType::Symlink => symlinkat(link_name(entry)?.as_os_str(), at, name)?,
            EntryType::Link => {
                let target = inside(&link_name(entry)?).ok_or(Errno::INVAL)?;
                let (from, from_name) = self.place(&self.folder.join(target))?;
                linkat(&from, &from_name, at, name, AtFlags::empty())?;
            }
            EntryType::Char => mknodat(at, name, FileType::CharacterDevice, mode, device()?)?,
            EntryType::Block => mknodat(at, name, FileType::BlockDevice, mode, device()?)?,
            EntryType::Fifo => mknodat(at, name, FileType::Fifo, mode, 0)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                copy(entry, &mut File::from(openat(at, name, flags, mode)?))?;
            }
            other => return Err(io::Error::other(format!("entries of the type {other:?} are not supported"))),
        }
        Ok(())
    }

    fn attributes(&self, entry: &mut Entry<'_, impl Read>, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<Timestamps> {
        let header = entry.header();
        let old = header.as_old();
        let id = |field: &[u8], number: io::Result<u64>| {
            u32::try_from(if is_empty(field) { 0 } else { number? }).map_err(|_| io::Error::from(Errno::INVAL))
        };
        let (uid, gid) = match self.options.owner {
            Some(owner) => owner,
            None => (id(&old.uid, header.uid())?, id(&old.gid, header.gid())?),
        };
        let seconds = if is_empty(&old.mtime) { 0 } else { header.mtime()? };
        let mtime = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
        let times = Timestamps { last_access: mtime, last_modification: mtime };
        let (kind, mode) = (header.entry_type(), header.mode()? & 0o7777);
        if kind == EntryType::Link {
            return Ok(times);
        }
        chownat(at, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != EntryType::Symlink {
            chmodat(at, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        if kind.is_file() {
            for extension in entry.pax_extensions()?.into_iter().flatten().flatten() {
                // Last, as a change of the owner takes it away. Not every file system keeps it.
                if extension.key_bytes() == b"SCHILY.xattr.security.capability" {
                    let _ = lsetxattr(
                        proc_path(at).join(name),
                        "security.capability",
                        extension.value_bytes(),
                        XattrFlags::empty(),
                    );
                }
            }
        }
        utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(times)
    }
}

/// A file's content, in pieces as large as what comes from the host at once.
fn copy(entry: &mut Entry<'_, impl Read>, file: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(entry.size()).map_or(PIECE, |size| size.clamp(1, PIECE))];
    loop {
        match entry.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => file.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn link_name(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    let link = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link has no target"))?;
    Ok(PathBuf::from(OsStr::from_bytes(&link)))
}

/// rm -r by descriptors.
fn remove(at: BorrowedFd<'_>, name: &OsStr, is_dir: bool, depth: u32) -> io::Result<()> {
    if !is_dir {
        return Ok(unlinkat(at, name, AtFlags::empty())?);
    }
    if depth >= MAX_DEPTH {
        return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
    }
    let folder =
        openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    for child in Dir::read_from(&folder)? {
        let child = child?;
        let child_name = OsStr::from_bytes(child.file_name().to_bytes());
        if child_name != "." && child_name != ".." {
            let stat = statat(&folder, child_name, AtFlags::SYMLINK_NOFOLLOW)?;
            remove(
                folder.as_fd(),
                child_name,
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                depth + 1,
            )?;
        }
    }
    Ok(unlinkat(at, name, AtFlags::REMOVEDIR)?)
}

/// Whether a number was left out, which stands for zero, as with Docker Engine.
fn is_empty(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(name: &str) -> (PathBuf, InRoot) {
        let dir = std::env::temp_dir().join(format!("vdocker-unpack-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("to")).unwrap();
        let root = InRoot::open(&dir).unwrap();
        (dir, root)
    }

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            // The tests may run as any user, who may give files to himself.
            header.set_uid(rustix::process::getuid().as_raw().into());
            header.set_gid(rustix::process::getgid().as_raw().into());
            header.set_mtime(7);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if kind.is_file() { content.as_bytes() } else { b"" };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn names_and_links_cannot_lead_out() {
        let (dir, root) = folder("out");
        std::fs::create_dir(dir.join("etc")).unwrap();
        let bytes = archive(&[
            ("../../../escape", EntryType::Regular, "a"),
            ("/absolute", EntryType::Regular, "b"),
            ("link", EntryType::Symlink, "/etc"),
            ("link/inner", EntryType::Regular, "c"),
        ]);
        unpack(&root, Path::new("/to"), &Options::default(), bytes.as_slice()).unwrap();
        for (path, want) in [("to/escape", "a"), ("to/absolute", "b"), ("etc/inner", "c")] {
            assert_eq!(std::fs::read_to_string(dir.join(path)).unwrap(), want, "{path}");
        }
        assert!(!Path::new("/etc/inner").exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced_not_followed() {
        let (dir, root) = folder("replace");
        std::fs::write(dir.join("victim"), "old").unwrap();
        symlink("/victim", dir.join("to/file")).unwrap();
        unpack(
            &root,
            Path::new("/to"),
            &Options::default(),
            archive(&[("file", EntryType::Regular, "new")]).as_slice(),
        )
        .unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("victim")).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(dir.join("to/file")).unwrap(), "new");
    }

    #[test]
    fn kinds_stay_when_asked_for() {
        let (dir, root) = folder("kinds");
        std::fs::create_dir_all(dir.join("to/thing/below")).unwrap();
        let bytes = archive(&[("thing", EntryType::Regular, "x")]);
        let strict = Options { keep_kinds: true, owner: None };
        let error = unpack(&root, Path::new("/to"), &strict, bytes.as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "cannot overwrite directory \"/to/thing\" with non-directory \"/to/thing\"");
        unpack(&root, Path::new("/to"), &Options::default(), bytes.as_slice()).unwrap();
        assert!(dir.join("to/thing").is_file());
    }

    #[test]
    fn a_number_that_was_left_out_is_zero() {
        let (dir, root) = folder("empty");
        let mut bytes = archive(&[("file", EntryType::Regular, "x")]);
        bytes[136..148].fill(0);
        let mut header = tar::Header::from_byte_slice(&bytes[..512]).clone();
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        unpack(&root, Path::new("/to"), &Options::default(), bytes.as_slice()).unwrap();
        let modified = std::fs::metadata(dir.join("to/file")).unwrap().modified().unwrap();
        assert_eq!(modified, std::time::SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let (_, root) = folder("junk");
        let error = unpack(&root, Path::new("/to"), &Options::default(), &[0x55u8; 2048][..]).unwrap_err();
        assert_eq!(error.status(), 400);
    }
}
