//! Image archives that strangers send: docker-archive (`manifest.json`) and OCI layout (`index.json`), one tar file.
//!
//! The archive is indexed and read in place. Nothing of it is ever written under a name that it chose.

use crate::digest::Digest;
use crate::fail::{MAX_ARCHIVE_ENTRIES, MAX_CONFIG, MAX_MANIFEST, Result, invalid, io};
use crate::headers::Bound;
use crate::manifest::{Descriptor, Index, Manifest, Platform, is_index};
use crate::reference::Reference;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// How deep lists of manifests may nest.
const MAX_INDEX_DEPTH: usize = 3;
/// How many images one archive may hold.
const MAX_IMAGES: usize = 200;

/// An indexed archive.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    files: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

/// An image in an archive.
#[derive(Debug)]
pub struct Candidate {
    /// Its configuration.
    pub config: Vec<u8>,
    /// Its manifest as it came, with its media type, if the archive has one.
    pub manifest: Option<(String, Vec<u8>)>,
    /// Where its layers are in the archive, lowest first, and the digest that each must have if it is known.
    pub layers: Vec<(String, Option<Digest>)>,
    /// Its references.
    pub tags: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Archive {
    /// Indexes an uncompressed archive.
    ///
    /// # Errors
    /// `Invalid` when it is damaged, cut short, or has names that leave it.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(io("cannot open an archive"))?;
        let length = file.metadata().map_err(io("cannot read an archive's size"))?.len();
        let mut archive = Self { path: path.to_owned(), files: HashMap::new(), links: HashMap::new() };
        let bound = Bound::default();
        let mut reader = tar::Archive::new(bound.reader(file));
        let mut entries = reader.entries_with_seek().map_err(io("cannot read the archive"))?;
        let mut count = 0;
        while let Some(entry) = bound.next(&mut entries) {
            count += 1;
            if count > MAX_ARCHIVE_ENTRIES {
                return Err(invalid(format!("the archive has more than {MAX_ARCHIVE_ENTRIES} files")));
            }
            let entry = entry.map_err(io("the archive is damaged or no tar archive"))?;
            let name = inner_name(&entry.path().map_err(io("the archive has an unreadable name"))?)?;
            let (at, size) = (entry.raw_file_position(), entry.size());
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    if at.checked_add(size).is_none_or(|end| end > length) {
                        return Err(invalid(format!("the archive ends in the middle of {name:?}")));
                    }
                    archive.files.insert(name, (at, size));
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let hard = entry.header().entry_type() == tar::EntryType::Link;
                    let target =
                        entry.link_name().map_err(io("the archive has an unreadable link"))?.unwrap_or_default();
                    let base = if hard { Path::new("") } else { Path::new(&name).parent().unwrap_or(Path::new("")) };
                    if let Some(target) = join_inside(base, &target) {
                        archive.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        Ok(archive)
    }

    /// The images in the archive.
    ///
    /// # Errors
    /// `Invalid` when there are none, or when they name what is not there.
    pub fn images(&self) -> Result<Vec<Candidate>> {
        let mut found: BTreeMap<String, Candidate> = BTreeMap::new();
        if self.find("index.json").is_some() {
            let index = Index::parse(&self.small("index.json", MAX_MANIFEST)?)?;
            for descriptor in &index.manifests {
                self.read_descriptor(descriptor, &tags_of(descriptor), &mut found, 0)?;
            }
        }
        if self.find("manifest.json").is_some() {
            let bytes = self.small("manifest.json", MAX_MANIFEST)?;
            let entries: Vec<DockerEntry> =
                serde_json::from_slice(&bytes).map_err(|e| invalid(format!("manifest.json is not valid: {e}")))?;
            for entry in entries {
                self.read_docker(entry, &mut found)?;
            }
        }
        if found.is_empty() {
            return Err(invalid("the archive has no image: neither manifest.json nor index.json names one"));
        }
        Ok(found.into_values().collect())
    }

    /// Reads a file of the archive.
    ///
    /// # Errors
    /// `Invalid` when it is not there.
    pub fn reader(&self, name: &str) -> Result<impl Read + Send + use<>> {
        let (at, size) =
            self.find(name).ok_or_else(|| invalid(format!("the archive has no file {name:.200?}, which it names")))?;
        let mut file = File::open(&self.path).map_err(io("cannot open an archive"))?;
        file.seek(SeekFrom::Start(at)).map_err(io("cannot read an archive"))?;
        Ok(file.take(size))
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = name.to_owned();
        for _ in 0..8 {
            if let Some(found) = self.files.get(&name) {
                return Some(*found);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader(name)?.take(limit + 1).read_to_end(&mut bytes).map_err(io("cannot read an archive"))?;
        if bytes.len() as u64 > limit {
            return Err(invalid(format!("{name:.200?} in the archive is larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        let digest = descriptor.digest()?;
        let bytes = self.small(&blob_name(&digest), limit)?;
        if Digest::of(&bytes) != digest {
            return Err(invalid(format!("the archive's blob {digest} has another content: it is damaged")));
        }
        Ok(bytes)
    }

    fn read_descriptor(
        &self,
        descriptor: &Descriptor,
        tags: &[Reference],
        found: &mut BTreeMap<String, Candidate>,
        depth: usize,
    ) -> Result<()> {
        let bytes = self.blob(descriptor, MAX_MANIFEST)?;
        if is_index(&descriptor.media_type, &bytes) {
            let index = Index::parse(&bytes)?;
            let only = (index.manifests.len() == 1).then(|| index.manifests.first()).flatten();
            let Some(inner) = index.for_platform(&Platform::here()).or(only) else {
                return Err(invalid("the archive's image is for other machines than linux/amd64"));
            };
            if depth >= MAX_INDEX_DEPTH {
                return Err(invalid("lists of manifests nest too deep"));
            }
            return self.read_descriptor(inner, tags, found, depth + 1);
        }
        let manifest = Manifest::parse(&bytes)?;
        let config = self.blob(&manifest.config, MAX_CONFIG)?;
        let layers =
            manifest.layers.iter().map(|l| l.digest().map(|d| (blob_name(&d), Some(d)))).collect::<Result<Vec<_>>>()?;
        let media_type =
            if descriptor.media_type.is_empty() { manifest.media_type } else { descriptor.media_type.clone() };
        let candidate = Candidate { config, manifest: Some((media_type, bytes)), layers, tags: Vec::new() };
        add(found, candidate, tags)
    }

    fn read_docker(&self, entry: DockerEntry, found: &mut BTreeMap<String, Candidate>) -> Result<()> {
        let tags =
            entry.repo_tags.unwrap_or_default().iter().map(|t| Reference::parse(t)).collect::<Result<Vec<_>>>()?;
        let config = self.small(&inner_name(Path::new(&entry.config))?, MAX_CONFIG)?;
        let layers = entry.layers.iter().map(|l| Ok((inner_name(Path::new(l))?, None))).collect::<Result<Vec<_>>>()?;
        add(found, Candidate { config, manifest: None, layers, tags: Vec::new() }, &tags)
    }
}

/// One image may be named several times: its tags are added up, and the manifest of the first one stays.
fn add(found: &mut BTreeMap<String, Candidate>, candidate: Candidate, tags: &[Reference]) -> Result<()> {
    if found.len() >= MAX_IMAGES {
        return Err(invalid(format!("the archive has more than {MAX_IMAGES} images")));
    }
    let kept = found.entry(Digest::of(&candidate.config).to_string()).or_insert(candidate);
    for tag in tags {
        if !kept.tags.contains(tag) {
            kept.tags.push(tag.clone());
        }
    }
    Ok(())
}

/// A full name stands in containerd's annotation; OCI's own is often the tag alone, which names nothing.
fn tags_of(descriptor: &Descriptor) -> Vec<Reference> {
    let get = |key: &str| descriptor.annotations.get(key);
    let full = get("io.containerd.image.name");
    let own = get("org.opencontainers.image.ref.name").filter(|n| n.contains([':', '/']));
    full.or(own).and_then(|n| Reference::parse(n).ok()).into_iter().filter(|r| r.tag.is_some()).collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name in the archive in its one form, without `./`.
fn inner_name(path: &Path) -> Result<String> {
    join_inside(Path::new(""), path)
        .filter(|_| !path.is_absolute() && path.components().all(|c| c != Component::ParentDir))
        .ok_or_else(|| invalid(format!("{:.200?} is no name inside of an archive", path.display().to_string())))
}

fn join_inside(base: &Path, path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in base.components().chain(path.components()) {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), builder.into_inner().unwrap()).unwrap();
        file
    }

    const CONFIG: &[u8] = br#"{"os":"linux","rootfs":{"diff_ids":[]}}"#;

    #[test]
    fn a_docker_archive_gives_its_images_with_their_tags() {
        let manifest = br#"[{"Config":"c.json","RepoTags":["a:1","x.io/b:2"],"Layers":["l/layer.tar"]}]"#;
        let file = tar(&[("manifest.json", manifest), ("./c.json", CONFIG), ("l/layer.tar", b"layer")]);
        let archive = Archive::open(file.path()).unwrap();
        let images = archive.images().unwrap();
        let tags: Vec<_> = images[0].tags.iter().map(ToString::to_string).collect();
        assert_eq!(tags, ["docker.io/library/a:1", "x.io/b:2"]);
        assert_eq!(images[0].layers, [("l/layer.tar".to_owned(), None)]);
        let mut layer = String::new();
        archive.reader("l/layer.tar").unwrap().read_to_string(&mut layer).unwrap();
        assert_eq!(layer, "layer");
    }

    #[test]
    fn archives_that_climb_lie_or_end_early_are_refused() {
        let up = tar(&[("../manifest.json", b"[]")]);
        assert!(Archive::open(up.path()).unwrap_err().message.contains("no name inside"));
        let climbing = tar(&[("manifest.json", br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)]);
        assert!(Archive::open(climbing.path()).unwrap().images().is_err());
        let missing = tar(&[("manifest.json", br#"[{"Config":"c","Layers":[]}]"#)]);
        assert!(Archive::open(missing.path()).unwrap().images().unwrap_err().message.contains("no file"));
        let empty = tar(&[("other", b"")]);
        assert!(Archive::open(empty.path()).unwrap().images().unwrap_err().message.contains("no image"));
        let cut = tar(&[("manifest.json", &[b' '; 5000])]);
        let bytes = std::fs::read(cut.path()).unwrap();
        std::fs::write(cut.path(), &bytes[..2000]).unwrap();
        assert!(Archive::open(cut.path()).unwrap_err().message.contains("ends in the middle"));
    }

    #[test]
    fn a_blob_with_another_content_than_its_digest_is_refused() {
        let digest = Digest::of(b"right");
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"","digest":"{digest}","size":5}}]}}"#);
        let file = tar(&[("index.json", index.as_bytes()), (&format!("blobs/sha256/{}", digest.hex()), b"wrong")]);
        assert!(Archive::open(file.path()).unwrap().images().unwrap_err().message.contains("damaged"));
    }

    #[test]
    fn links_to_earlier_layers_are_followed_but_not_in_circles() {
        let mut archive = Archive { path: PathBuf::new(), files: HashMap::new(), links: HashMap::new() };
        archive.files.insert("a/layer.tar".into(), (1, 2));
        archive.links.insert("b/layer.tar".into(), join_inside(Path::new("b"), Path::new("../a/layer.tar")).unwrap());
        archive.links.insert("c".into(), "d".into());
        archive.links.insert("d".into(), "c".into());
        assert_eq!(archive.find("b/layer.tar"), Some((1, 2)));
        assert_eq!(archive.find("c"), None);
        assert_eq!(join_inside(Path::new("b"), Path::new("../../etc")), None);
    }
}
