//! The tools tree: a Debian tree with everything that makes, boots and talks to the image.
//!
//! A program of the tree runs in a mount namespace of its own where the tree's `/usr` lies over the machine's: it sees its own
//! libraries and data, and every other path is the machine's. Nothing of that is visible outside the process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lays the tree's `/usr` over ours, then becomes the program. `$1` is the tree.
const ENTER: &str = r#"
set -e
tree=$1; shift
mount --bind "$tree/etc/alternatives" /etc/alternatives
mount --bind "$tree/etc/ld.so.cache" /etc/ld.so.cache
mount --bind "$tree/usr" /usr
exec "$@"
"#;

/// A tools tree that is complete.
#[derive(Clone, Debug)]
pub struct Tools {
    tree: PathBuf,
}

impl Tools {
    /// The tree at `tree`, which holds a Debian root.
    #[must_use]
    pub fn new(tree: PathBuf) -> Self {
        Self { tree }
    }

    /// Where the tree lies.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// A command that runs `program` of the tree (found on its PATH) with the machine's files, network and this process's user.
    /// The child's process id is the program's own, so that it can be killed.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--", "/bin/sh", "-c", ENTER, "sh"]).arg(&self.tree).arg(program);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }
}
