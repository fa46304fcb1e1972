//! What can go wrong with an image, each with the file that it is about.

use std::path::PathBuf;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image was refused, or could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, …
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is no image of ours at all.
    #[error("{name} is not a signed image: {reason}")]
    NotAnImage {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No key of that id is trusted.
    #[error("{name} is signed with the key {key_id}, which is not among the keys in {}", keys.display())]
    UnknownKey {
        /// The file.
        name: String,
        /// The first digits of the key's id.
        key_id: String,
        /// Where trusted keys lie.
        keys: PathBuf,
    },
    /// The signature does not fit the bytes.
    #[error("{name} was changed after it was signed: the signature does not match")]
    BadSignature {
        /// The file.
        name: String,
    },
    /// The content breaks a rule of the format.
    #[error("{name} holds {entry:?}: {reason}")]
    BadEntry {
        /// The image.
        name: String,
        /// The entry's path.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit was passed.
    #[error("{name} is too large: more than {limit}")]
    TooLarge {
        /// The file.
        name: String,
        /// The limit with its unit.
        limit: String,
    },
    /// The content cannot be read.
    #[error("cannot read the content of {name}")]
    Content {
        /// The image.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A key file is none.
    #[error("{} is not an ed25519 key: {reason}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The source cannot be fetched.
    #[error("cannot fetch {name}: {reason}")]
    Fetch {
        /// The source.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A line of a Dockerfile is wrong or not supported.
    #[error("Dockerfile line {line}: {reason}")]
    Dockerfile {
        /// The line, from 1.
        line: usize,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Something else about what the caller asked for.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The image itself is refused: trying again cannot help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotAnImage { .. }
                | Self::UnknownKey { .. }
                | Self::BadSignature { .. }
                | Self::BadEntry { .. }
                | Self::TooLarge { .. }
        )
    }

    /// A function that wraps an I/O error with what was tried on which path.
    pub fn file<P: Into<PathBuf>>(verb: &'static str, path: P) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }
}
