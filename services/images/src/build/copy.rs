//! COPY and ADD: which files go where, and the layer that comes of it. From headers and archives to an archive; nothing is
//! unpacked, no file of this machine is touched.

use super::files::{Kind, Node, Tree, clean, each, join};
use crate::compress;
use crate::digest::{Digest, HashWriter};
use crate::fail::{MAX_LAYER, Result, blocking, invalid, io};
use crate::store::Store;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Each star makes a pattern slower to match.
const MAX_STARS: usize = 10;

/// One entry of the layer.
#[derive(Clone, Debug)]
struct Out {
    node: Node,
    data: Data,
}

/// Where a file's content comes from.
#[derive(Clone, Debug)]
enum Data {
    /// It has none.
    None,
    /// An entry of an archive.
    Archive(PathBuf, usize),
    /// It is here.
    Here(Vec<u8>),
}

/// How files are placed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who owns them; none keeps the owners.
    pub owner: Option<(u64, u64)>,
    /// Permission bits, instead of their own.
    pub mode: Option<u32>,
}

/// A layer that is being put together on top of `base`.
#[derive(Debug)]
pub struct Plan<'a> {
    base: &'a Tree,
    outs: BTreeMap<String, Out>,
}

impl<'a> Plan<'a> {
    /// Nothing yet.
    pub fn new(base: &'a Tree) -> Self {
        Self { base, outs: BTreeMap::new() }
    }

    /// Places what the patterns name in `from` at `target`, an absolute path; one that ends in `/` is a folder.
    ///
    /// # Errors
    /// `Invalid` when a pattern names nothing, or several files go to what is no folder.
    pub fn place(&mut self, from: &Tree, patterns: &[String], target: &str, options: &Options) -> Result<()> {
        let mut sources = Vec::new();
        for pattern in patterns {
            sources.extend(matches(from, pattern)?);
        }
        if sources.len() > 1 && !target.ends_with('/') {
            return Err(invalid(
                "When using COPY or ADD with more than one source file, the destination must be a directory and end with a /",
            ));
        }
        for source in sources {
            let real = from.resolve(&source)?;
            if from.is_folder(&real) {
                self.place_folder(from, &real, target, options)?;
                continue;
            }
            let Some(node) = from.get(&real) else {
                return Err(invalid(format!(
                    "file not found in build context or excluded by .dockerignore: stat {source:.300}: file does not exist"
                )));
            };
            let name = source.rsplit('/').next().unwrap_or(&source);
            let data = Data::Archive(from.archives[node.at.0].clone(), node.at.1);
            self.place_file(node.clone(), data, name, target, options)?;
        }
        Ok(())
    }

    /// Places a file whose content is here.
    ///
    /// # Errors
    /// As [`Plan::place`].
    pub fn place_bytes(
        &mut self,
        name: &str,
        bytes: Vec<u8>,
        mtime: u64,
        target: &str,
        options: &Options,
    ) -> Result<()> {
        let kind = Kind::File(bytes.len() as u64);
        let hash = Some(Digest::of(&bytes).hex().to_owned());
        let node = Node { kind, mode: 0o644, uid: 0, gid: 0, mtime, at: (0, 0), xattrs: Vec::new(), hash };
        self.place_file(node, Data::Here(bytes), name, target, options)
    }

    fn place_file(&mut self, node: Node, data: Data, name: &str, target: &str, options: &Options) -> Result<()> {
        let real = self.base.resolve(target)?;
        let into = target.ends_with('/') || self.base.is_folder(&real) || self.is_planned_folder(&real);
        let path = if into { join(&real, name) } else { real };
        if self.base.is_folder(&path) {
            return Err(invalid(format!("cannot copy the file {name:.200?} over the folder /{path:.200}")));
        }
        self.add(path, node, data, options)
    }

    /// Places what is below a folder at `target`.
    ///
    /// # Errors
    /// `Invalid` when a folder goes where a file is.
    pub fn place_folder(&mut self, from: &Tree, folder: &str, target: &str, options: &Options) -> Result<()> {
        let real = self.base.resolve(target)?;
        if self.base.get(&real).is_some_and(|n| n.kind != Kind::Folder) {
            return Err(invalid(format!("cannot copy to non-directory: /{real:.200}")));
        }
        if !self.base.is_folder(&real) && !self.outs.contains_key(&real) {
            let (uid, gid) = options.owner.unwrap_or_default();
            self.outs.insert(real.clone(), Out { node: Node { uid, gid, ..plain_folder() }, data: Data::None });
            self.parents(&real)?;
        }
        for (path, node) in from.below(folder) {
            let below = path.strip_prefix(folder).unwrap_or(path).trim_start_matches('/');
            let (parent, name) = below.rsplit_once('/').unwrap_or(("", below));
            // A folder of the image may be a link to another.
            let place = join(&self.base.resolve(&join(&real, parent))?, name);
            if node.kind == Kind::Folder && self.base.is_folder(&self.base.resolve(&place)?) {
                continue;
            }
            let data = match node.kind {
                Kind::File(_) => Data::Archive(from.archives[node.at.0].clone(), node.at.1),
                _ => Data::None,
            };
            self.add(place, node.clone(), data, options)?;
        }
        Ok(())
    }

    fn is_planned_folder(&self, path: &str) -> bool {
        self.outs.get(path).is_some_and(|o| o.node.kind == Kind::Folder)
    }

    fn add(&mut self, path: String, mut node: Node, data: Data, options: &Options) -> Result<()> {
        if let Some((uid, gid)) = options.owner {
            (node.uid, node.gid) = (uid, gid);
        }
        if let (Some(mode), false) = (options.mode, matches!(node.kind, Kind::Link(_))) {
            node.mode = mode;
        }
        self.parents(&path)?;
        self.outs.insert(path, Out { node, data });
        Ok(())
    }

    /// Folders on the way: as they are in the image, else new ones. A layer that left them out would change them.
    fn parents(&mut self, path: &str) -> Result<()> {
        let mut rest = path;
        while let Some((parent, _)) = rest.rsplit_once('/') {
            rest = parent;
            if self.outs.contains_key(parent) {
                continue;
            }
            let node = match self.base.get(parent) {
                Some(node) if node.kind == Kind::Folder => node.clone(),
                Some(_) => return Err(invalid(format!("/{parent:.200} is not a directory"))),
                None => plain_folder(),
            };
            self.outs.insert(parent.to_owned(), Out { node, data: Data::None });
        }
        Ok(())
    }

    /// Makes sure that there is a folder at a path; false when it was there already.
    ///
    /// # Errors
    /// `Invalid` when something else is there.
    pub fn folder(&mut self, path: &str) -> Result<bool> {
        let real = self.base.resolve(path)?;
        if self.base.is_folder(&real) {
            return Ok(false);
        }
        self.add(real, plain_folder(), Data::None, &Options::default())?;
        Ok(true)
    }

    /// What makes this layer different from others, but times; contents whose hash is not known count by `source`.
    #[must_use]
    pub fn key(&self, source: &str) -> String {
        let mut text = String::new();
        for (path, out) in &self.outs {
            let n = &out.node;
            let hash = n.hash.as_deref().unwrap_or(source);
            let _ = writeln!(text, "{path:?} {:?} {:o} {} {} {hash} {:?}", n.kind, n.mode, n.uid, n.gid, n.xattrs);
        }
        Digest::of(text.as_bytes()).to_string()
    }

    /// Writes the layer's archive into the store; its digest and length.
    ///
    /// # Errors
    /// `NoSpace`; `Invalid` when a source is damaged.
    pub async fn write(self, store: &std::sync::Arc<Store>) -> Result<(Digest, u64)> {
        let (outs, store) = (self.outs, store.clone());
        blocking(move || write(&outs, &store)).await
    }
}

fn plain_folder() -> Node {
    Node { kind: Kind::Folder, mode: 0o755, uid: 0, gid: 0, mtime: 0, at: (0, 0), xattrs: Vec::new(), hash: None }
}

fn write(outs: &BTreeMap<String, Out>, store: &Store) -> Result<(Digest, u64)> {
    let mut builder = Builder::new(HashWriter::new(std::io::BufWriter::with_capacity(256 << 10, store.temp()?)));
    let failed = || io("cannot write a layer");
    let mut wanted: BTreeMap<&Path, BTreeMap<usize, Vec<&str>>> = BTreeMap::new();
    for (path, out) in outs {
        match &out.data {
            Data::None => append(&mut builder, path, &out.node, std::io::empty()).map_err(failed())?,
            Data::Here(bytes) => append(&mut builder, path, &out.node, &bytes[..]).map_err(failed())?,
            Data::Archive(archive, index) => wanted.entry(archive).or_default().entry(*index).or_default().push(path),
        }
    }
    for (archive, entries) in wanted {
        each(archive, |index, _, entry| {
            let Some(paths) = entries.get(&index) else { return Ok(()) };
            match paths.as_slice() {
                [path] => append(&mut builder, path, &outs[*path].node, entry).map_err(failed()),
                paths => {
                    // One file under several names, as hard links give: its content is kept aside.
                    let mut aside = store.temp()?;
                    std::io::copy(entry, &mut aside).map_err(failed())?;
                    for path in paths {
                        let file = File::open(aside.path()).map_err(failed())?;
                        append(&mut builder, path, &outs[*path].node, file).map_err(failed())?;
                    }
                    Ok(())
                }
            }
        })?;
    }
    let (digest, size, file) = builder.into_inner().map_err(failed())?.finish();
    let temp = file.into_inner().map_err(|e| failed()(e.into_error()))?;
    if size > MAX_LAYER {
        return Err(invalid(format!("the layer is larger than {MAX_LAYER} bytes")));
    }
    if !store.blob(&digest).exists() {
        store.keep(temp, &store.blob(&digest))?;
    }
    Ok((digest, size))
}

fn append(builder: &mut Builder<impl std::io::Write>, path: &str, node: &Node, data: impl Read) -> std::io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(node.mode);
    header.set_uid(node.uid);
    header.set_gid(node.gid);
    header.set_mtime(node.mtime);
    header.set_size(0);
    if !node.xattrs.is_empty() {
        builder.append_pax_extensions(node.xattrs.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
    }
    match &node.kind {
        Kind::Folder => {
            header.set_entry_type(EntryType::Directory);
            let name = if path.is_empty() { "./".to_owned() } else { format!("{path}/") };
            builder.append_data(&mut header, name, std::io::empty())
        }
        Kind::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, path, target)
        }
        Kind::Special(kind, major, minor) => {
            header.set_entry_type(*kind);
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            builder.append_data(&mut header, path, std::io::empty())
        }
        Kind::File(size) => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            builder.append_data(&mut header, path, data.take(*size))
        }
    }
}

/// Whether a file is an archive that ADD takes apart: tar, also gzip and zstd.
#[must_use]
pub fn is_archive(path: &Path) -> bool {
    let mut block = [0; 512];
    let read = || -> std::io::Result<()> {
        let (_, mut reader) = compress::reader(File::open(path)?)?;
        reader.read_exact(&mut block)
    };
    let mut read = read;
    read().is_ok() && {
        let header = Header::from_byte_slice(&block);
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        block.iter().any(|b| *b != 0) && header.cksum().is_ok_and(|c| c == sum)
    }
}

/// The paths that a pattern names.
fn matches(tree: &Tree, pattern: &str) -> Result<Vec<String>> {
    let path = clean(pattern);
    if !pattern.contains(['*', '?', '[']) {
        return match path.is_empty()
            || tree.get(&tree.resolve(&path)?).is_some()
            || tree.is_folder(&tree.resolve(&path)?)
        {
            true => Ok(vec![path]),
            false => Err(invalid(format!(
                "COPY failed: file not found in build context or excluded by .dockerignore: stat {pattern:.300}: file does not exist"
            ))),
        };
    }
    if pattern.matches('*').count() > MAX_STARS {
        return Err(invalid(format!("the pattern {pattern:.100} has more than {MAX_STARS} stars")));
    }
    let parts: Vec<Vec<char>> = path.split('/').map(|p| p.chars().collect()).collect();
    let mut found: Vec<String> = Vec::new();
    for (name, _) in tree.below("") {
        // A folder may have no entry of its own.
        let depth = name.split('/').take(parts.len()).collect::<Vec<_>>();
        let fits = depth.len() == parts.len()
            && depth.iter().zip(&parts).all(|(n, p)| glob(p, &n.chars().collect::<Vec<_>>()));
        let name = depth.join("/");
        if fits && found.last() != Some(&name) {
            found.push(name);
        }
    }
    found.dedup();
    match found.is_empty() {
        true => Err(invalid(format!("COPY failed: no source files were specified: nothing matches {pattern:.300}"))),
        false => Ok(found),
    }
}

/// Go's filepath.Match within one part of a path.
fn glob(pattern: &[char], text: &[char]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
    match first {
        '*' => (0..=text.len()).any(|n| glob(rest, &text[n..])),
        '?' => !text.is_empty() && glob(rest, &text[1..]),
        '[' => {
            let Some(end) = rest.iter().skip(1).position(|c| *c == ']').map(|p| p + 1) else { return false };
            let (class, after) = (&rest[..end], &rest[end + 1..]);
            let (negated, class) = match class.split_first() {
                Some(('^', class)) => (true, class),
                _ => (false, class),
            };
            let Some((c, text)) = text.split_first() else { return false };
            let mut at = 0;
            let mut inside = false;
            while at < class.len() {
                if at + 2 < class.len() && class[at + 1] == '-' {
                    inside |= (class[at]..=class[at + 2]).contains(c);
                    at += 3;
                } else {
                    inside |= class[at] == *c;
                    at += 1;
                }
            }
            inside != negated && glob(after, text)
        }
        '\\' => rest.split_first().is_some_and(|(c, rest)| text.first() == Some(c) && glob(rest, &text[1..])),
        c => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::archive;
    use super::*;

    fn tree(dir: &Path, name: &str, files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        tree.add(&archive(dir, name, files), true).unwrap();
        tree
    }

    fn check(sources: &[&str], target: &str, expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let base =
            tree(dir.path(), "base", &[("bin", "->usr/bin"), ("usr/bin/", ""), ("etc/passwd", "x"), ("tmp/", "")]);
        let context = tree(
            dir.path(),
            "context",
            &[
                ("a.txt", "1"),
                ("b.txt", "2"),
                ("dir/", ""),
                ("dir/sub/x", "3"),
                ("dir/link", "->sub/x"),
                ("l", "->a.txt"),
            ],
        );
        let patterns: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        let mut plan = Plan::new(&base);
        let options = Options { owner: Some((0, 0)), mode: None };
        let placed = plan.place(&context, &patterns, target, &options);
        let paths: Vec<&str> =
            plan.outs.iter().filter(|(_, o)| o.node.kind != Kind::Folder).map(|(p, _)| p.as_str()).collect();
        match expected {
            [] => assert!(placed.is_err(), "{sources:?} {target}: {paths:?}"),
            expected => {
                assert_eq!((placed.map_err(|e| e.message), paths), (Ok(()), expected.to_vec()), "{sources:?} {target}");
            }
        }
    }

    #[test]
    fn files_go_where_docker_puts_them() {
        check(&["a.txt"], "/x", &["x"]);
        check(&["a.txt"], "/x/", &["x/a.txt"]);
        check(&["a.txt"], "/tmp", &["tmp/a.txt"]);
        check(&["a.txt"], "/bin/tool", &["usr/bin/tool"]);
        check(&["*.txt"], "/d/", &["d/a.txt", "d/b.txt"]);
        check(&["dir"], "/d", &["d/link", "d/sub/x"]);
        check(&["dir/"], "/bin", &["usr/bin/link", "usr/bin/sub/x"]);
        check(&["di[a-r]/sub"], "/d", &["d/x"]);
        check(&["."], "/app/", &["app/a.txt", "app/b.txt", "app/dir/link", "app/dir/sub/x", "app/l"]);
        check(&["l"], "/x", &["x"]);
        check(&["../../a.txt"], "/x", &["x"]);
        check(&["a.txt", "b.txt"], "/x", &[]);
        check(&["none"], "/x", &[]);
        check(&["*.rs"], "/x", &[]);
        check(&["dir"], "/etc/passwd", &[]);
    }

    #[tokio::test]
    async fn a_layer_keeps_the_images_folders_and_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = std::sync::Arc::new(Store::open(&dir.path().join("store")).unwrap());
        let base = tree(dir.path(), "base", &[("tmp/", ""), ("tmp/x/", "")]);
        let context = tree(dir.path(), "context", &[("f", "content")]);
        let mut made = Vec::new();
        for _ in 0..2 {
            let mut plan = Plan::new(&base);
            plan.place(&context, &["f".into()], "/tmp/x/f", &Options { owner: Some((3, 4)), mode: Some(0o600) })
                .unwrap();
            made.push(plan.write(&store).await.unwrap());
        }
        assert_eq!(made[0], made[1]);
        let mut layer = Tree::default();
        layer.add(&store.blob(&made[0].0), true).unwrap();
        let owners: Vec<_> = layer.below("").map(|(p, n)| (p, n.uid, n.mode)).collect();
        assert_eq!(owners, [("tmp", 7, 0o755), ("tmp/x", 7, 0o755), ("tmp/x/f", 3, 0o600)]);
        assert!(is_archive(&store.blob(&made[0].0)) && !is_archive(&dir.path().join("none")));
    }
}
