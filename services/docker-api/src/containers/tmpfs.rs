//! Options of `--tmpfs` and of mounts of that type, checked as Docker Engine checks them.

use super::mounts::{absolute, bytes};
use crate::errors::{Failure, Result};
use zone::pod::Mount;

/// Options without a value (moby/sys, mount flags).
const FLAGS: [&str; 40] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "remount",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "unbindable",
    "nouser",
    "user",
    "noauto",
    "auto",
    "_netdev",
];
/// Options with a value that the file system takes.
const VALUES: [&str; 5] = ["uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
/// Means nothing to a memory of one container.
const DROPPED: [&str; 19] = [
    "_netdev",
    "async",
    "auto",
    "bind",
    "defaults",
    "dirsync",
    "iversion",
    "mand",
    "noauto",
    "noiversion",
    "nomand",
    "nouser",
    "private",
    "rbind",
    "remount",
    "rprivate",
    "rshared",
    "rslave",
    "sync",
];

/// `--tmpfs /target:size=64m,mode=1777,noexec`
///
/// # Errors
/// 400 for an option that there is not, or a value that is none.
pub fn mount(target: &str, text: &str) -> Result<Mount> {
    let (mut size, mut mode, mut rest) = (0, 0, Vec::new());
    for option in text.split(',').filter(|o| !o.is_empty()) {
        let wrong = || Failure::invalid(format!("Invalid tmpfs option \"{option}\""));
        match option.split_once('=') {
            Some(("size", value)) => size = bytes(value).ok_or_else(wrong)?,
            Some(("mode", value)) => {
                let bits = u32::from_str_radix(value, 8).ok().filter(|m| *m <= 0o7777);
                mode = bits.ok_or_else(wrong)?;
            }
            Some((key, value)) if VALUES.contains(&key) && is_word(value) => rest.push(option),
            None if DROPPED.contains(&option) => {}
            None if FLAGS.contains(&option) => rest.push(option),
            _ => return Err(wrong()),
        }
    }
    Ok(Mount::Tmpfs { target: absolute(target)?, size, mode, options: rest.join(",") })
}

fn is_word(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let wanted = Mount::Tmpfs { target: "/run".into(), size: 1 << 20, mode: 0o755, options: "noexec,uid=7".into() };
        assert_eq!(mount("/run/", "size=1m,mode=755,noexec,uid=7,rprivate").unwrap(), wanted);
        for wrong in ["size=huge", "mode=9", "mode=77777", "nope", "uid=a b", "context=\"x\""] {
            let failure = mount("/run", wrong).unwrap_err();
            assert!(failure.status == 400 && failure.message.starts_with("Invalid tmpfs option"), "{failure}");
        }
    }
}
