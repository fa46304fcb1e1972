//! Files of a container as tar archives (`docker cp`).
//!
//! Owns: which path is meant, and what Docker's clients are told about it. Works the same whether a process runs or not.
//! Must not: leave the container's root, whatever links the container makes while this runs.

pub mod layer;
pub mod pack;
pub mod unpack;

use crate::agent::Agent;
use crate::container::Container;
use crate::http::request::Request;
use crate::http::response::{Answer, Response};
use crate::http::route::{Refusal, refuse};
use crate::platform::Stream;
use crate::stats::rfc3339;
use crate::user::Users;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{CWD, FileType, OFlags, Stat, StatVfsMountFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde_json::json;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const HEADER: &str = "X-Docker-Container-Path-Stat";

/// A path of a request.
struct Target {
    /// Absolute, as it was asked for.
    path: PathBuf,
    /// What Docker calls it: the last part as it was asked for; `.` and `/` may be it.
    base: String,
    /// What it is; a link itself, unless the path ends in `/` or `/.`.
    handle: OwnedFd,
    stat: Stat,
}

fn target(container: &Container, request: &Request) -> Result<Target, Refusal> {
    let asked = request.query("path");
    if asked.is_empty() {
        return refuse(400, "invalid path: the parameter `path` is empty");
    }
    let path = Path::new("/").join(asked);
    let follow = asked.ends_with('/') || asked.ends_with("/.") || asked == ".";
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let not_found = |_| Refusal {
        status: 404,
        message: format!("Could not find the file {asked} in container {}", container.id()),
    };
    let handle = container.rootfs.root.resolve(&path, flags).map_err(not_found)?;
    let stat = rustix::fs::fstat(&handle).map_err(|e| not_found(e.into()))?;
    Ok(Target { base: base_name(asked), path, handle, stat })
}

/// Go's filepath.Base of what Docker makes of the path.
fn base_name(asked: &str) -> String {
    let trimmed = asked.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        None | Some("") => "/".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn stat_header(container: &Container, target: &Target) -> String {
    let stat = &target.stat;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let root = &container.rootfs.root;
    let lexical = || {
        rustix::fs::readlinkat(&target.handle, "", Vec::new())
            .map(|l| l.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let link = if is_link {
        root.real_path(&target.path).map_or_else(|_| lexical(), |p| p.to_string_lossy().into_owned())
    } else {
        String::new()
    };
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let mtime = rfc3339(seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec));
    let all = json!({"name": target.base, "size": stat.st_size, "mode": go_mode(stat.st_mode), "mtime": mtime, "linkTarget": link});
    STANDARD.encode(all.to_string())
}

/// A mode as Go's os.FileMode has it.
fn go_mode(mode: u32) -> u32 {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    let bits = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    bits.iter().filter(|(unix, _)| mode & unix != 0).fold(kind | mode & 0o777, |all, (_, go)| all | go)
}

/// `HEAD`: what is at the path.
pub fn head(container: &Container, request: &Request) -> Result<Answer, Refusal> {
    let target = target(container, request)?;
    Ok(Response::empty(200).with(HEADER, stat_header(container, &target)).into())
}

/// `GET`: a tar archive of it.
pub fn get(agent: &Arc<Agent>, container: &Container, request: &Request) -> Result<Answer, Refusal> {
    let target = target(container, request)?;
    let header = format!("{HEADER}: {}\r\n", stat_header(container, &target));
    Ok(download(agent, target.handle, target.base, header))
}

/// `GET /export`: a tar archive of the root, its names without a leading slash, and without what is mounted in it.
pub fn export(agent: &Arc<Agent>, container: &Container) -> Result<Answer, Refusal> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let bare = open_tree(CWD, &container.rootfs.path, flags)
        .or_else(|e| refuse(500, format!("cannot export container {}: {e}", container.id())))?;
    Ok(download(agent, bare, String::new(), String::new()))
}

fn download(agent: &Arc<Agent>, handle: OwnedFd, base: String, header: String) -> Answer {
    let busy = agent.stream();
    let work = move |stream: &Arc<Stream>| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-tar\r\n{header}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        let mut out: &Stream = stream;
        // An archive that breaks off has no last chunk: the client sees that it is not whole.
        let sent = out.write_all(head.as_bytes()).and_then(|()| pack::pack(&handle, &base, &mut Chunks::new(stream)));
        match sent {
            Ok(()) => drop(out.write_all(b"0\r\n\r\n")),
            Err(error) => crate::console::say(&format!("cannot archive {base}: {error}")),
        }
        drop(busy);
    };
    Answer::Download(Box::new(work))
}

/// Collects what is written to chunks, and sends each with one call: it goes to the host as one packet.
struct Chunks<'a> {
    stream: &'a Stream,
    /// Room for the length, and the chunk.
    buffer: Vec<u8>,
}

impl<'a> Chunks<'a> {
    /// Four digits and the end of their line.
    const HEAD: usize = 6;
    /// With its line ends no more than the largest packet.
    const FULL: usize = 64 * 1024 - 2;

    fn new(stream: &'a Stream) -> Self {
        let mut buffer = Vec::with_capacity(64 * 1024);
        buffer.resize(Self::HEAD, 0);
        Self { stream, buffer }
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(Self::FULL - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == Self::FULL {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let length = self.buffer.len() - Self::HEAD;
        // A chunk without a byte would be the last one.
        if length > 0 {
            self.buffer[..Self::HEAD].copy_from_slice(format!("{length:04x}\r\n").as_bytes());
            self.buffer.extend_from_slice(b"\r\n");
            let mut out = self.stream;
            out.write_all(&self.buffer)?;
            self.buffer.truncate(Self::HEAD);
        }
        Ok(())
    }
}

/// `PUT`: unpacks the body into the directory at the path.
pub fn put(container: &Container, request: &mut Request) -> Result<Answer, Refusal> {
    let asked = request.query("path").to_owned();
    let root = &container.rootfs.root;
    let path = Path::new("/").join(&asked);
    let handle = root
        .handle(&path)
        .or_else(|_| refuse(404, format!("Could not find the file {asked} in container {}", container.id())))?;
    let is_dir = rustix::fs::fstat(&handle).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
    if asked.is_empty() || !is_dir {
        return refuse(400, "extraction point is not a directory");
    }
    if rustix::fs::fstatvfs(&handle).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return refuse(
            403,
            if container.spec.readonly_rootfs {
                "container rootfs is marked read-only"
            } else {
                "mounted volume is marked read-only"
            },
        );
    }
    let owner = if request.flag("copyUIDGID") && !container.spec.user.is_empty() {
        let identity = Users::read(root).resolve(&container.spec.user, &[]).or_else(|e| refuse(400, e.to_string()))?;
        Some((identity.uid, identity.gid))
    } else {
        None
    };
    let options = unpack::Options { keep_kinds: request.flag("noOverwriteDirNonDir"), owner };
    let folder = root.real_path(&path).or_else(|e| refuse(500, e.to_string()))?;
    unpack::unpack(root, &folder, &options, request.body())
        .or_else(|error| refuse(error.status(), crate::console::chain(&error)))?;
    Ok(Response::empty(200).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::Request;
    use std::os::unix::net::UnixStream;

    #[test]
    fn chunks_come_back_as_what_was_written() {
        let written: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let (client, server) = UnixStream::pair().unwrap();
        let bytes = written.clone();
        let writer = std::thread::spawn(move || {
            let stream = Stream(client.into());
            (&stream).write_all(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            let mut chunks = Chunks::new(&stream);
            bytes.chunks(777).for_each(|piece| chunks.write_all(piece).unwrap());
            chunks.flush().unwrap();
            (&stream).write_all(b"0\r\n\r\nNEXT").unwrap();
        });
        let mut request = Request::read(&Arc::new(Stream(server.into())), Vec::new()).unwrap();
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut request.body(), &mut read).unwrap();
        writer.join().unwrap();
        assert!(read == written && request.body_is_read());
        assert!(b"NEXT".starts_with(&request.into_rest()));
    }

    #[test]
    fn modes_are_gos() {
        for (unix, go) in [
            (0o100_644, 0o644),
            (0o40_755, 1 << 31 | 0o755),
            (0o41_777, 1 << 31 | 1 << 20 | 0o777),
            (0o120_777, 1 << 27 | 0o777),
            (0o104_755, 1 << 23 | 0o755),
            (0o20_666, 1 << 26 | 1 << 21 | 0o666),
        ] {
            assert_eq!(go_mode(unix), go, "{unix:o}");
        }
    }

    #[test]
    fn the_last_part_is_named_as_go_does() {
        for (asked, want) in
            [("/etc/passwd", "passwd"), ("etc/", "etc"), ("/etc/.", "."), ("/", "/"), ("///", "/"), (".", ".")]
        {
            assert_eq!(base_name(asked), want);
        }
    }
}
