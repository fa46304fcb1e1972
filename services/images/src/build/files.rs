//! The files of an image or a build context, known from its archives' headers: nothing is ever unpacked.
//!
//! A [`Tree`] says what is where and in which archive its content lies. Paths are without a leading slash; the root is the
//! empty path.

use crate::compress;
use crate::digest::HashWriter;
use crate::fail::{MAX_LAYER, MAX_LAYER_ENTRIES, Result, invalid, io};
use crate::headers::{Bound, Bounded};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// As many links as Linux follows.
const MAX_LINKS: usize = 40;

/// What something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of this length.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link.
    Link(String),
    /// A device, with major and minor number, or a pipe.
    Special(tar::EntryType, u32, u32),
}

/// A file, folder or other.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: u64,
    /// The archive with its content, and the entry's number in it.
    pub at: (usize, usize),
    /// `SCHILY.xattr.…` records.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// The hash of a file's content, when it was asked for.
    pub hash: Option<String>,
}

/// All files.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    /// The archives, lowest layer first.
    pub archives: Vec<PathBuf>,
}

impl Tree {
    /// Adds an archive's entries: a layer (with whiteouts) or a context. With `hash` the contents are hashed.
    ///
    /// # Errors
    /// `Invalid` when it is damaged or has names that climb.
    pub fn add(&mut self, archive: &Path, hash: bool) -> Result<()> {
        let number = self.archives.len();
        self.archives.push(archive.to_owned());
        let mut opaque = Vec::new();
        each(archive, |index, name, entry| {
            if index >= MAX_LAYER_ENTRIES {
                return Err(invalid(format!("an archive has more than {MAX_LAYER_ENTRIES} files")));
            }
            let (folder, last) = name.rsplit_once('/').unwrap_or(("", &name));
            if last == ".wh..wh..opq" {
                opaque.push(folder.to_owned());
                return Ok(());
            }
            if let Some(gone) = last.strip_prefix(".wh.") {
                let path = join(folder, gone);
                self.remove_if(&path, |n| n.at.0 < number);
                return Ok(());
            }
            let node = self.node(&name, (number, index), entry, hash)?;
            if let Some(node) = node {
                if node.kind != Kind::Folder {
                    self.remove_if(&name, |_| true);
                }
                self.nodes.insert(name, node);
            }
            Ok(())
        })?;
        for folder in opaque {
            let below: Vec<String> =
                self.below(&folder).filter(|(_, n)| n.at.0 < number).map(|(p, _)| p.to_owned()).collect();
            below.iter().for_each(|path| drop(self.nodes.remove(path)));
        }
        Ok(())
    }

    fn node(
        &self,
        name: &str,
        at: (usize, usize),
        entry: &mut tar::Entry<'_, impl Read>,
        hash: bool,
    ) -> Result<Option<Node>> {
        let header = entry.header().clone();
        let device = |n: std::io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
        let link = || -> Result<String> {
            let target = entry.link_name().map_err(io("an archive has an unreadable link"))?.unwrap_or_default();
            Ok(target.to_string_lossy().into_owned())
        };
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Folder,
            tar::EntryType::Symlink => Kind::Link(link()?),
            // Another name of a file that came before, with the same content.
            tar::EntryType::Link => {
                let target = clean(&link()?);
                return match self.nodes.get(&target) {
                    Some(node) => Ok(Some(node.clone())),
                    None => Err(invalid(format!("{name:.200?} is a hard link to {target:.200?}, which is not there"))),
                };
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                let (major, minor) = (device(header.device_major()), device(header.device_minor()));
                Kind::Special(header.entry_type(), major, minor)
            }
            kind if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() => Kind::File(entry.size()),
            _ => return Ok(None),
        };
        let mut xattrs = Vec::new();
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions.flatten() {
                if let Some(key) = extension.key().ok().filter(|k| k.starts_with("SCHILY.xattr.")) {
                    xattrs.push((key.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        let hash = match kind {
            Kind::File(_) if hash => {
                let mut writer = HashWriter::new(std::io::sink());
                std::io::copy(entry, &mut writer).map_err(io(format!("cannot read {name:.200?} of an archive")))?;
                Some(writer.finish().0.hex().to_owned())
            }
            _ => None,
        };
        let number = |n: std::io::Result<u64>| n.unwrap_or(0);
        let (uid, gid, mtime) = (number(header.uid()), number(header.gid()), number(header.mtime()));
        Ok(Some(Node { kind, mode: header.mode().unwrap_or(0o644) & 0o7777, uid, gid, mtime, at, xattrs, hash }))
    }

    fn remove_if(&mut self, path: &str, which: impl Fn(&Node) -> bool) {
        let gone: Vec<String> = self
            .below(path)
            .filter(|(_, n)| which(n))
            .map(|(p, _)| p.to_owned())
            .chain(self.nodes.get(path).filter(|n| which(n)).map(|_| path.to_owned()))
            .collect();
        gone.iter().for_each(|path| drop(self.nodes.remove(path)));
    }

    /// What is at a path that has no links in it.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Everything below a folder, at any depth, in order.
    pub fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = (&'a str, &'a Node)> + use<'a> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let from = prefix.clone();
        self.nodes
            .range(from..)
            .take_while(move |(p, _)| p.starts_with(&prefix))
            .filter(|(p, _)| !p.is_empty())
            .map(|(p, n)| (p.as_str(), n))
    }

    /// Whether a path is a folder; one that only holds files is one, without an entry of its own.
    #[must_use]
    pub fn is_folder(&self, path: &str) -> bool {
        match self.nodes.get(path) {
            Some(node) => node.kind == Kind::Folder,
            None => path.is_empty() || self.below(path).next().is_some(),
        }
    }

    /// The path without links on the way, nor at its end; what is not there is taken as it is written.
    ///
    /// # Errors
    /// `Invalid` when links go in circles.
    pub fn resolve(&self, path: &str) -> Result<String> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut done, mut links): (Vec<String>, usize) = (Vec::new(), 0);
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if let Some(Kind::Link(target)) = self.nodes.get(&done.join("/")).map(|n| &n.kind) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(invalid(format!("too many levels of symbolic links at {path:.200?}")));
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Ok(done.join("/"))
    }

    /// A file's content.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let real = self.resolve(path)?;
        let node = self.nodes.get(&real).filter(|n| matches!(n.kind, Kind::File(_)));
        let node = node.ok_or_else(|| crate::fail::not_found(format!("{path:.200?} is not there")))?;
        let mut found = Vec::new();
        each(&self.archives[node.at.0], |index, _, entry| {
            if index == node.at.1 {
                entry.take(limit).read_to_end(&mut found).map_err(io(format!("cannot read {path:.200?}")))?;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// Calls `look` for each entry of an archive, which may be compressed, with its number and its name in clean form.
///
/// # Errors
/// `Invalid` when it is damaged; what `look` gives.
pub fn each<'a>(
    archive: &Path,
    mut look: impl FnMut(usize, String, &mut tar::Entry<'_, Bounded<Box<dyn Read + Send + 'a>>>) -> Result<()>,
) -> Result<()> {
    let file = File::open(archive).map_err(io("cannot open an archive"))?;
    let (_, reader) = compress::reader(file).map_err(io("cannot read an archive"))?;
    let reader: Box<dyn Read + Send + 'a> = Box::new(reader.take(MAX_LAYER));
    let bound = Bound::default();
    let mut archive = tar::Archive::new(bound.reader(reader));
    let mut entries = archive.entries().map_err(io("cannot read an archive"))?;
    let mut index = 0;
    while let Some(entry) = bound.next(&mut entries) {
        let mut entry = entry.map_err(io("an archive is damaged"))?;
        let name = entry.path().map_err(io("an archive has an unreadable name"))?.to_string_lossy().into_owned();
        if name.split('/').any(|part| part == "..") {
            return Err(invalid(format!("an archive has a file named {name:.200?}: names must not climb")));
        }
        look(index, clean(&name), &mut entry)?;
        index += 1;
        // What is left of the file, so that nothing but headers comes before the next one.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(io("an archive is damaged"))?;
    }
    Ok(())
}

/// A path in its one form: without slashes at its ends, `.` and `..`.
#[must_use]
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A path below a folder, both in clean form.
#[must_use]
pub fn join(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", name) => name.to_owned(),
        (folder, "") => folder.to_owned(),
        (folder, name) => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An archive; a name that ends in `/` is a folder, content that begins with `->` a link.
    pub fn archive(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(if path.ends_with('/') { 0o755 } else { 0o640 });
            header.set_uid(7);
            header.set_size(0);
            if let Some(target) = content.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            } else {
                let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
                header.set_entry_type(kind);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
        }
        let file = dir.join(name);
        std::fs::write(&file, builder.into_inner().unwrap()).unwrap();
        file
    }

    #[test]
    fn layers_lie_on_each_other_with_their_whiteouts() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        let lower = [
            ("bin", "->usr/bin"),
            ("usr/bin/", ""),
            ("usr/bin/sh", "x"),
            ("a/b/old", "1"),
            ("gone", "2"),
            ("o/x", "3"),
        ];
        tree.add(&archive(dir.path(), "1", &lower), false).unwrap();
        tree.add(
            &archive(dir.path(), "2", &[(".wh.gone", ""), ("o/.wh..wh..opq", ""), ("o/y", "new"), ("a/b/.wh.old", "")]),
            true,
        )
        .unwrap();
        let paths: Vec<&str> = tree.below("").map(|(p, _)| p).collect();
        assert_eq!(paths, ["bin", "o/y", "usr/bin", "usr/bin/sh"]);
        assert_eq!(tree.resolve("/bin/sh").unwrap(), "usr/bin/sh");
        assert_eq!(tree.resolve("bin/../../bin/new/file").unwrap(), "usr/bin/new/file");
        assert_eq!(tree.read("/bin/sh", 10).unwrap(), b"x");
        assert!(tree.is_folder("usr") && tree.is_folder("") && !tree.is_folder("gone"));
        assert!(tree.get("o/y").unwrap().hash.is_some());
    }

    #[test]
    fn links_in_circles_and_names_that_climb_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.add(&archive(dir.path(), "1", &[("a", "->b"), ("b", "->/a")]), false).unwrap();
        assert!(tree.resolve("a/x").is_err());
        let mut bytes = std::fs::read(archive(dir.path(), "2", &[("xx/evil", "1")])).unwrap();
        bytes[..2].copy_from_slice(b"..");
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        std::fs::write(dir.path().join("3"), bytes).unwrap();
        assert!(Tree::default().add(&dir.path().join("3"), false).unwrap_err().message.contains("climb"));
    }
}
