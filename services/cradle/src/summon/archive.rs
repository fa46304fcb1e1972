//! The archive that `docker save` writes: `manifest.json`, an image's configuration, its layers.
//!
//! Whoever made it is a stranger. It is indexed and read in place; nothing of it is ever written under a name that it chose.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path};
use zone::ids::hex;

/// Bytes of an archive, uncompressed.
pub const MAX_ARCHIVE: u64 = 64 << 30;
/// Layers of an image.
pub const MAX_LAYERS: usize = 128;
/// Bytes of `manifest.json`, and of an image's configuration.
const MAX_DOCUMENT: u64 = 8 << 20;
const MAX_ENTRIES: usize = 20_000;
/// A link may lead to a link, but not in circles.
const MAX_LINKS: usize = 8;

/// An indexed archive.
#[derive(Debug)]
pub struct Archive {
    file: File,
    files: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

/// The one image in an archive.
#[derive(Debug)]
pub struct Found {
    /// Its configuration.
    pub config: Vec<u8>,
    /// The names of its layers in the archive, lowest first.
    pub layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

impl Archive {
    /// Indexes an uncompressed archive.
    ///
    /// # Errors
    /// When it is damaged, cut short, or has names that leave it.
    pub fn open(file: File) -> Result<Self> {
        let length = file.metadata().context("its size cannot be read")?.len();
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut reader = tar::Archive::new(&file);
        for (count, entry) in reader.entries_with_seek().context("it cannot be read")?.enumerate() {
            ensure!(count < MAX_ENTRIES, "it has more than {MAX_ENTRIES} files");
            let entry = entry.context("it is damaged, or no tar archive")?;
            let name = inner_name(&entry.path().context("it has an unreadable name")?)?;
            let (at, size) = (entry.raw_file_position(), entry.size());
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    ensure!(at.checked_add(size).is_some_and(|end| end <= length), "it ends in the middle of {name:?}");
                    files.insert(name, (at, size));
                }
                kind @ (tar::EntryType::Symlink | tar::EntryType::Link) => {
                    let target = entry.link_name().context("it has an unreadable link")?.unwrap_or_default();
                    let base = if kind.is_symlink() { Path::new(&name).parent() } else { None };
                    if let Some(target) = join(base.unwrap_or(Path::new("")), &target) {
                        links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(Self { file, files, links })
    }

    /// The image.
    ///
    /// # Errors
    /// When there is none or more than one, or when it names what is not there or has another hash than its name says.
    pub fn image(&self) -> Result<Found> {
        let manifest = self.document("manifest.json").context("`docker save` makes archives with one")?;
        let mut entries: Vec<Entry> = serde_json::from_slice(&manifest).context("its manifest.json is not valid")?;
        let (count, entry) = (entries.len(), entries.pop());
        let entry = entry.filter(|_| count == 1).with_context(|| {
            format!("it has {count} images, but a bundle is made of one: save one image into an archive of its own")
        })?;
        ensure!(entry.layers.len() <= MAX_LAYERS, "its image has more than {MAX_LAYERS} layers");
        let config = self.document(&inner_name(Path::new(&entry.config))?)?;
        if let Some(expected) = digest_in(&entry.config) {
            let found = hex(&Sha256::digest(&config));
            ensure!(found == expected, "the image's configuration has the hash {found}, its name says {expected}");
        }
        let layers = entry.layers.iter().map(|name| inner_name(Path::new(name))).collect::<Result<_>>()?;
        Ok(Found { config, layers })
    }

    /// Reads a file of the archive.
    ///
    /// # Errors
    /// When it is not there.
    pub fn reader(&self, name: &str) -> Result<impl Read + '_> {
        let (at, size) = self.find(name).with_context(|| format!("it has no file {name:.200?}"))?;
        Ok(Section { file: &self.file, at, end: at + size })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            if let Some(found) = self.files.get(name) {
                return Some(*found);
            }
            name = self.links.get(name)?;
        }
        None
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader(name)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).context("it cannot be read")?;
        ensure!(bytes.len() as u64 <= MAX_DOCUMENT, "its file {name:.200?} is larger than {MAX_DOCUMENT} bytes");
        Ok(bytes)
    }
}

/// A piece of a file; any number of them can be read at the same time.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// Copies a stream to its end, uncompressed if it is gzip; gives the SHA-256 of what was written.
///
/// # Errors
/// When there is more than `limit`, or when the stream is damaged or the output cannot be written.
pub fn unpack(from: impl Read, mut to: impl Write, limit: u64) -> Result<String> {
    let mut from = BufReader::with_capacity(128 << 10, from);
    let is_gzip = from.fill_buf().context("it cannot be read")?.starts_with(&[0x1f, 0x8b]);
    let mut from: Box<dyn Read> =
        if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(from)) } else { Box::new(from) };
    let (mut hash, mut total, mut buffer) = (Sha256::new(), 0_u64, vec![0; 128 << 10]);
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("it is damaged"),
        };
        total += got as u64;
        ensure!(total <= limit, "it is larger than {limit} bytes");
        hash.update(&buffer[..got]);
        to.write_all(&buffer[..got]).context("the copy cannot be written")?;
    }
    Ok(hex(&hash.finalize()))
}

/// 64 lower-case hexadecimal digits, as the names of configurations are (`HEX.json`, `blobs/sha256/HEX`).
fn digest_in(name: &str) -> Option<&str> {
    let stem = Path::new(name).file_name()?.to_str()?;
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    is_hash(stem).then_some(stem)
}

/// Whether these are the digits of a SHA-256.
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A name in the archive in its one form, without `./`.
fn inner_name(path: &Path) -> Result<String> {
    let climbs = path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir));
    match join(Path::new(""), path) {
        Some(name) if !climbs => Ok(name),
        _ => bail!("{:.200?} is no name inside of an archive", path.display().to_string()),
    }
}

fn join(base: &Path, path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in base.components().chain(path.components()) {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summon::testing::tar;

    const MANIFEST: &[u8] = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]"#;

    fn open(bytes: &[u8]) -> Result<Archive> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        Archive::open(file)
    }

    fn problem(files: &[(&str, &[u8])]) -> String {
        format!("{:#}", open(&tar(files)).and_then(|archive| archive.image()).unwrap_err())
    }

    #[test]
    fn an_archive_gives_its_image_and_its_layers() {
        let archive =
            open(&tar(&[("manifest.json", MANIFEST), ("./c.json", b"{}"), ("l/layer.tar", b"layer")])).unwrap();
        let image = archive.image().unwrap();
        assert_eq!((image.config, &image.layers), (b"{}".to_vec(), &vec!["l/layer.tar".to_owned()]));
        let mut layer = String::new();
        archive.reader("l/layer.tar").unwrap().read_to_string(&mut layer).unwrap();
        assert_eq!(layer, "layer");
    }

    #[test]
    fn archives_that_climb_lie_or_end_early_are_refused() {
        assert!(problem(&[("../manifest.json", b"[]")]).contains("no name inside"));
        assert!(problem(&[("manifest.json", br#"[{"Config":"../../etc/passwd"}]"#)]).contains("no name inside"));
        assert!(problem(&[("manifest.json", br#"[{"Config":"/etc/passwd"}]"#)]).contains("no name inside"));
        assert!(problem(&[("manifest.json", br#"[{"Config":"c"}]"#)]).contains("no file \"c\""));
        assert!(problem(&[("other", b"")]).contains("manifest.json"));
        assert!(problem(&[("manifest.json", b"[]")]).contains("it has 0 images"));
        assert!(problem(&[("manifest.json", br#"[{"Config":"a"},{"Config":"b"}]"#)]).contains("it has 2 images"));
        let layers = vec!["x"; MAX_LAYERS + 1];
        let many = format!(r#"[{{"Config":"c","Layers":{}}}]"#, serde_json::to_string(&layers).unwrap());
        assert!(problem(&[("manifest.json", many.as_bytes())]).contains("128 layers"));
        let whole = tar(&[("manifest.json", &[b' '; 5000])]);
        assert!(format!("{:#}", open(&whole[..2000]).unwrap_err()).contains("ends in the middle"));
        assert!(open(&[7; 2048]).is_err());
    }

    #[test]
    fn a_configuration_with_another_hash_than_its_name_says_is_refused() {
        let name = format!("blobs/sha256/{}", hex(&Sha256::digest(b"right")));
        let manifest = format!(r#"[{{"Config":"{name}","Layers":[]}}]"#);
        assert!(problem(&[("manifest.json", manifest.as_bytes()), (&name, b"wrong")]).contains("its name says"));
        let files: [(&str, &[u8]); 2] = [("manifest.json", manifest.as_bytes()), (&name, b"right")];
        assert!(open(&tar(&files)).unwrap().image().is_ok());
    }

    #[test]
    fn links_to_other_layers_are_followed_but_not_in_circles() {
        let mut archive = open(&tar(&[("a/layer.tar", b"x")])).unwrap();
        archive.links.insert("b/layer.tar".into(), join(Path::new("b"), Path::new("../a/layer.tar")).unwrap());
        archive.links.insert("c".into(), "d".into());
        archive.links.insert("d".into(), "c".into());
        assert_eq!(archive.find("b/layer.tar").map(|f| f.1), Some(1));
        assert_eq!(archive.find("c"), None);
        assert_eq!(join(Path::new("b"), Path::new("../../etc")), None);
    }

    #[test]
    fn a_stream_is_unpacked_by_its_first_bytes_up_to_a_limit() {
        let text = b"some text, some text".repeat(50);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        for bytes in [&text, &gzip] {
            let mut out = Vec::new();
            assert_eq!(unpack(&bytes[..], &mut out, 1000).unwrap(), hex(&Sha256::digest(&text)));
            assert_eq!(out, text);
            assert!(unpack(&bytes[..], io::sink(), 999).unwrap_err().to_string().contains("larger than 999"));
        }
        assert!(unpack(&gzip[..gzip.len() - 5], io::sink(), 1000).is_err());
    }
}
