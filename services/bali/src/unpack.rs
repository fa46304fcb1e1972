//! Unpacks a verified image below a directory, whatever is there already: no symbolic link is followed and no mount
//! is crossed on the way (openat2(2)), so nothing is written outside.

use crate::error::{Error, Result};
use crate::image::{Image, Kind};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, linkat, mkdirat, openat2, symlinkat};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// How a path below a root is walked.
const WALK: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Unpacks into an existing folder, empty at best.
///
/// # Errors
/// `BadEntry` when an entry cannot be made; those of [`Image::for_each`]. What was unpacked before stays.
pub fn unpack(image: &mut Image, dir: &Path) -> Result<()> {
    let root = File::open(dir).map_err(Error::file("open", dir))?;
    unpack_at(image, root.as_fd())
}

/// Unpacks below an open directory, which may be the root of a mount that is attached nowhere.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_at(image: &mut Image, root: BorrowedFd<'_>) -> Result<()> {
    let name = image.name().to_owned();
    image.for_each(|path, kind, data| {
        one(root, path, kind, data).map_err(|source| Error::BadEntry {
            name: name.clone(),
            entry: path.into(),
            reason: format!("cannot unpack it: {source}"),
        })
    })
}

fn one(root: BorrowedFd<'_>, path: &str, kind: &Kind, data: &mut dyn Read) -> io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = make_dir(root, parent)?;
    match kind {
        Kind::Dir { mode } => {
            make_dir(root, path)?;
            let dir =
                openat2(&parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), WALK)?;
            File::from(dir).set_permissions(Permissions::from_mode(*mode))
        }
        Kind::File { mode, len } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = File::from(openat2(&parent, name, flags, Mode::RUSR | Mode::WUSR, WALK)?);
            let copied = io::copy(data, &mut file)?;
            if copied != *len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.set_permissions(Permissions::from_mode(*mode))
        }
        Kind::Symlink { target } => Ok(symlinkat(target.as_str(), &parent, name)?),
        Kind::HardLink { first } => {
            let (dir, file) = first.rsplit_once('/').unwrap_or((".", first));
            let dir = open_dir(root, dir)?;
            Ok(linkat(&dir, file, &parent, name, AtFlags::empty())?)
        }
    }
}

fn open_dir(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), WALK)?)
}

/// Makes a folder and those above it, as far as they are missing; never outside of `root`'s file system.
///
/// # Errors
/// What openat2(2) and mkdirat(2) say: `EXDEV` across a mount, `ELOOP` at a symbolic link.
pub fn make_dir(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let mut dir = open_dir(root, ".")?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        dir = open_dir(dir.as_fd(), part)?;
    }
    Ok(dir)
}
