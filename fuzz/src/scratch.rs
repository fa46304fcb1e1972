//! A folder in memory for targets that make files, and what keeps this process from writing anywhere else.
//!
//! A target that is led out of its folder fails, and has harmed nothing.

use landlock::{ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// No file becomes larger: an archive can say that it holds exabytes of zeroes.
const MOST_BYTES: u64 = 16 << 20;

fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// A new folder.
#[allow(clippy::expect_used)]
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("kraud-fuzz-").tempdir_in(place()).expect("the machine that fuzzes has memory")
}

/// What is in a folder, and below it: for seeing that nothing has changed.
pub fn listing(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(listing(&path));
            found.push((path, Vec::new()));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap_or_default()));
        }
    }
    found.sort();
    found
}

/// From now on this process writes to these folders, and to its scratch folders, and nowhere else.
///
/// # Errors
/// When the kernel has no Landlock.
pub fn confine(writable: &[PathBuf]) -> Result<(), RulesetError> {
    let limit = rustix::process::Rlimit { current: Some(MOST_BYTES), maximum: Some(MOST_BYTES) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Fsize, limit);
    let write = AccessFs::from_write(ABI::V3);
    let mut rules = Ruleset::default().handle_access(write)?.create()?;
    for folder in writable.iter().chain([&place(), &std::env::temp_dir(), &"/dev/null".into()]) {
        let Ok(opened) = PathFd::new(folder) else { continue };
        let allowed = if folder.is_dir() { write } else { AccessFs::WriteFile.into() };
        rules = rules.add_rule(PathBeneath::new(opened, allowed))?;
    }
    rules.restrict_self()?;
    Ok(())
}
