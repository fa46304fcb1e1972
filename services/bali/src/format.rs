//! The gzip header with the signature in it: 113 bytes, drawn in the crate's documentation.
//!
//! Every byte of the header but the signature itself has one allowed value or is signed, so no two files with the same
//! content and key differ.

use sha2::{Digest, Sha256};

/// Bytes before the deflate stream.
pub const HEADER_BYTES: usize = 113;
/// Bytes of the header that the signature covers.
pub const SIGNED_HEADER_BYTES: usize = 49;
/// The largest image file, bytes.
pub const FILE_MAX_BYTES: u64 = 1 << 30;

const PREFIX: [u8; 17] = [
    0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, // RFC 1952, 2.3: no name, no time, no system
    101, 0, b'K', b'B', 97, 0, // XLEN, the subfield and its length
    1, // the version of this format
];
const DOMAIN: &[u8] = b"kraud signed image, version 1\n";

/// The header's variable parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// SHA-256 of the raw public key.
    pub key_id: [u8; 32],
    /// Over [`signed_message`].
    pub signature: [u8; 64],
}

impl Header {
    /// The header as it stands at the start of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..17].copy_from_slice(&PREFIX);
        bytes[17..49].copy_from_slice(&self.key_id);
        bytes[49..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else { return Err("it is too short") };
        if bytes[..2] != PREFIX[..2] {
            return Err("it is not a gzip file");
        }
        if bytes[..17] != PREFIX {
            return Err("its gzip header carries no signature that this version knows");
        }
        let mut header = Self { key_id: [0; 32], signature: [0; 64] };
        header.key_id.copy_from_slice(&bytes[17..49]);
        header.signature.copy_from_slice(&bytes[49..]);
        Ok(header)
    }
}

/// What is signed: the domain text, the header up to the signature, and the hash of all bytes after the header.
#[must_use]
pub fn signed_message(key_id: &[u8; 32], body_sha256: &[u8; 32]) -> Vec<u8> {
    let header = Header { key_id: *key_id, signature: [0; 64] }.encode();
    let mut message = DOMAIN.to_vec();
    message.extend_from_slice(&header[..SIGNED_HEADER_BYTES]);
    message.extend_from_slice(body_sha256);
    message
}

/// The id of a raw public key.
#[must_use]
pub fn key_id(public_key: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(public_key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_decodes_to_what_was_encoded() {
        let header = Header { key_id: [7; 32], signature: [9; 64] };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn each_fixed_byte_of_the_header_has_one_value() {
        let bytes = Header { key_id: [7; 32], signature: [9; 64] }.encode();
        for at in 0..17 {
            let mut changed = bytes;
            changed[at] ^= 1;
            assert!(Header::decode(&changed).is_err(), "byte {at}");
        }
        assert!(Header::decode(&bytes[..112]).is_err());
    }
}
