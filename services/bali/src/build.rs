//! Makes an image from a folder with a Dockerfile, or from a root file system.

use crate::config::ImageConfig;
use crate::error::{Error, Result};
use crate::keys::SigningKey;
use crate::tree::{Node, Tree};
use crate::{dockerfile, engine, pack};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// An image's files and how it is started; what is still to be packed.
#[derive(Debug)]
pub struct Content {
    /// The files.
    pub tree: Tree,
    /// How it is started.
    pub config: ImageConfig,
    // The files' sources may lie in it.
    _root: Option<tempfile::TempDir>,
}

impl Content {
    /// From a folder with a `Dockerfile`.
    ///
    /// # Errors
    /// `Dockerfile` with the line that is wrong, `File` or `Invalid` when a file cannot be taken.
    pub fn from_dockerfile(dir: &Path) -> Result<Self> {
        let path = dir.join("Dockerfile");
        let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        if dockerfile::base(&text)? != "scratch" {
            let built = engine::build(dir)?;
            let mut tree = Tree::default();
            tree.add_root(built.root.path())?;
            return Ok(Self { tree, config: built.config, _root: Some(built.root) });
        }
        let file = dockerfile::parse(&text)?;
        let mut tree = Tree::default();
        for copy in &file.copies {
            tree.copy(dir, copy)?;
        }
        Ok(Self { tree, config: file.config, _root: None })
    }

    /// From a root file system: a folder, or a tar that may be gzipped. It has no configuration.
    ///
    /// # Errors
    /// `File`, `Content` or `Invalid` when it cannot be read.
    pub fn from_root(path: &Path) -> Result<Self> {
        let mut tree = Tree::default();
        if path.is_dir() {
            tree.add_root(path)?;
            return Ok(Self { tree, config: ImageConfig::default(), _root: None });
        }
        let root = tempfile::tempdir().map_err(Error::file("make a folder in", std::env::temp_dir()))?;
        let mut file = BufReader::new(File::open(path).map_err(Error::file("open", path))?);
        let mut magic = [0; 2];
        file.read_exact(&mut magic).map_err(Error::file("read", path))?;
        let file = magic.chain(file);
        if magic == [0x1f, 0x8b] {
            engine::unpack_tar(flate2::read::MultiGzDecoder::new(file), root.path())?;
        } else {
            engine::unpack_tar(file, root.path())?;
        }
        tree.add_root(root.path())?;
        Ok(Self { tree, config: ImageConfig::default(), _root: Some(root) })
    }

    /// Packs, signs, and puts the file in place at once: never half of it.
    ///
    /// # Errors
    /// `Invalid` when the program to start is not among the files, `File` when it cannot be written.
    pub fn write(&self, out: &Path, key: &SigningKey) -> Result<()> {
        self.check_entrypoint()?;
        let bytes = pack::pack(&self.tree, &self.config, key)?;
        let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::file("write in", dir))?;
        file.write_all(&bytes).map_err(Error::file("write", out))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(Error::file("write", out))?;
        file.persist(out).map_err(|e| Error::File { verb: "write", path: out.to_owned(), source: e.error })?;
        Ok(())
    }

    fn check_entrypoint(&self) -> Result<()> {
        let Some(program) = self.config.entrypoint.first().and_then(|p| p.strip_prefix('/')) else { return Ok(()) };
        match self.tree.nodes.get(program) {
            Some(Node::File { mode, .. }) if mode & 0o111 == 0 => {
                Err(Error::Invalid(format!("the entrypoint /{program} is not executable")))
            }
            Some(Node::Dir { .. }) => Err(Error::Invalid(format!("the entrypoint /{program} is a directory"))),
            // With `--host-usr` it may be a program of the host.
            None if program.starts_with("usr/") => Ok(()),
            // A path through a symbolic link is found when it is started.
            None if self.tree.nodes.values().any(|n| matches!(n, Node::Symlink { .. })) => Ok(()),
            None => Err(Error::Invalid(format!("the entrypoint /{program} is not among the files that are copied"))),
            Some(_) => Ok(()),
        }
    }
}
