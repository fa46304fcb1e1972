//! Opening a path in a directory whose contents are strangers' work: no symbolic link is followed, nothing leads out.
//!
//! Whoever gets the path next gets a descriptor, never the path again: between two looks a guest may have put a link there.

use anyhow::{Context as _, bail};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open as open_path, openat2};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// The deepest path that is made.
const MAX_DEPTH: usize = 64;

/// What was found.
#[derive(Debug)]
pub struct Opened {
    /// The folder, or the one that the file is in.
    pub folder: OwnedFd,
    /// The file's name.
    pub file: Option<String>,
}

/// Opens `path` in `root`; with `create`, a folder is made (with its parents, owned by root) when nothing is there.
///
/// # Errors
/// When nothing is there, a link is in the way, or it is neither folder nor file.
pub fn open(root: &Path, path: &str, create: bool) -> anyhow::Result<Opened> {
    let names = names(path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = open_path(root, flags | OFlags::NOFOLLOW, Mode::empty())
        .with_context(|| format!("cannot open {}", root.display()))?;
    for (index, name) in names.iter().enumerate() {
        let what = || format!("cannot mount {path}: {}", name.display());
        match step(&folder, name, flags) {
            Ok(next) => folder = next,
            Err(Errno::NOENT) if create => {
                match mkdirat(&folder, *name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).with_context(what),
                }
                folder = step(&folder, name, flags).with_context(what)?;
            }
            Err(Errno::NOENT) => bail!("bind source path does not exist: {path}"),
            Err(Errno::NOTDIR) if index + 1 == names.len() => return file(folder, name, path),
            Err(Errno::LOOP) => bail!("cannot mount {path}: it leads over a symbolic link, which is not followed"),
            Err(error) => return Err(error).with_context(what),
        }
    }
    Ok(Opened { folder, file: None })
}

fn step(folder: &OwnedFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(folder, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// The guest finds the file by its name in the folder that is shared.
fn file(folder: OwnedFd, name: &OsStr, path: &str) -> anyhow::Result<Opened> {
    let opened = step(&folder, name, OFlags::PATH | OFlags::CLOEXEC).with_context(|| format!("cannot open {path}"))?;
    let stat = rustix::fs::fstat(&opened).with_context(|| format!("cannot look at {path}"))?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        bail!("cannot mount {path}: it is neither a folder nor a file");
    }
    Ok(Opened { folder, file: Some(name.to_string_lossy().into_owned()) })
}

/// The path's parts; the root itself has none.
fn names(path: &str) -> anyhow::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => bail!("cannot mount {path}: \"..\" is not allowed in it"),
        }
    }
    if names.len() > MAX_DEPTH {
        bail!("cannot mount {path}: it is deeper than {MAX_DEPTH} folders");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn names_in(opened: &Opened) -> Vec<String> {
        let listed =
            rustix::fs::openat(&opened.folder, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut names: Vec<String> = rustix::fs::Dir::read_from(listed)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|n| n != "." && n != "..")
            .collect();
        names.sort();
        names
    }

    #[test]
    fn folders_files_and_the_whole_area_are_opened() {
        let area = tempfile::tempdir().unwrap();
        fs::create_dir_all(area.path().join("home/me")).unwrap();
        fs::write(area.path().join("home/me/f"), "").unwrap();
        let opened = open(area.path(), "/home//me/./", false).unwrap();
        assert_eq!((names_in(&opened), opened.file.clone()), (vec!["f".to_owned()], None));
        let opened = open(area.path(), "/home/me/f", true).unwrap();
        assert_eq!(opened.file.as_deref(), Some("f"));
        assert_eq!(names_in(&open(area.path(), "/", false).unwrap()), ["home"]);
    }

    #[test]
    fn what_is_missing_is_made_only_when_asked() {
        let area = tempfile::tempdir().unwrap();
        let error = open(area.path(), "/a/b", false).unwrap_err().to_string();
        assert_eq!(error, "bind source path does not exist: /a/b");
        assert!(names_in(&open(area.path(), "/a/b", true).unwrap()).is_empty());
        assert!(area.path().join("a/b").is_dir());
    }

    #[test]
    fn no_link_is_followed_wherever_it_leads() {
        let (area, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(area.path().join("inside")).unwrap();
        symlink(outside.path(), area.path().join("out")).unwrap();
        symlink("inside", area.path().join("in")).unwrap();
        symlink("/etc/passwd", area.path().join("file")).unwrap();
        for path in ["/out", "/out/new", "/in", "/in/new", "/file", "/../x", "/inside/../../x"] {
            assert!(open(area.path(), path, true).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            area.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(open(area.path(), "/pipe", false).unwrap_err().to_string().contains("neither"));
    }
}
