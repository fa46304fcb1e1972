//! The files of an image before they are packed: paths below the root, sorted.
//!
//! Owners and times are not kept. Absolute symbolic links are made relative, so that they mean the same wherever the image
//! is unpacked; setuid and setgid bits are dropped, since a payload gains no privileges.

use crate::dockerfile::Copy;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Where its bytes are.
        source: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link, relative.
    Symlink {
        /// What it says.
        target: String,
    },
    /// Another name of a file that comes earlier.
    HardLink {
        /// That file's path.
        first: String,
    },
}

/// All files of an image, by their path without a leading `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The files.
    pub nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds what a COPY names, from the folder `context`. Modes become 0755 for directories and executable files,
    /// 0644 for others, so that the image does not depend on the builder's umask.
    ///
    /// # Errors
    /// `File` when a source is missing, `Invalid` when it lies outside of the folder or is something special.
    pub fn copy(&mut self, context: &Path, copy: &Copy) -> Result<()> {
        let context = context.canonicalize().map_err(Error::file("read", context))?;
        let target = clean(&copy.target)?;
        let into_dir = copy.target.ends_with('/') || copy.target.ends_with("/.") || copy.sources.len() > 1;
        for name in &copy.sources {
            let source = context.join(name.trim_start_matches('/'));
            let real = source.canonicalize().map_err(Error::file("copy", &source))?;
            if !real.starts_with(&context) {
                return Err(Error::Invalid(format!("COPY {name}: it lies outside of {}", context.display())));
            }
            let meta = real.metadata().map_err(Error::file("copy", &real))?;
            let base = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if meta.is_dir() {
                self.walk(&real, &target, &mut Some(copy.chmod))?;
            } else if into_dir {
                self.add(&real, &join(&target, &base), &meta, &mut Some(copy.chmod), &mut HashMap::new())?;
            } else {
                self.add(&real, &target, &meta, &mut Some(copy.chmod), &mut HashMap::new())?;
            }
        }
        Ok(())
    }

    /// Adds a whole root file system that lies in `dir`, with its permission bits.
    ///
    /// # Errors
    /// `File` when something cannot be read, `Invalid` for devices, sockets and links that leave the root.
    pub fn add_root(&mut self, dir: &Path) -> Result<()> {
        self.walk(dir, "", &mut None)
    }

    /// `normal`: none keeps the permission bits, else they are made regular, or the given ones.
    fn walk(&mut self, dir: &Path, prefix: &str, normal: &mut Option<Option<u32>>) -> Result<()> {
        let mut links = HashMap::new();
        let mut open = vec![(dir.to_owned(), prefix.to_owned())];
        while let Some((dir, prefix)) = open.pop() {
            let meta = dir.symlink_metadata().map_err(Error::file("read", &dir))?;
            self.directory(&prefix, if normal.is_some() { 0o755 } else { meta.permissions().mode() & 0o777 })?;
            let mut entries = std::fs::read_dir(&dir)
                .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
                .map_err(Error::file("read", &dir))?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let source = entry.path();
                let name = entry
                    .file_name()
                    .into_string()
                    .map_err(|n| Error::Invalid(format!("the name of {} is not UTF-8: {n:?}", source.display())))?;
                let path = join(&prefix, &name);
                let meta = source.symlink_metadata().map_err(Error::file("read", &source))?;
                if meta.is_dir() {
                    open.push((source, path));
                } else {
                    self.add(&source, &path, &meta, normal, &mut links)?;
                }
            }
        }
        self.order_links(&links);
        Ok(())
    }

    fn add(
        &mut self,
        source: &Path,
        path: &str,
        meta: &Metadata,
        normal: &mut Option<Option<u32>>,
        links: &mut HashMap<(u64, u64), Vec<String>>,
    ) -> Result<()> {
        self.parents(path)?;
        let node = if meta.is_symlink() {
            let target = std::fs::read_link(source).map_err(Error::file("read", source))?;
            Node::Symlink { target: relative(path, &target)? }
        } else if meta.is_file() {
            if meta.nlink() > 1 {
                links.entry((meta.dev(), meta.ino())).or_default().push(path.to_owned());
            }
            let bits = meta.permissions().mode() & 0o777;
            let mode = match *normal {
                None => bits,
                Some(Some(mode)) => mode,
                Some(None) if bits & 0o111 != 0 => 0o755,
                Some(None) => 0o644,
            };
            Node::File { source: source.to_owned(), mode }
        } else {
            return Err(Error::Invalid(format!(
                "{} is a device, socket or pipe: an image holds none",
                source.display()
            )));
        };
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// Of the names of one file the first in order is the file, the others are links to it.
    fn order_links(&mut self, links: &HashMap<(u64, u64), Vec<String>>) {
        for names in links.values() {
            let Some(first) = names.iter().min() else { continue };
            for name in names.iter().filter(|name| *name != first) {
                self.nodes.insert(name.clone(), Node::HardLink { first: first.clone() });
            }
        }
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            let dir = &path[..at];
            if !self.nodes.contains_key(dir) {
                self.directory(dir, 0o755)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        self.parents(path)?;
        match self.nodes.insert(path.to_owned(), Node::Dir { mode }) {
            None | Some(Node::Dir { .. }) => Ok(()),
            Some(_) => Err(Error::Invalid(format!("/{path} is a file and a directory at once"))),
        }
    }
}

/// A path in the image without `/` at its ends, `.` and empty parts.
///
/// # Errors
/// `Invalid` when it climbs.
pub fn clean(path: &str) -> Result<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(Error::Invalid(format!("{path:?} climbs out with `..`"))),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// What a symbolic link at `path` must say to mean `target` without being absolute.
fn relative(path: &str, target: &Path) -> Result<String> {
    let text = target.to_str().ok_or_else(|| Error::Invalid(format!("the link /{path} is not UTF-8")))?;
    let depth = path.matches('/').count();
    let text = match text.strip_prefix('/') {
        Some(absolute) => format!("{}{}", "../".repeat(depth), clean(absolute)?),
        None => text.to_owned(),
    };
    let text = if text.is_empty() { ".".to_owned() } else { text };
    if stays_inside(path, &text) {
        Ok(text)
    } else {
        Err(Error::Invalid(format!("the link /{path} → {text} leaves the root")))
    }
}

/// Whether a symbolic link at `path` that says `target` stays below the root, by its text alone.
#[must_use]
pub fn stays_inside(path: &str, target: &str) -> bool {
    let mut depth = path.matches('/').count();
    for component in Path::new(target).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    !target.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_stays_inside_or_not() {
        for (path, target, inside) in [
            ("a", "b", true),
            ("a/b", "../c", true),
            ("a/b", "../../c", false),
            ("a", "/etc", false),
            ("a/b/c", "x/../../../y", true),
            ("a/b/c", "x/../../../../y", false),
            ("a", "", false),
        ] {
            assert_eq!(stays_inside(path, target), inside, "{path} -> {target}");
        }
    }

    #[test]
    fn a_root_keeps_modes_and_loses_setuid_and_absolute_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("usr/bin")).unwrap();
        std::fs::write(at("usr/bin/su"), "x").unwrap();
        std::fs::set_permissions(at("usr/bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
        std::fs::hard_link(at("usr/bin/su"), at("usr/bin/a")).unwrap();
        symlink("/usr/bin", at("bin")).unwrap();
        symlink("/usr/bin/su", at("usr/bin/link")).unwrap();
        let mut tree = Tree::default();
        tree.add_root(dir.path()).unwrap();
        assert!(matches!(&tree.nodes["usr/bin/a"], Node::File { mode: 0o755, .. }));
        assert_eq!(tree.nodes["usr/bin/su"], Node::HardLink { first: "usr/bin/a".into() });
        assert_eq!(tree.nodes["bin"], Node::Symlink { target: "usr/bin".into() });
        assert_eq!(tree.nodes["usr/bin/link"], Node::Symlink { target: "../../usr/bin/su".into() });
    }

    #[test]
    fn copy_takes_nothing_from_outside_of_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ctx")).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", dir.path().join("ctx/link")).unwrap();
        for name in ["../secret", "link"] {
            let copy = Copy { sources: vec![name.into()], target: "/a".into(), chmod: None };
            assert!(matches!(Tree::default().copy(&dir.path().join("ctx"), &copy), Err(Error::Invalid(_))), "{name}");
        }
    }

    #[test]
    fn copy_puts_files_where_docker_would() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "x").unwrap();
        let paths = |sources: &[&str], target: &str| {
            let mut tree = Tree::default();
            let sources = sources.iter().map(ToString::to_string).collect();
            tree.copy(dir.path(), &Copy { sources, target: target.into(), chmod: None }).unwrap();
            tree.nodes.keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(paths(&["d/f"], "/x/y"), ["x", "x/y"]);
        assert_eq!(paths(&["d/f"], "/x/"), ["x", "x/f"]);
        assert_eq!(paths(&["d"], "/x"), ["x", "x/f"]);
        assert_eq!(paths(&["d"], "/"), ["f"]);
    }
}
