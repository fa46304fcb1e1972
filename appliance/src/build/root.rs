//! The image's root, assembled: the package tree, our files, uncompressed modules with ZFS, users, units on and off.
//!
//! Runs as one script with root's rights, since owners and modes are part of the result. The entry holds `root/`: what becomes the
//! verity root. Its `var` is empty; systemd-tmpfiles fills the state partition.

use super::cache::Cache;
use super::compile::kernel_version;
use super::disk::os_release;
use super::error::{At, Result};
use super::host::{self, Host};
use super::key::Key;
use super::services::Services;
use super::tools::Tools;
use super::trees::Tree;
use super::{Flaw, Progress};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// `$1` package tree, `$2` staged files, `$3` ZFS modules, `$4` entry, `$5` kernel version.
const ASSEMBLE: &str = r#"
set -eu
tree=$1 stage=$2 zfs=$3 out=$4 version=$5
root=$out/root
cp -a --reflink=auto "$tree" "$root"
modules=$root/usr/lib/modules/$version
while read -r path; do
    case $path in
        ''|'#'*) ;;
        modules:*) rm -rf "$modules/${path#modules:}" ;;
        *) rm -rf "$root/$path" ;;
    esac
done < "$stage/removed.list"
find "$modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P "$(nproc)" xz -d
mkdir -p "$modules/extra"
cp "$zfs/spl.ko" "$zfs/zfs.ko" "$modules/extra/"
depmod -b "$root" "$version"
# A checkout has the modes of its user's umask.
chmod -R u=rwX,go=rX "$stage/root"
cp -R --remove-destination --preserve=mode,links --no-preserve=ownership "$stage/root/." "$root/"
mkdir -p "$root/zone" "$root/boot"
chroot "$root" systemd-sysusers
rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.service
chroot "$root" systemctl preset-all
mkdir -p "$root/etc/systemd/system-generators"
while read -r unit; do
    case $unit in
        ''|'#'*) ;;
        generator:*) ln -sfn /dev/null "$root/etc/systemd/system-generators/${unit#generator:}" ;;
        *) ln -sfn /dev/null "$root/etc/systemd/system/$unit" ;;
    esac
done < "$stage/masked.list"
: > "$root/etc/machine-id"
rm -f "$root"/etc/*- "$root/etc/.pwd.lock" "$root"/usr/sbin/policy-rc.d
rm -rf "$root/var"
mkdir -m 755 "$root/var"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
"#;

/// What the root says of its packages in `os-release`.
const LOCKED: [&str; 2] = ["not locked", "locked"];

/// The assembled root and the key of what is in it.
pub struct Root {
    pub path: PathBuf,
    pub key: String,
}

/// What goes into a root besides its packages.
pub struct Parts<'a> {
    pub tree: &'a Tree,
    /// The list of all that is in it.
    pub sbom: &'a str,
    pub zfs: &'a Path,
    pub services: &'a Services,
    pub recipes: &'a Path,
    pub version: &'a str,
    /// Whether all packages are as the lock says.
    pub locked: bool,
    pub flaw: Flaw,
}

/// Assembles the root.
///
/// # Errors
/// The script's failure.
pub fn assemble(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    parts: &Parts<'_>,
    progress: &mut dyn Progress,
) -> Result<Root> {
    let recipes = parts.recipes;
    let mut key = Key::new("root", 2)
        .text("script", ASSEMBLE)
        .text("packages", &parts.tree.identity())
        .text("sbom", parts.sbom)
        .text("zfs", &parts.zfs.file_name().unwrap_or_default().to_string_lossy())
        .text("version", parts.version)
        .text("flaw", if parts.flaw == Flaw::Service { "service" } else { "" })
        .text("packages are", LOCKED[usize::from(parts.locked)])
        .tree(&recipes.join("root"))?
        .file(&recipes.join("root-masked.list"))?
        .file(&recipes.join("root-removed.list"))?;
    for (name, file) in &parts.services.files {
        key = key.text("place", name).file(file)?;
    }
    let hex = key.clone().hex();
    let kernel = kernel_version(&parts.tree.path)?;
    let entry = cache.step(progress, "root", key, |dir, progress| {
        host.may("root", progress)?;
        let stage = tempfile::tempdir().at("make", std::env::temp_dir())?;
        self::stage(stage.path(), parts)?;
        let mut script = tools.privileged(host, "sh");
        script
            .args(["-c", ASSEMBLE, "assemble"])
            .arg(&parts.tree.path)
            .arg(stage.path())
            .arg(parts.zfs)
            .arg(dir)
            .arg(&kernel);
        host::run("root", &cache.log("root"), &mut script)
    })?;
    Ok(Root { path: entry.join("root"), key: hex })
}

/// Lays out our own files the way they lie in the root.
fn stage(stage: &Path, parts: &Parts<'_>) -> Result<()> {
    let root = stage.join("root");
    copy_tree(&parts.recipes.join("root"), &root)?;
    for (from, to) in [("root-masked.list", "masked.list"), ("root-removed.list", "removed.list")] {
        copy(&parts.recipes.join(from), &stage.join(to))?;
    }
    for (place, file) in &parts.services.files {
        copy(file, &root.join(place))?;
    }
    if parts.flaw == Flaw::Service {
        let image = root.join("usr/lib/kraud/services/docker-api.tar.gz");
        let half = fs::metadata(&image).at("read", &image)?.len() / 2;
        fs::File::options().write(true).open(&image).and_then(|file| file.set_len(half)).at("cut", &image)?;
    }
    write(&root.join(super::sbom::PLACE), parts.sbom)?;
    let locked = LOCKED[usize::from(parts.locked)];
    write(&root.join("usr/lib/os-release"), &format!("{}KRAUD_PACKAGES=\"{locked}\"\n", os_release(parts.version)))?;
    write(&root.join("usr/lib/kraud/packages"), &parts.tree.identity())
}

/// Writes a file and the folders above it.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).at("make", parent)?;
    }
    fs::write(path, text).at("write", path)
}

/// Copies a file with its mode, and makes the folders above it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at("make", parent)?;
    }
    fs::copy(from, to).map(drop).at("copy", from)
}

/// Copies a folder: folders, files with their modes, links.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).at("make", to)?;
    for entry in fs::read_dir(from).at("read", from)?.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().at("read", &path)?;
        if kind.is_dir() {
            copy_tree(&path, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).at("read", &path)?, &target).at("make", &target)?;
        } else {
            copy(&path, &target)?;
        }
    }
    Ok(())
}
