//! A file or a tree as a tar archive.
//!
//! Walks by descriptors, never by paths: a folder that becomes a link meanwhile is not followed.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, readlinkat, statat};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use tar::{Builder, EntryType, Header};

/// Deeper folders are an error: each holds a descriptor and a part of a small stack.
pub(super) const MAX_DEPTH: u32 = 128;
/// What of a file is read at once.
const PIECE: usize = 64 * 1024;
/// How many files with several names are remembered; later ones are archived as copies.
const MAX_LINKS: usize = 100_000;

pub(super) struct Packer<W: Write> {
    pub(super) tar: Builder<W>,
    links: HashMap<(u64, u64), Vec<u8>>,
    bare: bool,
}

/// Archives what `handle` (an `O_PATH` descriptor) is, under the name `base`; a folder with everything below. Without a name
/// only what is below has entries.
///
/// # Errors
/// When something cannot be read, or the archive not be written.
pub fn pack<W: Write>(handle: impl AsFd, base: &str, out: W) -> io::Result<()> {
    let mut packer = Packer { bare: base.is_empty(), ..Packer::new(out) };
    // Docker's names for the root are `/` and `/x`.
    let name = if base == "/" { Vec::new() } else { base.as_bytes().to_vec() };
    packer.entry(handle.as_fd(), None, &name, 0)?;
    packer.tar.into_inner()?.flush()
}

impl<W: Write> Packer<W> {
    pub(super) fn new(out: W) -> Self {
        Self { tar: Builder::new(out), links: HashMap::new(), bare: false }
    }

    /// One entry: `child` of the folder `at`, or `at` itself.
    pub(super) fn entry(
        &mut self,
        at: BorrowedFd<'_>,
        child: Option<&CStr>,
        name: &[u8],
        depth: u32,
    ) -> io::Result<()> {
        let stat = match child {
            Some(child) => match statat(at, child, AtFlags::SYMLINK_NOFOLLOW) {
                // Gone since its folder was read.
                Err(rustix::io::Errno::NOENT) => return Ok(()),
                result => result?,
            },
            None => rustix::fs::fstat(at)?,
        };
        let open = |flags: OFlags| match child {
            Some(child) => openat(at, child, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
            // A handle is opened by its link in /proc; what it is was seen above.
            None => rustix::fs::open(crate::inroot::proc_path(at), flags | OFlags::CLOEXEC, Mode::empty()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let folder = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
                if !self.bare || !name.is_empty() {
                    self.append(&stat, EntryType::Directory, &[name, b"/"].concat(), None, &[], io::empty())?;
                }
                self.children(folder.as_fd(), name, depth)
            }
            FileType::Symlink => {
                let link = readlinkat(at, child.unwrap_or(c""), Vec::new())?;
                self.append(&stat, EntryType::Symlink, name, Some(link.as_bytes()), &[], io::empty())
            }
            FileType::RegularFile => self.file(&stat, name, open(OFlags::RDONLY | OFlags::NONBLOCK)?.into()),
            FileType::CharacterDevice => self.append(&stat, EntryType::Char, name, None, &[], io::empty()),
            FileType::BlockDevice => self.append(&stat, EntryType::Block, name, None, &[], io::empty()),
            FileType::Fifo => self.append(&stat, EntryType::Fifo, name, None, &[], io::empty()),
            // A socket is nothing without its process.
            _ => Ok(()),
        }
    }

    fn children(&mut self, folder: BorrowedFd<'_>, name: &[u8], depth: u32) -> io::Result<()> {
        if depth >= MAX_DEPTH {
            return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
        }
        for child in names_in(folder)? {
            let below: &[u8] = if self.bare && name.is_empty() { b"" } else { b"/" };
            self.entry(folder, Some(&child), &[name, below, child.to_bytes()].concat(), depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, stat: &Stat, name: &[u8], file: File) -> io::Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.append(stat, EntryType::Link, name, Some(&first), &[], io::empty());
            }
            if self.links.len() < MAX_LINKS {
                self.links.insert((stat.st_dev, stat.st_ino), name.to_vec());
            }
        }
        let mut capability = [0u8; 64];
        let length = fgetxattr(&file, "security.capability", &mut capability).unwrap_or(0);
        // A file that shrinks meanwhile is filled up with zeroes, one that grows is cut: the header's length holds.
        let size = stat.st_size.unsigned_abs();
        // Archives are written in small pieces, which need not all be asked of the kernel.
        let file = BufReader::with_capacity(usize::try_from(size).map_or(PIECE, |size| size.clamp(1, PIECE)), file);
        self.append(stat, EntryType::Regular, name, None, &capability[..length], file.chain(io::repeat(0)).take(size))
    }

    pub(super) fn append(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        name: &[u8],
        link: Option<&[u8]>,
        capability: &[u8],
        data: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(if kind == EntryType::Regular { stat.st_size.unsigned_abs() } else { 0 });
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        }
        let mut more: Vec<(&str, &[u8])> = Vec::new();
        let gnu = header.as_gnu_mut().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if !fill(&mut gnu.name, name) {
            more.push(("path", name));
        }
        if let Some(link) = link
            && !fill(&mut gnu.linkname, link)
        {
            more.push(("linkpath", link));
        }
        if !capability.is_empty() {
            more.push(("SCHILY.xattr.security.capability", capability));
        }
        if !more.is_empty() {
            self.tar.append_pax_extensions(more)?;
        }
        header.set_cksum();
        self.tar.append(&header, data)
    }
}

/// The names in a folder, sorted.
pub(super) fn names_in(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Puts text into a header's field; false, with as much as goes in, when it is too long.
fn fill(field: &mut [u8; 100], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    text.len() <= field.len()
}
