//! What can go wrong while building, each with what to do about it.

use std::path::PathBuf;

/// The builder's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("cannot {what} {}: its disk is full: make room, run `cargo appliance cache gc`, or set XDG_CACHE_HOME (and TMPDIR, CARGO_TARGET_DIR) to a larger disk", path.display())]
    Full { what: &'static str, path: PathBuf },

    #[error("cannot run {program}: is it installed?")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },

    #[error("{step}: `{program}` ended with {status}; its last words:\n{tail}\nthe whole output is in {}", log.display())]
    Tool { step: String, program: String, status: std::process::ExitStatus, tail: String, log: PathBuf },

    #[error("{step}: a disk is full: make room, run `cargo appliance cache gc`, or set XDG_CACHE_HOME (and TMPDIR, CARGO_TARGET_DIR) to a larger one; the whole output is in {}", log.display())]
    ToolFull { step: String, log: PathBuf },

    #[error("the file system of {} has {free_mib} MiB free, a build needs {needed_mib} MiB: make room, run `cargo appliance cache gc`, or set XDG_CACHE_HOME to a larger disk", path.display())]
    NoSpace { path: PathBuf, free_mib: u64, needed_mib: u64 },

    #[error("no build in {} has ended well yet, so nothing says what is needed: run `cargo appliance build` first", path.display())]
    NothingNeeded { path: PathBuf },

    #[error("a build uses {}: collect when it has ended", path.display())]
    CacheInUse { path: PathBuf },

    #[error("this computer lacks `{program}`{}: run `apt-get install {package}` as root", tried.as_ref().map(|why| format!(", and apt-get did not install it ({why})")).unwrap_or_default())]
    MissingProgram { program: &'static str, package: &'static str, tried: Option<String> },

    #[error(
        "only root can make file systems and keep file owners, and there is no sudo here: run this as root, or have root run `apt-get install sudo` and `adduser {user} sudo`"
    )]
    NotRoot { user: String },

    #[error(
        "{step} needs root's rights, and sudo does not give them to {user} ({said}): have root run `adduser {user} sudo`, log in again, and where no one can type a password run `sudo -v` before"
    )]
    SudoRefused { step: String, user: String, said: String },

    #[error(
        "no Debian mirror is in /etc/apt/sources.list or sources.list.d: give one with --mirror URL (it must carry the suite {suite})"
    )]
    NoMirror { suite: &'static str },

    #[error("`{url}` is no mirror: give the URL of a Debian archive, such as http://HOST/debian")]
    NotAMirror { url: String },

    #[error("the mirror {url} does not give what the suite {suite} needs ({reason}): {todo}; the whole output is in {}", log.display())]
    Mirror { url: String, suite: &'static str, reason: String, todo: &'static str, log: PathBuf },

    #[error(
        "these packages are not those of image-recipes/packages.lock:\n{moved}name an archive that still has them with --snapshot URL, build without --locked, or run `cargo appliance lock` to accept them"
    )]
    Unlocked { moved: String },

    #[error(
        "the root has kernel {root} but the build tree has headers for {headers}: the mirror changed between the two; build again"
    )]
    KernelMismatch { root: String, headers: String },

    #[error("{}: {what}", path.display())]
    Recipe { path: PathBuf, what: String },

    #[error("no home for the cache: set HOME or XDG_CACHE_HOME")]
    NoHome,
}

/// Gives an I/O error the thing it happened to.
pub(crate) trait At<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| match source.kind() {
            std::io::ErrorKind::StorageFull => Error::Full { what, path: path.into() },
            _ => Error::File { what, path: path.into(), source },
        })
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(std::io::Error::from).at(what, path)
    }
}
