//! Signed single-file images: build, verify, identify, unpack, run.
//!
//! An image is one `.tar.gz` that every tar opens. Its signature lies in the gzip header's extra field (RFC 1952,
//! 2.3.1.1), so that it covers all of the file, compressed bytes included:
//!
//! ```text
//! offset  bytes  content
//! 0       10     1f 8b 08 04  00 00 00 00  00 ff     gzip, deflate, FEXTRA, mtime 0, no system
//! 10      2      XLEN = 101, little endian
//! 12      4      'K' 'B', LEN = 97, little endian
//! 16      1      format version, 1
//! 17      32     key id: SHA-256 of the raw ed25519 public key
//! 49      64     ed25519 signature over the domain text, bytes 0..49 and SHA-256 of bytes 113..end
//! 113     …      one deflate stream, its CRC-32 and length, and nothing after it
//! ```
//! The content id is the SHA-256 of bytes 113..end: the same content has the same id, whoever signed it.
//!
//! The tar's first entry is `.bali/config.json` ([`config::ImageConfig`]); all others are directories, regular files,
//! symbolic and hard links below the root, sorted, with owner 0 and time 0.
//!
//! Invariants: nothing of a file is decompressed or parsed before its signature holds; what is verified is a sealed
//! copy in memory, so the file may change behind our back; unpacking never follows a symbolic link.
//!
//! Must not: depend on another crate of the zone, or stay behind the payload that it runs.

#![deny(unsafe_code)]

pub mod build;
pub mod config;
pub mod dockerfile;
pub mod engine;
pub mod error;
pub mod format;
pub mod image;
pub mod keys;
pub mod pack;
pub mod run;
pub mod source;
pub mod tree;
pub mod unpack;

pub use config::ImageConfig;
pub use error::{Error, Result};
pub use image::Image;
pub use keys::{Keyring, SigningKey};
