//! The tools tree: a Debian tree with everything that makes, boots and talks to the image.
//!
//! A program of the tree runs in a mount namespace of its own where the tree's `/usr` lies over the machine's: it sees its own
//! libraries and data, and every other path is the machine's. Nothing of that is visible outside the process.

use super::host::Host;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lays the tree's `/usr` over ours, then becomes the program. `$1` is the tree.
const ENTER: &str = r#"
set -e
tree=$1; shift
for file in alternatives ld.so.cache; do
    [ ! -e "/etc/$file" ] || mount --bind "$tree/etc/$file" "/etc/$file"
done
mount --bind "$tree/usr" /usr
exec "$@"
"#;

/// Becomes a shell inside a tree, with a folder of ours at `/mnt`. `$1` is the tree, `$2` the folder, `$3` the script.
const CHROOT: &str = r#"
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/mnt"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root /bin/sh -ec "$3"
"#;

/// The only place where programs of the tree are looked for.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

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
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        self.enter(&mut command, program);
        command
    }

    /// The same with root's rights, for what has to keep file owners.
    #[must_use]
    pub fn privileged(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = host.command("unshare");
        self.enter(&mut command, program);
        command
    }

    fn enter(&self, command: &mut Command, program: impl AsRef<OsStr>) {
        command.args(["--mount", "--propagation", "slave", "--", "/bin/sh", "-c", ENTER, "sh"]).arg(&self.tree);
        command
            .args([
                "/usr/bin/env",
                &format!("PATH={PATH}"),
                "LC_ALL=C",
                &format!("SOURCE_DATE_EPOCH={}", super::trees::EPOCH),
            ])
            .arg(program);
    }
}

/// A command that runs a shell script as root inside `tree`, with `shared` at `/mnt` and the network of the machine.
#[must_use]
pub fn chroot(host: Host, tree: &Path, shared: &Path, script: &str) -> Command {
    let mut command = host.command("unshare");
    command
        .args(["--mount", "--propagation", "slave", "--", "/bin/sh", "-c", CHROOT, "sh"])
        .arg(tree)
        .arg(shared)
        .arg(script);
    command
}
