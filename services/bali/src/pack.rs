//! Packs a tree into an image: the same tree, configuration and key always give the same bytes.

use crate::config::{CONFIG_PATH, ImageConfig};
use crate::error::{Error, Result};
use crate::format::{FILE_MAX_BYTES, Header};
use crate::keys::SigningKey;
use crate::tree::{Node, Tree};
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use tar::{EntryType, Header as TarHeader};

/// Packs and signs; the result is the whole file.
///
/// # Errors
/// `File` when a source cannot be read, `TooLarge` when the result passes the limit of every reader.
pub fn pack(tree: &Tree, config: &ImageConfig, key: &SigningKey) -> Result<Vec<u8>> {
    let body = compress(tree, config)?;
    let hash: [u8; 32] = Sha256::digest(&body).into();
    let header = Header { key_id: key.id(), signature: key.sign(&hash) };
    let mut file = header.encode().to_vec();
    file.extend_from_slice(&body);
    if file.len() as u64 > FILE_MAX_BYTES {
        return Err(Error::TooLarge { name: "the image".into(), limit: format!("{FILE_MAX_BYTES} bytes") });
    }
    Ok(file)
}

/// The deflate stream of the tar, its CRC-32 and length (RFC 1952, 2.3.1).
fn compress(tree: &Tree, config: &ImageConfig) -> Result<Vec<u8>> {
    let memory = |e: io::Error| Error::Content { name: "the image to be packed".into(), source: e };
    let sink = Checksummed { crc: Crc::new(), inner: DeflateEncoder::new(Vec::new(), Compression::new(6)) };
    let mut tar = tar::Builder::new(sink);
    let json =
        serde_json::to_vec(config).map_err(|e| Error::Invalid(format!("cannot encode the configuration: {e}")))?;
    append(&mut tar, EntryType::Regular, CONFIG_PATH, 0o644, json.len() as u64, json.as_slice()).map_err(memory)?;
    for (path, node) in &tree.nodes {
        if path == ".bali" || path.starts_with(".bali/") {
            return Err(Error::Invalid(format!("/{path}: the folder .bali is the image's own, rename this one")));
        }
        add(&mut tar, path, node)?;
    }
    let Checksummed { crc, inner } = tar.into_inner().map_err(memory)?;
    let mut body = inner.finish().map_err(memory)?;
    body.extend_from_slice(&crc.sum().to_le_bytes());
    body.extend_from_slice(&crc.amount().to_le_bytes());
    Ok(body)
}

fn add<W: Write>(tar: &mut tar::Builder<W>, path: &str, node: &Node) -> Result<()> {
    let failed = Error::file("pack", path);
    match node {
        Node::Dir { mode } => {
            append(tar, EntryType::Directory, &format!("{path}/"), *mode, 0, io::empty()).map_err(failed)
        }
        Node::File { source, mode } => {
            let (file, len) = open(source).map_err(Error::file("read", source))?;
            append(tar, EntryType::Regular, path, *mode, len, file).map_err(failed)
        }
        Node::Symlink { target } => {
            tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target).map_err(failed)
        }
        Node::HardLink { first } => {
            tar.append_link(&mut header(EntryType::Link, 0o644, 0), path, first).map_err(failed)
        }
    }
}

/// A file and its length; a file that shrinks while it is read is an error, one that grows is cut.
fn open(source: &Path) -> io::Result<(impl Read, u64)> {
    let file = File::open(source)?;
    let len = file.metadata()?.len();
    Ok((Exactly { reader: file.take(len), left: len }, len))
}

struct Exactly<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.left -= n as u64;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was packed"));
        }
        Ok(n)
    }
}

fn append<W: Write, R: Read>(
    tar: &mut tar::Builder<W>,
    kind: EntryType,
    path: &str,
    mode: u32,
    len: u64,
    data: R,
) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, len), path, data)
}

fn header(kind: EntryType, mode: u32, len: u64) -> TarHeader {
    let mut header = TarHeader::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

struct Checksummed<W> {
    crc: Crc,
    inner: W,
}

impl<W: Write> Write for Checksummed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.crc.update(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
