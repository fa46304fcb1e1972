//! What is mounted into a container: shares, disks, memory; and the image's files copied into an empty volume.

use crate::inroot::{InRoot, proc_path};
use crate::platform::Platform;
use crate::rootfs::{Rootfs, RootfsError, Tried};
use rustix::fs::{
    CWD, FileType, Mode, Timestamps, XattrFlags, chmodat, lgetxattr, llistxattr, lsetxattr, mknodat, readlinkat,
    symlinkat, utimensat,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};
use zone::guest::{GuestContainer, GuestMount};

/// Deeper trees are not copied: no image has them, and the stack is small.
const MAX_DEPTH: u32 = 64;

/// Mounts everything in the order given; the sockets that were made, which listen.
///
/// # Errors
/// When a source cannot be mounted or a target cannot be made.
pub fn mount_all(
    platform: &Platform,
    rootfs: &Rootfs,
    container: &GuestContainer,
    base: &Path,
) -> Result<Vec<OwnedFd>, RootfsError> {
    let mut relay = Vec::new();
    for (index, wanted) in container.mounts.iter().enumerate() {
        match wanted {
            GuestMount::Share { tag, target, read_only, copy_up, subpath } => {
                let place = staging(base, index)?;
                platform.mount_share(tag, &place).tried(|| format!("mount the share {tag} for {target}"))?;
                let place = part_of(&place, subpath)?;
                move_into(rootfs, &place, target, *read_only, *copy_up)?;
            }
            GuestMount::Image { disk, target, subpath } => {
                let place = staging(base, index)?;
                platform.mount_image(*disk, &place).tried(|| format!("mount an image's disk for {target}"))?;
                let place = part_of(&place, subpath)?;
                move_into(rootfs, &place, target, true, false)?;
            }
            GuestMount::DockerSocket { target } => {
                let place = base.join(format!("docker{index}.sock"));
                let listener = crate::relay::listen(&place).tried(|| format!("make a socket for {target}"))?;
                put_file(rootfs, &place, target)?;
                relay.push(listener);
            }
            GuestMount::Block { disk, target, read_only, copy_up, subpath } => {
                let place = staging(base, index)?;
                let what = || {
                    format!(
                        "mount the volume's disk {} for {target} (it must come with an ext4 file system)",
                        platform.disk_name(*disk)
                    )
                };
                platform.mount_disk(*disk, &place).tried(what)?;
                let place = part_of(&place, subpath)?;
                move_into(rootfs, &place, target, *read_only, *copy_up)?;
            }
            GuestMount::Tmpfs { target, size, mode, options } => mount_tmpfs(rootfs, target, *size, *mode, options)?,
        }
    }
    Ok(relay)
}

/// The folder or file `subpath` of what is mounted at `place`, in a place of its own; `place` itself when it is empty. Links
/// in it are not followed: another pod may have made them.
fn part_of(place: &Path, subpath: &str) -> Result<PathBuf, RootfsError> {
    if subpath.is_empty() {
        return Ok(place.to_owned());
    }
    let what = || format!("cannot access path {subpath} of the volume");
    let root = InRoot::open(place).tried(what)?;
    let part = root.beneath(Path::new(subpath)).tried(what)?;
    let own = place.with_extension("part");
    let is_dir = fs::metadata(proc_path(part.as_fd())).tried(what)?.is_dir();
    match is_dir {
        true => fs::create_dir(&own),
        false => fs::write(&own, ""),
    }
    .tried(what)?;
    mount_bind(proc_path(part.as_fd()), &own).tried(what)?;
    // What is mounted stays with the part; nothing else of it can be reached.
    drop((root, part));
    unmount(place, UnmountFlags::DETACH).tried(what)?;
    Ok(own)
}

/// Mounts a single file that lies at `place`.
fn put_file(rootfs: &Rootfs, place: &Path, target: &str) -> Result<(), RootfsError> {
    let what = || format!("mount {target}");
    let file = rootfs.root.make_file(Path::new(target)).tried(what)?;
    mount_bind(place, proc_path(file.as_fd())).tried(what)
}

fn staging(base: &Path, index: usize) -> Result<PathBuf, RootfsError> {
    let place = base.join(format!("m{index}"));
    fs::create_dir_all(&place).tried(|| format!("make {}", place.display()))?;
    Ok(place)
}

fn move_into(rootfs: &Rootfs, place: &Path, target: &str, read_only: bool, copy_up: bool) -> Result<(), RootfsError> {
    if fs::metadata(place).is_ok_and(|m| m.is_file()) {
        if read_only {
            mount_remount(place, MountFlags::BIND | MountFlags::RDONLY, c"")
                .tried(|| format!("make the file at {target} read-only"))?;
        }
        return put_file(rootfs, place, target);
    }
    let directory =
        rootfs.root.make_dir_all(Path::new(target), 0o755).tried(|| format!("make the mount point {target}"))?;
    if copy_up && is_empty(place) {
        copy_tree(&proc_path(directory.as_fd()), place)
            .tried(|| format!("copy the image's {target} into the empty volume"))?;
    }
    if read_only {
        mount_remount(place, MountFlags::BIND | MountFlags::RDONLY, c"")
            .tried(|| format!("make the volume at {target} read-only"))?;
    }
    mount_move(place, proc_path(directory.as_fd())).tried(|| format!("mount the volume at {target}"))
}

fn mount_tmpfs(rootfs: &Rootfs, target: &str, size: u64, mode: u32, options: &str) -> Result<(), RootfsError> {
    let directory =
        rootfs.root.make_dir_all(Path::new(target), 0o755).tried(|| format!("make the mount point {target}"))?;
    let (flags, data) = tmpfs_options(size, mode, options);
    let data =
        CString::new(data).map_err(io::Error::from).tried(|| format!("read the options of the tmpfs at {target}"))?;
    mount("tmpfs", proc_path(directory.as_fd()), "tmpfs", flags, Some(data.as_c_str()))
        .tried(|| format!("mount a tmpfs at {target} with {options:?}"))
}

/// Docker's defaults (noexec, nosuid, nodev), changed by the options; what is no flag goes to the file system.
fn tmpfs_options(size: u64, mode: u32, options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let mut data = vec![format!("mode={:o}", if mode == 0 { 0o1777 } else { mode })];
    if size > 0 {
        data.push(format!("size={size}"));
    }
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "exec" => flags.remove(MountFlags::NOEXEC),
            "suid" => flags.remove(MountFlags::NOSUID),
            "dev" => flags.remove(MountFlags::NODEV),
            "ro" => flags.insert(MountFlags::RDONLY),
            "noatime" => flags.insert(MountFlags::NOATIME),
            "rw" | "noexec" | "nosuid" | "nodev" | "atime" | "relatime" => {}
            other => data.push(other.to_owned()),
        }
    }
    (flags, data.join(","))
}

/// Whether nothing is in it but what mke2fs makes.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| entries.flatten().all(|e| e.file_name() == "lost+found"))
}

/// Copies everything in `from` into `to`, with owners, modes, times, attributes, hard links; and the owner and mode of `from`.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut links = HashMap::new();
    copy_children(from, to, &mut links, 0)?;
    copy_attributes(&from.join("."), to, &fs::metadata(from)?)
}

fn copy_children(from: &Path, to: &Path, links: &mut HashMap<u64, PathBuf>, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} is nested deeper than {MAX_DEPTH} folders", to.display())));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target, meta) = (entry.path(), to.join(entry.file_name()), entry.metadata()?);
        copy_entry(&source, &target, &meta, links, depth)?;
    }
    Ok(())
}

fn copy_entry(
    source: &Path,
    target: &Path,
    meta: &Metadata,
    links: &mut HashMap<u64, PathBuf>,
    depth: u32,
) -> io::Result<()> {
    let kind = meta.file_type();
    if !kind.is_dir() && meta.nlink() > 1 {
        if let Some(first) = links.get(&meta.ino()) {
            return fs::hard_link(first, target);
        }
        links.insert(meta.ino(), target.to_owned());
    }
    if kind.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(target)?;
        copy_children(source, target, links, depth + 1)?;
    } else if kind.is_symlink() {
        symlinkat(readlinkat(CWD, source, Vec::new())?, CWD, target)?;
    } else if kind.is_file() {
        fs::copy(source, target)?;
    } else {
        mknodat(
            CWD,
            target,
            FileType::from_raw_mode(meta.mode()),
            Mode::from_raw_mode(meta.mode() & 0o7777),
            meta.rdev(),
        )?;
    }
    copy_attributes(source, target, meta)
}

fn copy_attributes(source: &Path, target: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.file_type().is_symlink() {
        chmodat(CWD, target, Mode::from_raw_mode(meta.mode() & 0o7777), rustix::fs::AtFlags::empty())?;
    }
    copy_xattrs(source, target);
    let time = |sec, nsec| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    Ok(utimensat(CWD, target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Extended attributes, as far as the volume takes them (file capabilities, ACLs).
fn copy_xattrs(source: &Path, target: &Path) {
    let mut names = vec![0u8; 4096];
    let Ok(length) = llistxattr(source, &mut names) else { return };
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty() && !n.starts_with(b"trusted.")) {
        let mut value = vec![0u8; 4096];
        if let Ok(length) = lgetxattr(source, name, &mut value) {
            let _ = lsetxattr(target, name, &value[..length], XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_options_change_dockers_defaults() {
        let (flags, data) = tmpfs_options(1024, 0o755, "exec,ro,uid=7");
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY);
        assert_eq!(data, "mode=755,size=1024,uid=7");
        assert_eq!(tmpfs_options(0, 0, "").1, "mode=1777");
    }

    #[test]
    fn a_copy_keeps_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let base = std::env::temp_dir().join(format!("vdocker-copy-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("sub/a"), "text").unwrap();
        fs::set_permissions(from.join("sub/a"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(from.join("sub/a"), from.join("b")).unwrap();
        std::os::unix::fs::symlink("/nowhere", from.join("link")).unwrap();
        copy_tree(&from, &to).unwrap();
        let meta = fs::metadata(to.join("sub/a")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o4711, 2));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
    }
}
