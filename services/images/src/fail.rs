//! How failures here become the one error that crosses the interface, and the limits on what strangers send.

use std::fmt::Display;
use std::io;
use zone::{ApiError, ErrorKind};

/// A result with the interface's error.
pub type Result<T> = std::result::Result<T, ApiError>;

/// Bytes of an archive that is loaded, as sent and uncompressed.
pub const MAX_ARCHIVE: u64 = 64 << 30;
/// Bytes of one layer, uncompressed.
pub const MAX_LAYER: u64 = 32 << 30;
/// Bytes of an image's configuration.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Bytes of a manifest or index.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Layers of an image.
pub const MAX_LAYERS: usize = 128;
/// Files in an archive that is loaded.
pub const MAX_ARCHIVE_ENTRIES: usize = 20_000;
/// Files in a layer.
pub const MAX_LAYER_ENTRIES: usize = 4_000_000;

/// The request or what it sent is wrong.
pub fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Invalid, message)
}

/// The thing named is not there.
pub fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::NotFound, message)
}

/// Our own fault.
pub fn internal(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Internal, message)
}

/// Names what was tried, for an error of the file system: a full disk and a size limit keep their kinds, damaged input
/// is the sender's fault, the rest is ours.
pub fn io(what: impl Display) -> impl FnOnce(io::Error) -> ApiError {
    move |error| {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::FileTooLarge => ErrorKind::TooLarge,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                ErrorKind::Invalid
            }
            _ => ErrorKind::Internal,
        };
        let full = if kind == ErrorKind::NoSpace { "the zone's pool is full, remove what is not needed: " } else { "" };
        ApiError::new(kind, format!("{full}{what}: {error}"))
    }
}

/// Runs work that blocks on its own thread.
///
/// # Errors
/// What the work gives.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| internal(format!("a worker ended early: {e}")))?
}
