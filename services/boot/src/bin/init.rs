//! `kraud-init`: the first process of the machine, alone in the initrd. It finds the root whose hash the command line names, opens it with
//! dm-verity, and becomes systemd.
//!
//! It trusts nothing on the disk: the hash is in the signed kernel image, and a block that does not match is an I/O error. It is one
//! program without a shell or a library beside it, because every process of a larger initrd costs a tenth of a second under emulation.

use anyhow::{Context, Result, bail};
use boot::{dm, modules, verity};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::system::{RebootCommand, reboot};
use std::ffi::CString;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MODULES: &str = "/modules";
const ROOT: &str = "/sysroot";
const EXTENSION: &str = "/extension";
/// How long a disk may take to appear, as those on USB do.
const PATIENCE: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(20);
/// How long the reason stands on the console before the machine tries again.
const READING: Duration = Duration::from_secs(10);
/// Modules that the zone needs soon, in this order: loading them takes longer than all else, so it begins first.
const BESIDE: [&str; 3] = ["dm_crypt", "ext4", "zfs"];

fn main() {
    let Err(error) = start();
    say(&format!("{error:#}"));
    say(&format!("the machine cannot start from this disk; it restarts in {} s", READING.as_secs()));
    std::thread::sleep(READING);
    let _ = reboot(RebootCommand::Restart);
}

/// Returns only when the machine cannot start.
fn start() -> Result<std::convert::Infallible> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, place, kind, MountFlags::empty(), None).with_context(|| format!("cannot mount {place}"))?;
    }
    let line = fs::read_to_string("/proc/cmdline").context("cannot read the kernel's command line")?;
    let hash = word(&line, "kraud.roothash=").context("the command line has no kraud.roothash=")?;
    find_root(hash)?;
    if let Some(hash) = word(&line, "kraud.devhash=") {
        // What lies over the root is for developers: without it the zone is still one.
        if let Err(error) = extend(hash) {
            say(&format!("going on without the development extension: {error:#}"));
        }
    }
    hand_over()
}

fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key))
}

/// Loads the drivers of one kind of disk after the other until one has the root; then waits for disks that are slow to appear.
fn find_root(hash: &str) -> Result<()> {
    let load = |group: &str| modules::load(Path::new(MODULES), group).iter().for_each(say);
    load("always");
    for group in modules::groups(Path::new("/sys/bus/pci/devices")) {
        load(group);
        if root_is_there(hash) {
            return Ok(());
        }
    }
    let until = Instant::now() + PATIENCE;
    while !root_is_there(hash) {
        if Instant::now() > until {
            bail!("no partition matches root hash {hash}");
        }
        std::thread::sleep(EVERY);
    }
    Ok(())
}

fn root_is_there(hash: &str) -> bool {
    ["a", "b"]
        .iter()
        .any(|slot| mount_verity("root", &format!("kraud-root-{slot}"), &format!("kraud-verity-{slot}"), hash, ROOT))
}

/// The development variant: its extension lies over the root's /usr.
fn extend(hash: &str) -> Result<()> {
    modules::load(Path::new(MODULES), "dev").iter().for_each(say);
    if !mount_verity("dev", "kraud-dev", "kraud-dev-verity", hash, EXTENSION) {
        bail!("no partition matches its hash {hash}");
    }
    let usr = format!("{ROOT}/usr");
    let layers = CString::new(format!("lowerdir={EXTENSION}:{usr}"))?;
    mount("overlay", &usr, "overlay", MountFlags::RDONLY, Some(layers.as_c_str()))
        .context("cannot lay it over /usr")?;
    unmount(EXTENSION, UnmountFlags::DETACH).context("cannot let go of its own place")
}

/// The first disk that has both partitions and whose content has that hash, mounted on `place`. A slot of another version fails its hash.
fn mount_verity(name: &str, data: &str, tree: &str, hash: &str, place: &str) -> bool {
    for (data, tree) in pairs(Path::new("/sys/class/block"), data, tree) {
        let Ok(node) = verity::open(name, &data, &tree, hash) else { continue };
        if mount(&node, place, "erofs", MountFlags::RDONLY, None).is_ok() {
            return true;
        }
        let _ = dm::remove(name);
    }
    false
}

/// The partitions of these names that lie on the same disk.
fn pairs(class: &Path, data: &str, tree: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut found: Vec<(String, PathBuf, PathBuf)> = Vec::new();
    for entry in fs::read_dir(class).into_iter().flatten().flatten() {
        let Ok(text) = fs::read_to_string(entry.path().join("uevent")) else { continue };
        let Some(label) = text.lines().find_map(|line| line.strip_prefix("PARTNAME=")) else { continue };
        let Some(disk) = fs::canonicalize(entry.path()).ok().and_then(|path| path.parent().map(Path::to_owned)) else {
            continue;
        };
        found.push((label.to_owned(), disk, Path::new("/dev").join(entry.file_name())));
    }
    found.sort();
    let named = |label: &str| found.iter().filter(move |(name, _, _)| name == label).collect::<Vec<_>>();
    let (trees, mut pairs) = (named(tree), Vec::new());
    for (_, disk, node) in named(data) {
        pairs.extend(
            trees.iter().filter(|(_, other, _)| other == disk).map(|(_, _, tree)| (node.clone(), tree.clone())),
        );
    }
    pairs
}

/// The root becomes /, and systemd this process.
fn hand_over() -> Result<std::convert::Infallible> {
    for place in ["/dev", "/proc", "/sys"] {
        mount_move(place, format!("{ROOT}{place}")).with_context(|| format!("cannot move {place}"))?;
    }
    // What lies here takes memory for as long as it is there. Nothing below is a mount.
    for place in [MODULES, "/init"] {
        let path = Path::new(place);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    rustix::process::chdir(ROOT).context("cannot enter the root")?;
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot make the root /")?;
    rustix::process::chdir("/").context("cannot enter the new root")?;
    load_beside();
    let error = Command::new("/sbin/init").exec();
    bail!("cannot start /sbin/init: {error}")
}

/// Begins what goes on beside systemd's own start. Who needs one of these modules asks for it again and waits.
fn load_beside() {
    let mut command = Command::new("/usr/sbin/modprobe");
    command.arg("-qa").args(BESIDE).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = command.spawn() {
        say(&format!("cannot start modprobe: {error}"));
    }
}

fn say(text: &(impl Display + ?Sized)) {
    if let Ok(mut console) = fs::File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "kraudbox initrd: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_word_of_the_command_line_is_found_whole() {
        let line = "ro quiet kraud.roothash=abc kraud.devhash=def\n";
        assert_eq!(word(line, "kraud.roothash="), Some("abc"));
        assert_eq!(word(line, "kraud.devhash="), Some("def"));
        assert_eq!(word(line, "hash="), None);
    }

    #[test]
    fn partitions_are_paired_on_their_own_disk() {
        let temp = tempfile::tempdir().unwrap();
        let class = temp.path().join("class");
        fs::create_dir(&class).unwrap();
        for (disk, part, label) in [
            ("vda", "vda1", "kraud-root-a"),
            ("vdb", "vdb1", "kraud-root-a"),
            ("vdb", "vdb2", "kraud-verity-a"),
            ("vdb", "vdb3", "kraud-verity-b"),
        ] {
            let dir = temp.path().join(disk).join(part);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("uevent"), format!("DEVNAME={part}\nPARTNAME={label}\n")).unwrap();
            symlink(&dir, class.join(part)).unwrap();
        }
        assert_eq!(
            pairs(&class, "kraud-root-a", "kraud-verity-a"),
            [(PathBuf::from("/dev/vdb1"), PathBuf::from("/dev/vdb2"))]
        );
        assert!(pairs(&class, "kraud-root-b", "kraud-verity-b").is_empty());
    }
}
