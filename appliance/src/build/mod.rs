//! Makes the bootable image from `image-recipes/` and the workspace's services.
//!
//! Owns the order of the steps and what a caller gets back. Every step lies in a content-addressed cache ([`cache`]); nothing is
//! written next to the sources but what the caller asks for. Nothing here starts a virtual machine.

pub mod error;
pub mod tools;

pub use error::{Error, Result};
pub use tools::Tools;

use std::path::PathBuf;
use std::time::Duration;

/// Which of the two images of a version is made. Both have the same root, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// What users get: no way in but the zone's own interfaces.
    #[default]
    Release,
    /// The release plus one system extension: the exec door and a Docker Engine to compare with.
    Development,
}

/// What to build, and from where.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The workspace's root.
    pub workspace: PathBuf,
    /// Where steps are kept; `None` for `$XDG_CACHE_HOME/kraudbox` or `~/.cache/kraudbox`.
    pub cache: Option<PathBuf>,
    pub variant: Variant,
    /// Debian mirror; `None` for that of the machine's own apt sources.
    pub mirror: Option<String>,
    /// Fail unless every package has exactly the version in `image-recipes/packages.lock`.
    pub locked: bool,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Built,
    Cached,
}

/// Who is told what the builder does.
pub trait Progress {
    /// A step begins.
    fn started(&mut self, step: &str);
    /// The step that began last has ended well.
    fn finished(&mut self, step: &str, outcome: Outcome, took: Duration);
    /// Something that the reader should know: a package that moved, a command that runs as root.
    fn note(&mut self, text: &str);
}

/// What a build left behind. All paths are absolute and stay valid until `cache gc`.
#[derive(Clone, Debug)]
pub struct Built {
    /// The raw disk image. Never boot it directly: use it as the base of a qcow2 overlay.
    pub image: PathBuf,
    /// Of the image, in hex.
    pub sha256: String,
    /// The image's length in bytes; the file is sparse.
    pub size: u64,
    /// UEFI firmware code, for a read-only pflash drive.
    pub ovmf_code: PathBuf,
    /// UEFI variables, to be copied for each machine.
    pub ovmf_vars: PathBuf,
    /// QEMU (`qemu-system-x86_64`, `qemu-img`), swtpm and the docker CLI with compose and buildx (`docker`) are in here.
    pub tools: Tools,
    /// Whether every package had the version that the lock names.
    pub locked: bool,
}

/// Builds the image, or finds it in the cache.
///
/// # Errors
/// Names the step, what is wrong and what to do.
pub fn build(options: &BuildOptions, progress: &mut dyn Progress) -> Result<Built> {
    let _ = progress;
    Err(Error::Unsupported { what: format!("building from {}", options.workspace.display()) })
}
