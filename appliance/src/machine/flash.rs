//! `cargo appliance flash`: writes the image to a disk or a file, and to nothing that holds something by accident.

use super::report::say;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor, open};
use std::fs::{self, File};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What is written at once.
const CHUNK: usize = 4 << 20;

/// What the user says about the target.
#[derive(Clone, Debug)]
pub struct Options {
    /// The disk or file.
    pub target: PathBuf,
    /// Do not ask.
    pub yes: bool,
    /// The target's path or serial number once more: what is on it may go.
    pub overwrite: Option<String>,
}

#[derive(Debug)]
struct Target {
    file: File,
    /// None for a regular file, which takes any size.
    size: Option<u64>,
    serial: Option<String>,
    model: String,
    /// It was made just now, or was empty.
    empty: bool,
}

/// Writes `image` to the target.
///
/// # Errors
/// When the target is in use, too small, holds something that the user has not named, or does not take the bytes.
pub fn flash(image: &Path, options: &Options) -> Result<()> {
    let mut from = File::open(image).with_context(|| format!("cannot read the image {}", image.display()))?;
    let size = from.metadata()?.len();
    let target = open_target(&options.target)?;
    check_size(&target, size, &options.target)?;
    let holds = if target.empty { None } else { recognise(&target.file)? };
    check_contents(&target, holds, options)?;
    if !options.yes {
        confirm(&target, options, size)?;
    }
    write(&mut from, &target, size, &options.target)?;
    say(&format!("{} holds the image now.", options.target.display()));
    Ok(())
}

fn open_target(path: &Path) -> Result<Target> {
    let name = path.display();
    let kind = fs::metadata(path).map(|meta| FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(&meta)));
    match kind {
        Ok(FileType::BlockDevice) => open_disk(path),
        Ok(FileType::RegularFile) => {
            let file =
                File::options().read(true).write(true).open(path).with_context(|| format!("cannot write {name}"))?;
            let size = file.metadata()?.len();
            let target =
                Target { file, size: (size > 0).then_some(size), serial: None, model: "file".into(), empty: size == 0 };
            Ok(target)
        }
        Ok(_) => bail!("{name} is neither a disk nor a file"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.starts_with("/dev") => {
            bail!("{name} is not there: `lsblk -d` lists the disks")
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let file = File::options().read(true).write(true).create_new(true).open(path);
            let file = file.with_context(|| format!("cannot make {name}"))?;
            Ok(Target { file, size: None, serial: None, model: "new file".into(), empty: true })
        }
        Err(e) => Err(e).with_context(|| format!("cannot look at {name}")),
    }
}

fn open_disk(path: &Path) -> Result<Target> {
    let name = path.display();
    // With O_EXCL the kernel itself refuses a disk that is mounted, swapped to, or part of something (open(2)).
    let opened = open(path, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
    let fd = match opened {
        Ok(fd) => fd,
        Err(rustix::io::Errno::BUSY) => {
            bail!(
                "{name} is in use (mounted, swap, or part of a volume): unmount it first; `lsblk {name}` shows by what"
            )
        }
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            bail!("no permission to write {name}: run this as root (sudo)")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot open {name}")),
    };
    let device = fstat(&fd)?.st_rdev;
    let sys = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    if sys.join("partition").exists() {
        bail!("{name} is a partition: name the whole disk (`lsblk -d` lists them)");
    }
    let attribute = |name: &str| fs::read_to_string(sys.join(name)).ok().map(|text| text.trim().to_owned());
    let serial = attribute("device/serial").or_else(|| attribute("serial")).filter(|serial| !serial.is_empty());
    let model = attribute("device/model").unwrap_or_else(|| "disk".into());
    let mut file = File::from(fd);
    let size = file.seek(SeekFrom::End(0)).with_context(|| format!("cannot learn the size of {name}"))?;
    Ok(Target { file, size: Some(size), serial, model, empty: false })
}

fn check_size(target: &Target, image: u64, path: &Path) -> Result<()> {
    match target.size {
        Some(size) if size < image => {
            bail!(
                "{} has {} MiB, the image needs {}: take a larger one",
                path.display(),
                size >> 20,
                image.div_ceil(1 << 20)
            )
        }
        _ => Ok(()),
    }
}

fn check_contents(target: &Target, holds: Option<&str>, options: &Options) -> Result<()> {
    let Some(holds) = holds else { return Ok(()) };
    let path = options.target.display().to_string();
    let named = options.overwrite.as_deref();
    if named.is_some_and(|named| named == path || Some(named) == target.serial.as_deref()) {
        return Ok(());
    }
    let name = target.serial.as_deref().unwrap_or(&path);
    bail!("{path} ({}) holds {holds}: to lose it, add `--overwrite {name}`", target.model)
}

/// What can be recognised at its beginning, by the magic numbers of blkid(8).
fn recognise(file: &File) -> Result<Option<&'static str>> {
    const MAGICS: [(u64, &[u8], &str); 14] = [
        (512, b"EFI PART", "a partition table (GPT)"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"XFSB", "a file system (XFS)"),
        (3, b"NTFS    ", "a file system (NTFS)"),
        (3, b"EXFAT   ", "a file system (exFAT)"),
        (82, b"FAT32", "a file system (FAT)"),
        (54, b"FAT", "a file system (FAT)"),
        (0x218, b"LVM2", "a volume group (LVM)"),
        (0x438, &[0x53, 0xef], "a file system (ext)"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "a file system (EROFS)"),
        (4086, b"SWAPSPACE2", "swap"),
        (0x8001, b"CD001", "a file system (ISO 9660)"),
        (0x1_0040, b"_BHRfS_M", "a file system (Btrfs)"),
        (510, &[0x55, 0xaa], "a partition table or boot sector"),
    ];
    let has = |at: u64, magic: &[u8]| -> Result<bool> {
        let mut bytes = vec![0; magic.len()];
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes == magic),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e).context("cannot read the target"),
        }
    };
    for (at, magic, what) in MAGICS {
        if has(at, magic)? {
            return Ok(Some(what));
        }
    }
    // A ZFS label has an array of uberblocks from 128 KiB on, each 1 KiB or more.
    for block in 128..256 {
        if has(block * 1024, &0x00ba_b10c_u64.to_le_bytes())? {
            return Ok(Some("a pool (ZFS)"));
        }
    }
    Ok(None)
}

fn confirm(target: &Target, options: &Options, size: u64) -> Result<()> {
    let path = options.target.display();
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked whether {path} may be written: add `--yes`");
    }
    let serial = target.serial.as_deref().map(|serial| format!(", serial {serial}")).unwrap_or_default();
    say(&format!("Writes {} MiB to {path} ({}{serial}). Type yes to go on:", size >> 20, target.model));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { bail!("nothing was written") }
}

fn write(from: &mut File, target: &Target, size: u64, path: &Path) -> Result<()> {
    let bar = ProgressBar::new(size);
    if let Ok(style) = ProgressStyle::with_template("  writing {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    let failed = || format!("cannot write to {}", path.display());
    if target.empty {
        target.file.set_len(size).with_context(failed)?;
    }
    let mut to = &target.file;
    to.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).context("cannot read the image")?;
        if length == 0 {
            break;
        }
        let chunk = &buffer[..length];
        if target.empty && chunk.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(i64::try_from(length)?))?;
        } else {
            to.write_all(chunk).with_context(failed)?;
        }
        bar.inc(length as u64);
    }
    bar.set_message("waiting for the disk");
    target.file.sync_all().with_context(failed)?;
    bar.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        temp: tempfile::TempDir,
        image: PathBuf,
    }

    fn bench() -> Bench {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("image");
        let mut bytes = vec![0; 9 << 20];
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[8 << 20] = 7;
        fs::write(&image, bytes).unwrap();
        Bench { temp, image }
    }

    impl Bench {
        fn options(&self, name: &str) -> Options {
            Options { target: self.temp.path().join(name), yes: true, overwrite: None }
        }
    }

    #[test]
    fn a_new_file_becomes_the_image() {
        let bench = bench();
        let options = bench.options("new");
        flash(&bench.image, &options).unwrap();
        assert_eq!(fs::read(&options.target).unwrap(), fs::read(&bench.image).unwrap());
    }

    #[test]
    fn what_is_on_a_target_must_be_named() {
        let bench = bench();
        let mut options = bench.options("disk");
        let mut disk = vec![1; 10 << 20];
        disk[0x438] = 0x53;
        disk[0x439] = 0xef;
        fs::write(&options.target, &disk).unwrap();
        let error = flash(&bench.image, &options).unwrap_err().to_string();
        assert!(error.contains("holds a file system (ext)") && error.contains("--overwrite"), "{error}");
        assert_eq!(fs::read(&options.target).unwrap(), disk);
        options.overwrite = Some("/dev/other".into());
        assert!(flash(&bench.image, &options).is_err());
        options.overwrite = Some(options.target.display().to_string());
        flash(&bench.image, &options).unwrap();
        let written = fs::read(&options.target).unwrap();
        let image = fs::read(&bench.image).unwrap();
        assert_eq!(written[..image.len()], image[..]);
        assert_eq!(written.len(), disk.len());
    }

    #[test]
    fn a_target_that_is_too_small_is_left_alone() {
        let bench = bench();
        let options = bench.options("small");
        fs::write(&options.target, vec![1; 1 << 20]).unwrap();
        assert!(flash(&bench.image, &options).unwrap_err().to_string().contains("take a larger one"));
        assert_eq!(fs::metadata(&options.target).unwrap().len(), 1 << 20);
    }

    #[test]
    fn known_contents_are_recognised() {
        let temp = tempfile::tempdir().unwrap();
        let check = |at: usize, magic: &[u8], expected: Option<&str>| {
            let path = temp.path().join("disk");
            let mut disk = vec![0; 1 << 20];
            disk[at..at + magic.len()].copy_from_slice(magic);
            fs::write(&path, disk).unwrap();
            assert_eq!(recognise(&File::open(&path).unwrap()).unwrap(), expected);
        };
        check(0, &[], None);
        check(0, b"XFSB", Some("a file system (XFS)"));
        check(132 * 1024, &0x00ba_b10c_u64.to_le_bytes(), Some("a pool (ZFS)"));
        check(510, &[0x55, 0xaa], Some("a partition table or boot sector"));
        check(82, b"FAT32", Some("a file system (FAT)"));
    }

    #[test]
    fn a_directory_and_a_missing_device_are_refused() {
        let bench = bench();
        let mut options = bench.options("x");
        options.target = bench.temp.path().to_owned();
        assert!(flash(&bench.image, &options).unwrap_err().to_string().contains("neither a disk nor a file"));
        options.target = "/dev/no-such-disk".into();
        assert!(flash(&bench.image, &options).unwrap_err().to_string().contains("lsblk"));
    }
}
