//! Writes files so that a power cut leaves the old or the new one, never a part.

use anyhow::{Context as _, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces a file's content at once. The new file has `mode`, whatever the old one had.
///
/// # Errors
/// When it cannot be written; the old one stays then.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let name = path.file_name().and_then(|n| n.to_str()).with_context(what)?;
    let new = path.with_file_name(format!(".{name}.new"));
    // A left-over of an interrupted write may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new).with_context(what)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode)).with_context(what)?;
    file.write_all(bytes).with_context(what)?;
    file.sync_all().with_context(what)?;
    fs::rename(&new, path).with_context(what)?;
    let dir = path.parent().with_context(what)?;
    File::open(dir).and_then(|d| d.sync_all()).with_context(what)
}

/// Makes a directory with its parents; no error when it is there.
///
/// # Errors
/// When it cannot be made.
pub fn make_dir(dir: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// A file's content; none when it is not there.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_left_over_of_an_interrupted_write_is_no_obstacle_and_lends_no_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(dir.path().join(".key.pem.new"), "half").unwrap();
        write(&path, 0o600, b"whole").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("whole"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
