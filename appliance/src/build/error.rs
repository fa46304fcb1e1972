//! What can go wrong while building, each with what to do about it.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {}", path.display())]
    File { what: &'static str, path: PathBuf, #[source] source: std::io::Error },

    #[error("{what}: not supported by this builder yet")]
    Unsupported { what: String },
}
