//! The local package cache: every .deb that a tree was made from, under apt's name for it.
//!
//! A locked version that the mirror no longer has is taken from here: [`offer`] makes a small archive of what the lock names. The
//! hashes in its index are the lock's, so that apt itself refuses a file that is not the locked one.

use super::error::{At, Error, Result};
use super::host;
use super::key::hash_file;
use super::lock::{Package, Packages};
use super::mirror::SUITE;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use zone::ids::hex;

/// Takes the files of `from`, which a tree was made from, into the cache; says what they are.
///
/// # Errors
/// When one cannot be read or moved.
pub fn take(from: &Path, cache: &Path) -> Result<Packages> {
    let mut packages = Packages::new();
    for entry in fs::read_dir(from).at("read", from)?.flatten() {
        let (file, path) = (entry.file_name(), entry.path());
        if let Some((name, version)) = parse_name(&file.to_string_lossy()) {
            packages.insert(name, Package { version, sha256: hash_file(&path)? });
            let to = cache.join(file);
            fs::rename(&path, &to).at("put in place", &to)?;
        }
    }
    Ok(packages)
}

/// Makes an archive in `dir` of the locked packages that the cache has; returns how many, and whether these are all.
///
/// # Errors
/// When it cannot be written, or dpkg-deb cannot read a package.
pub fn offer(locked: &Packages, cache: &Path, dir: &Path, log: &Path) -> Result<(usize, bool)> {
    fs::create_dir_all(dir).at("make", dir)?;
    let (mut index, mut have) = (String::new(), 0);
    for (name, package) in locked {
        let Some(file) = find(name, package, cache)? else { continue };
        let base = format!("{}.deb", package.sha256);
        symlink(&file, dir.join(&base)).at("make", dir)?;
        let size = fs::metadata(&file).at("read", &file)?.len();
        let control = host::output("packages", log, Command::new("dpkg-deb").arg("--field").arg(&file))?;
        let _ = writeln!(index, "{}\nFilename: ./{base}\nSize: {size}\nSHA256: {}\n", control.trim(), package.sha256);
        have += 1;
    }
    let hash = hex(&Sha256::digest(&index));
    let release = format!(
        "Origin: local\nSuite: {SUITE}\nCodename: {SUITE}\nArchitectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {hash} {} Packages\n",
        index.len()
    );
    for (file, text) in [("Packages", index), ("Release", release)] {
        let path = dir.join(file);
        fs::write(&path, text).at("write", &path)?;
    }
    Ok((have, have == locked.len()))
}

/// What of a path is escaped in the URL of an archive.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// The line for apt's sources that names an archive of [`offer`].
#[must_use]
pub fn source(dir: &Path) -> String {
    let url = percent_encode(dir.as_os_str().as_encoded_bytes(), PATH);
    format!("deb [trusted=yes] copy:{url} ./")
}

/// Removes what is not in `locked`; returns how many files that were.
///
/// # Errors
/// When one cannot be removed.
pub fn collect<'a>(cache: &Path, locked: impl Iterator<Item = (&'a String, &'a Package)>) -> Result<usize> {
    let wanted: std::collections::BTreeSet<_> =
        locked.map(|(name, package)| (name.as_str(), package.version.as_str())).collect();
    let mut removed = 0;
    for entry in fs::read_dir(cache).at("read", cache)?.flatten() {
        let named = parse_name(&entry.file_name().to_string_lossy());
        if named.is_none_or(|(name, version)| !wanted.contains(&(name.as_str(), version.as_str()))) {
            fs::remove_file(entry.path()).at("remove", entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The file of exactly this package, when it is there.
fn find(name: &str, package: &Package, cache: &Path) -> Result<Option<PathBuf>> {
    for architecture in ["amd64", "all"] {
        let file = cache.join(format!("{name}_{}_{architecture}.deb", package.version.replace(':', "%3a")));
        if file.is_file() && hash_file(&file)? == package.sha256 {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Name and version in apt's name of a file: `NAME_VERSION_ARCHITECTURE.deb`, with `%3a` for a colon.
#[must_use]
pub fn parse_name(file: &str) -> Option<(String, String)> {
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version, _architecture) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = parts.next().is_none() && !name.is_empty();
    plain.then(|| (name.to_owned(), version.replace("%3a", ":").replace("%3A", ":")))
}

/// What a tree holds by dpkg's record must all be among the files that it was made from.
///
/// # Errors
/// [`Error::Recipe`] names a package of which no file was kept.
pub fn check(status: &str, packages: &Packages, tree: &Path) -> Result<()> {
    let unknown = super::lock::parse_status(status)
        .into_iter()
        .find(|(name, version)| packages.get(name).is_none_or(|package| package.version != *version));
    match unknown {
        None => Ok(()),
        Some((name, version)) => {
            Err(Error::Recipe { path: tree.into(), what: format!("nobody knows where {name} {version} came from") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(sha256: &str) -> Packages {
        [("a".to_owned(), Package { version: "1:2".into(), sha256: sha256.into() })].into()
    }

    #[test]
    fn names_of_files_are_read_as_apt_writes_them() {
        let parsed = |name: &str| parse_name(name);
        assert_eq!(parsed("bison_2%3a3.8.2+dfsg-1_amd64.deb"), Some(("bison".into(), "2:3.8.2+dfsg-1".into())));
        for name in ["lock", "partial", "a_1.deb", "a_1_amd64_x.deb", "_1_all.deb"] {
            assert_eq!(parsed(name), None);
        }
    }

    #[test]
    fn a_kept_file_with_another_content_is_not_offered() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("debs");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("a_1%3a2_all.deb"), "damaged").unwrap();
        let (have, all) =
            offer(&locked(&"0".repeat(64)), &cache, &dir.path().join("archive"), &dir.path().join("log")).unwrap();
        assert_eq!((have, all), (0, false));
    }

    #[test]
    fn only_files_that_a_lock_names_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a_1%3a2_all.deb", "a_1_all.deb", "b_1_amd64.deb"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(collect(dir.path(), locked("").iter()).unwrap(), 2);
        assert!(dir.path().join("a_1%3a2_all.deb").exists());
    }

    #[test]
    fn a_package_without_its_file_is_told() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2\n";
        assert!(check(status, &locked(""), Path::new("/t")).is_ok());
        assert!(check(status, &Packages::new(), Path::new("/t")).unwrap_err().to_string().contains("a 1:2"));
    }

    #[test]
    fn a_path_is_one_word_of_apt_s_sources() {
        assert_eq!(source(Path::new("/my cache/x")), "deb [trusted=yes] copy:/my%20cache/x ./");
    }
}
