//! An image whose signature holds: its configuration and its entries, each checked against the rules of the format.

use crate::config::{CONFIG_MAX_BYTES, CONFIG_PATH, ImageConfig};
use crate::error::{Error, Result};
use crate::format::{HEADER_BYTES, Header};
use crate::keys::Keyring;
use crate::source::Source;
use crate::tree::stays_inside;
use flate2::bufread::GzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use tar::EntryType;
use zone::ids::hex;

/// Entries that an image may have.
pub const ENTRIES_MAX: u64 = 200_000;
/// Bytes that an image may unpack to.
pub const UNPACKED_MAX_BYTES: u64 = 4 << 30;
/// Bytes of an entry's path, or of what a link says.
pub const PATH_MAX_BYTES: usize = 4096;

/// A verified image.
#[derive(Debug)]
pub struct Image {
    name: String,
    id: String,
    key_id: String,
    file: File,
    config: ImageConfig,
}

/// What an entry is; its path has no leading or trailing `/` and no `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Bytes.
        len: u64,
    },
    /// A symbolic link that stays below the root.
    Symlink {
        /// What it says.
        target: String,
    },
    /// Another name of an earlier entry.
    HardLink {
        /// That entry's path.
        first: String,
    },
}

impl Image {
    /// Fetches an image and verifies its signature. Nothing of its content is looked at before.
    ///
    /// # Errors
    /// `NotAnImage`, `UnknownKey`, `BadSignature`; those of [`Source::fetch`]; `BadEntry` when its configuration is wrong.
    pub fn open(source: &Source, keys: &Keyring) -> Result<Self> {
        let name = source.name();
        let mut file = source.fetch()?;
        let (header, hash) = read_and_hash(&name, &mut file)?;
        keys.verify(&name, &header.key_id, &hash, &header.signature)?;
        let mut image = Self {
            name,
            id: content_id(&hash),
            key_id: hex(&header.key_id[..8]),
            file,
            config: ImageConfig::default(),
        };
        image.config = image.read_config()?;
        Ok(image)
    }

    /// The file or URL that it came from.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content id, `sha256:` and 64 digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The first digits of the id of the key that signed it.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// How it is started.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Shows every entry after the configuration to `visit`, with a reader of its bytes.
    ///
    /// # Errors
    /// `BadEntry`, `TooLarge` or `Content` at the first entry that breaks a rule; `visit`'s own.
    pub fn for_each(&mut self, mut visit: impl FnMut(&str, &Kind, &mut dyn Read) -> Result<()>) -> Result<()> {
        self.file.rewind().map_err(|e| content(&self.name, e))?;
        let limited = GzDecoder::new(BufReader::new(&self.file)).take(UNPACKED_MAX_BYTES + 1);
        let mut archive = tar::Archive::new(limited);
        let (mut entries, mut bytes) = (0, 0);
        for entry in archive.entries().map_err(|e| content(&self.name, e))? {
            let mut entry = entry.map_err(|e| content(&self.name, e))?;
            entries += 1;
            bytes += entry.size();
            if entries > ENTRIES_MAX || bytes > UNPACKED_MAX_BYTES {
                let limit = format!("{ENTRIES_MAX} entries or {UNPACKED_MAX_BYTES} bytes unpacked");
                return Err(Error::TooLarge { name: self.name.clone(), limit });
            }
            let path = entry.path_bytes().into_owned();
            let shown = String::from_utf8_lossy(&path).into_owned();
            let bad =
                |reason: &str| Error::BadEntry { name: self.name.clone(), entry: shown.clone(), reason: reason.into() };
            let path = check_path(&path).map_err(bad)?;
            if entries == 1 {
                if path != CONFIG_PATH {
                    return Err(bad("the first entry must be .bali/config.json"));
                }
                continue;
            }
            if path == ".bali" || path.starts_with(".bali/") {
                return Err(bad("only the first entry may lie in .bali"));
            }
            let kind = check_kind(&path, &entry).map_err(bad)?;
            visit(&path, &kind, &mut entry)?;
        }
        let mut rest = archive.into_inner().into_inner();
        // To the end of the stream, so that its checksum is compared.
        io::copy(&mut (&mut rest).take(1 << 20), &mut io::sink()).map_err(|e| content(&self.name, e))?;
        let mut after = rest.into_inner();
        if !after.fill_buf().map_err(|e| content(&self.name, e))?.is_empty() {
            return Err(Error::NotAnImage { name: self.name.clone(), reason: "there are bytes after its end".into() });
        }
        Ok(())
    }

    fn read_config(&mut self) -> Result<ImageConfig> {
        self.file.rewind().map_err(|e| content(&self.name, e))?;
        let mut archive = tar::Archive::new(GzDecoder::new(BufReader::new(&self.file)));
        let mut entries = archive.entries().map_err(|e| content(&self.name, e))?;
        let bad = |reason: String| Error::BadEntry { name: self.name.clone(), entry: CONFIG_PATH.into(), reason };
        let first = entries.next().ok_or_else(|| bad("it is missing".into()))?.map_err(|e| content(&self.name, e))?;
        if &*first.path_bytes() != CONFIG_PATH.as_bytes() || first.size() > CONFIG_MAX_BYTES {
            return Err(bad("it must be the first entry, of at most 64 KiB".into()));
        }
        serde_json::from_reader(first).map_err(|e| bad(e.to_string()))
    }
}

/// The content id of a file, without asking who signed it.
///
/// # Errors
/// `NotAnImage` when the header is not ours; those of [`Source::fetch`].
pub fn id(source: &Source) -> Result<String> {
    let (_, hash) = read_and_hash(&source.name(), &mut source.fetch()?)?;
    Ok(content_id(&hash))
}

fn content_id(hash: &[u8; 32]) -> String {
    format!("sha256:{}", hex(hash))
}

fn content(name: &str, source: io::Error) -> Error {
    Error::Content { name: name.into(), source }
}

fn read_and_hash(name: &str, file: &mut File) -> Result<(Header, [u8; 32])> {
    let mut head = Vec::new();
    file.take(HEADER_BYTES as u64).read_to_end(&mut head).map_err(|e| content(name, e))?;
    let header =
        Header::decode(&head).map_err(|reason| Error::NotAnImage { name: name.into(), reason: reason.into() })?;
    let mut hash = Sha256::new();
    io::copy(file, &mut hash).map_err(|e| content(name, e))?;
    Ok((header, hash.finalize().into()))
}

fn check_path(bytes: &[u8]) -> Result<String, &'static str> {
    let path = std::str::from_utf8(bytes).map_err(|_| "its path is not UTF-8")?;
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.len() > PATH_MAX_BYTES {
        return Err("its path is too long");
    }
    if path.starts_with('/') {
        return Err("its path is absolute");
    }
    if path.contains('\0') || path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("its path has empty parts, `.` or `..`");
    }
    Ok(path.to_owned())
}

fn check_kind<R: Read>(path: &str, entry: &tar::Entry<'_, R>) -> Result<Kind, &'static str> {
    let mode = entry.header().mode().map_err(|_| "its mode is no number")?;
    if mode & !0o777 != 0 {
        return Err("it is setuid, setgid or sticky");
    }
    let link = || match entry.link_name_bytes() {
        Some(bytes) if bytes.len() <= PATH_MAX_BYTES => {
            String::from_utf8(bytes.into_owned()).map_err(|_| "its link is not UTF-8")
        }
        _ => Err("its link is missing or too long"),
    };
    match entry.header().entry_type() {
        EntryType::Directory => Ok(Kind::Dir { mode }),
        EntryType::Regular | EntryType::Continuous => Ok(Kind::File { mode, len: entry.size() }),
        EntryType::Symlink => {
            let target = link()?;
            if stays_inside(path, &target) {
                Ok(Kind::Symlink { target })
            } else {
                Err("the symbolic link leaves the root")
            }
        }
        EntryType::Link => Ok(Kind::HardLink { first: check_path(link()?.as_bytes())? }),
        EntryType::Char | EntryType::Block => Err("it is a device node"),
        EntryType::Fifo => Err("it is a pipe"),
        _ => Err("it is of a kind that no image holds"),
    }
}
