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

    #[error("cannot run {program}: is it installed?")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },

    #[error("{step}: `{program}` ended with {status}; its last words:\n{tail}\nthe whole output is in {}", log.display())]
    Tool { step: String, program: String, status: std::process::ExitStatus, tail: String, log: PathBuf },

    #[error("the file system of {} has {free_mib} MiB free, a build needs {needed_mib} MiB: make room, run `cargo appliance cache gc`, or set XDG_CACHE_HOME to a larger disk", path.display())]
    NoSpace { path: PathBuf, free_mib: u64, needed_mib: u64 },

    #[error("a build uses {}: collect when it has ended", path.display())]
    CacheInUse { path: PathBuf },

    #[error("this machine lacks `{program}`: run `sudo apt-get install {package}`")]
    MissingProgram { program: &'static str, package: &'static str },

    #[error("the build needs root for mounts and file owners: run it as root, or install and set up sudo")]
    NotRoot,

    #[error("no Debian mirror in /etc/apt: give one with --mirror URL (it must carry the suite {suite})")]
    NoMirror { suite: &'static str },

    #[error("the mirror {url} cannot make a tree of suite {suite}: {reason}")]
    Mirror { url: String, suite: &'static str, reason: String },

    #[error(
        "these packages do not have the versions of image-recipes/packages.lock:\n{moved}build without --locked, or run `cargo appliance lock` to accept them"
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
        self.map_err(|source| Error::File { what, path: path.into(), source })
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { what, path: path.into(), source: source.into() })
    }
}
