//! The arguments of `kcradle summon`.

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// How it is called.
pub const USAGE: &str = "kcradle summon [--vcpus N] [--memory-mib N] [--console] [--kernel FILE] [--initramfs FILE] \
                         [--mkfs-erofs FILE] DIR IMAGE.tar [-- COMMAND…]";

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The bundle's directory.
    pub dir: PathBuf,
    /// The archive that `docker save` wrote.
    pub image: PathBuf,
    /// Runs instead of the image's `Cmd`; empty means that.
    pub command: Vec<String>,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Guest memory, MiB.
    pub memory_mib: u32,
    /// The serial console's output is kept, in `console.log`.
    pub console: bool,
    /// The guest's kernel; none = the one that comes with this program.
    pub kernel: Option<PathBuf>,
    /// The guest's initramfs; none = the one that comes with this program.
    pub initramfs: Option<PathBuf>,
    /// The program `mkfs.erofs`.
    pub mkfs_erofs: PathBuf,
}

/// Reads the arguments after `summon`.
///
/// # Errors
/// What is missing, unknown or out of bounds, for people.
pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options {
        dir: PathBuf::new(),
        image: PathBuf::new(),
        command: Vec::new(),
        vcpus: 1,
        memory_mib: 512,
        console: false,
        kernel: None,
        initramfs: None,
        mkfs_erofs: "/usr/bin/mkfs.erofs".into(),
    };
    let mut places = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = |flag: &str| args.next().ok_or(format!("{flag} needs a value"));
        match arg.to_str() {
            Some("--") => break,
            Some("--console") => options.console = true,
            Some("--vcpus") => options.vcpus = number(&value("--vcpus")?, "--vcpus", &(1..=64))?,
            Some("--memory-mib") => {
                options.memory_mib = number(&value("--memory-mib")?, "--memory-mib", &(32..=1 << 20))?;
            }
            Some("--kernel") => options.kernel = Some(value("--kernel")?.into()),
            Some("--initramfs") => options.initramfs = Some(value("--initramfs")?.into()),
            Some("--mkfs-erofs") => options.mkfs_erofs = value("--mkfs-erofs")?.into(),
            Some(flag) if flag.starts_with('-') => return Err(format!("summon does not know {flag}")),
            _ => places.push(PathBuf::from(arg)),
        }
    }
    let text = |arg: OsString| arg.into_string().map_err(|arg| format!("{} is not valid UTF-8", arg.display()));
    options.command = args.map(text).collect::<Result<_, _>>()?;
    let [dir, image] = <[PathBuf; 2]>::try_from(places)
        .map_err(|_| "summon needs the bundle's directory and an archive; a command stands after --")?;
    Ok(Options { dir, image, ..options })
}

fn number<T>(text: &OsStr, flag: &str, bounds: &RangeInclusive<u32>) -> Result<T, String>
where
    T: TryFrom<u32>,
{
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| bounds.contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{flag} is {}, must be {} to {}", text.display(), bounds.start(), bounds.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Options, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn flags_stand_anywhere_before_the_command_and_are_the_commands_own_after_it() {
        let options =
            parsed(&["--vcpus", "2", "d", "--console", "i.tar", "--memory-mib", "64", "--", "sh", "-c", "--vcpus"])
                .unwrap();
        assert_eq!((options.vcpus, options.memory_mib, options.console), (2, 64, true));
        assert_eq!((options.dir, options.image), ("d".into(), "i.tar".into()));
        assert_eq!(options.command, ["sh", "-c", "--vcpus"]);
        assert_eq!(parsed(&["d", "i"]).unwrap().mkfs_erofs, PathBuf::from("/usr/bin/mkfs.erofs"));
    }

    #[test]
    fn what_is_missing_unknown_or_out_of_bounds_is_named() {
        assert!(parsed(&["d"]).unwrap_err().contains("an archive"));
        assert!(parsed(&["d", "i", "sh"]).unwrap_err().contains("after --"));
        assert_eq!(parsed(&["--x", "d", "i"]), Err("summon does not know --x".into()));
        assert_eq!(parsed(&["d", "i", "--kernel"]), Err("--kernel needs a value".into()));
        assert_eq!(parsed(&["--vcpus", "65", "d", "i"]), Err("--vcpus is 65, must be 1 to 64".into()));
        assert_eq!(parsed(&["--memory-mib", "x", "d", "i"]), Err("--memory-mib is x, must be 32 to 1048576".into()));
    }
}
