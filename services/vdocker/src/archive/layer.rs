//! What a container changed in its image's files, as a layer of an image: the overlay's upper folder as an archive, with
//! what was removed as whiteouts (OCI image specification, "layer").
//!
//! Must not: archive what the agent itself made in the container.

use super::Chunks;
use super::pack::{MAX_DEPTH, Packer, names_in};
use crate::agent::Agent;
use crate::changes::{OURS, is_opaque};
use crate::container::Container;
use crate::http::response::Answer;
use crate::http::route::{Refusal, refuse};
use crate::inroot::proc_path;
use crate::platform::Stream;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tar::EntryType;

/// `GET /layer`.
pub fn get(agent: &Arc<Agent>, container: &Container) -> Result<Answer, Refusal> {
    let upper = open_folder(rustix::fs::CWD, &container.rootfs.upper)
        .or_else(|e| refuse(500, format!("cannot read what container {} changed: {e}", container.id())))?;
    let busy = agent.stream();
    let work = move |stream: &Arc<Stream>| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let mut out: &Stream = stream;
        // An archive that breaks off has no last chunk: the client sees that it is not whole.
        let sent = out.write_all(head.as_bytes()).and_then(|()| {
            let mut chunks = Chunks::new(stream);
            pack(upper.as_fd(), &mut chunks)?;
            chunks.flush()
        });
        match sent {
            Ok(()) => drop(out.write_all(b"0\r\n\r\n")),
            Err(error) => crate::console::say(&format!("cannot archive a layer: {error}")),
        }
        drop(busy);
    };
    Ok(Answer::Download(Box::new(work)))
}

fn open_folder(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn pack(upper: BorrowedFd<'_>, out: impl Write) -> io::Result<()> {
    let mut packer = Packer::new(out);
    children(&mut packer, upper, b"", 0)?;
    packer.tar.into_inner()?.flush()
}

fn children<W: Write>(packer: &mut Packer<W>, folder: BorrowedFd<'_>, name: &[u8], depth: u32) -> io::Result<()> {
    if depth >= MAX_DEPTH {
        return Err(io::Error::other(format!("folders are nested deeper than {MAX_DEPTH}")));
    }
    for child in names_in(folder)? {
        let path = below(name, child.to_bytes());
        let stat = match statat(folder, &child, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since its folder was read.
            Err(rustix::io::Errno::NOENT) => continue,
            result => result?,
        };
        if is_ours(&path) {
            continue;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                whiteout(packer, &stat, &below(name, &[b".wh.", child.to_bytes()].concat()))?;
            }
            FileType::Directory => subfolder(packer, folder, &child, &stat, &path, depth)?,
            _ => packer.entry(folder, Some(&child), &path, depth)?,
        }
    }
    Ok(())
}

fn subfolder<W: Write>(
    packer: &mut Packer<W>,
    folder: BorrowedFd<'_>,
    child: &CStr,
    stat: &Stat,
    path: &[u8],
    depth: u32,
) -> io::Result<()> {
    let inner = open_folder(folder, child)?;
    let names = names_in(inner.as_fd())?;
    // A folder that only holds what the agent made is the agent's.
    if !names.is_empty() && names.iter().all(|n| is_ours(&below(path, n.to_bytes()))) {
        return Ok(());
    }
    packer.append(stat, EntryType::Directory, &[path, b"/"].concat(), None, &[], io::empty())?;
    if is_opaque(&proc_path(inner.as_fd())) {
        whiteout(packer, stat, &below(path, b".wh..wh..opq"))?;
    }
    children(packer, inner.as_fd(), path, depth + 1)
}

/// An empty file: its name says what is gone.
fn whiteout<W: Write>(packer: &mut Packer<W>, stat: &Stat, name: &[u8]) -> io::Result<()> {
    let mut empty = *stat;
    (empty.st_size, empty.st_mode, empty.st_rdev) = (0, 0o100_644, 0);
    packer.append(&empty, EntryType::Regular, name, None, &[], io::empty())
}

fn below(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn is_ours(path: &[u8]) -> bool {
    OURS.iter().any(|ours| ours.strip_prefix('/').is_some_and(|o| o.as_bytes() == path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_layer_has_what_was_changed_without_what_the_agent_made() {
        let upper = std::env::temp_dir().join(format!("vdocker-layer-{}", std::process::id()));
        for folder in ["etc", "dev", "opt/new", "opt/empty", "proc"] {
            fs::create_dir_all(upper.join(folder)).unwrap();
        }
        for file in ["etc/hosts", "opt/new/file", "opt/file"] {
            fs::write(upper.join(file), "content").unwrap();
        }
        fs::hard_link(upper.join("opt/file"), upper.join("opt/second")).unwrap();
        let mut bytes = Vec::new();
        pack(open_folder(rustix::fs::CWD, &upper).unwrap().as_fd(), &mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["opt/", "opt/empty/", "opt/file", "opt/new/", "opt/new/file", "opt/second"]);
        let mut archive = tar::Archive::new(&bytes[..]);
        let kinds: Vec<EntryType> = archive.entries().unwrap().map(|e| e.unwrap().header().entry_type()).collect();
        assert_eq!(kinds.last(), Some(&EntryType::Link));
        fs::remove_dir_all(&upper).unwrap();
    }
}
