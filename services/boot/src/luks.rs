//! The header of an encrypted device (LUKS2 On-Disk Format, version 1.1.3), as far as it is ours: reading the key that the first
//! boot left in it, and leaving it there.
//!
//! The key is in a token of the header until it is sealed: it keeps nothing secret yet, but every device has its final layout.
//! The token is the last thing that is written at a device's first boot: a header of ours without one is of a first boot that did
//! not end, and nothing was stored on the device.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{Read, Seek, SeekFrom, Write};

/// What our devices are called in their headers.
pub const SUBSYSTEM: &str = "kraud";
/// The kind of token that holds the key in the clear.
const TOKEN: &str = "kraud-unsealed";
const BINARY_BYTES: usize = 4096;
/// The largest header that the format allows.
const HEADER_MAX_BYTES: u64 = 4 << 20;

/// A header that is there.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: Vec<u8>,
    json: Value,
}

/// What is on a device.
#[derive(Debug)]
pub enum Content {
    /// Not LUKS2.
    Other,
    /// Ours, but its first boot did not end.
    Unfinished(Header),
    /// Ours, with its key.
    Open(Vec<u8>),
    /// LUKS2 without a key of ours.
    Sealed,
}

/// Looks at a device.
///
/// # Errors
/// When it cannot be read, or has a LUKS2 header that does not hold.
pub fn look(device: &mut (impl Read + Seek)) -> Result<Content> {
    let Some(header) = Header::read(device)? else { return Ok(Content::Other) };
    if let Some(key) = header.key()? {
        return Ok(Content::Open(key));
    }
    let tokens = header.json["tokens"].as_object().is_none_or(serde_json::Map::is_empty);
    let keyslots = header.json["keyslots"].as_object().map_or(0, serde_json::Map::len);
    // One slot at most: who has sealed a device has more, or a token of another kind.
    Ok(if header.subsystem() == SUBSYSTEM && tokens && keyslots < 2 {
        Content::Unfinished(header)
    } else {
        Content::Sealed
    })
}

impl Header {
    fn read(device: &mut (impl Read + Seek)) -> Result<Option<Self>> {
        let mut bytes = vec![0; BINARY_BYTES];
        device.seek(SeekFrom::Start(0))?;
        device.read_exact(&mut bytes)?;
        if !bytes.starts_with(b"LUKS\xba\xbe\0\x02") {
            return Ok(None);
        }
        let size = u64::from_be_bytes(bytes[8..16].try_into()?);
        ensure!(
            (BINARY_BYTES as u64 * 4..=HEADER_MAX_BYTES).contains(&size),
            "its header says that it has {size} bytes"
        );
        bytes.resize(usize::try_from(size)?, 0);
        device.read_exact(&mut bytes[BINARY_BYTES..])?;
        ensure!(checksum(&bytes)[..] == bytes[448..480], "the checksum of its header does not hold");
        let text = bytes[BINARY_BYTES..].split(|b| *b == 0).next().unwrap_or_default();
        let json = serde_json::from_slice(text).context("its header is not JSON")?;
        Ok(Some(Self { bytes, json }))
    }

    fn subsystem(&self) -> &str {
        let field = self.bytes[208..256].split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(field).unwrap_or_default()
    }

    fn key(&self) -> Result<Option<Vec<u8>>> {
        let tokens = self.json["tokens"].as_object().into_iter().flatten();
        let Some((_, token)) = tokens.into_iter().find(|(_, token)| token["type"] == TOKEN) else { return Ok(None) };
        let text = token["key"].as_str().context("the token has no key")?;
        Ok(Some(STANDARD.decode(text).context("the token's key is not base64")?))
    }

    /// Leaves the key in the header, first copy and second, and makes each durable by `flush`.
    ///
    /// # Errors
    /// When there is no room for it or the device cannot be written.
    pub fn finish<D: Write + Seek>(
        mut self,
        key: &[u8],
        device: &mut D,
        mut flush: impl FnMut(&mut D) -> std::io::Result<()>,
    ) -> Result<()> {
        // Not by index: that is for objects only, and the header may be anything.
        let tokens = self.json.get_mut("tokens").and_then(Value::as_object_mut);
        let Some(tokens) = tokens else { bail!("its header has no tokens") };
        tokens.insert("0".into(), json!({"type": TOKEN, "keyslots": ["0"], "key": STANDARD.encode(key)}));
        let text = serde_json::to_vec(&self.json)?;
        let room = self.bytes.len() - BINARY_BYTES;
        ensure!(text.len() < room, "its header has no room for the key");
        self.bytes[BINARY_BYTES..].fill(0);
        self.bytes[BINARY_BYTES..BINARY_BYTES + text.len()].copy_from_slice(&text);
        let sequence = u64::from_be_bytes(self.bytes[16..24].try_into()?).wrapping_add(1);
        self.bytes[16..24].copy_from_slice(&sequence.to_be_bytes());
        let second_salt: [u8; 64] = {
            let mut salt = [0; 64];
            random(&mut salt)?;
            salt
        };
        for (offset, magic) in [(0, b"LUKS\xba\xbe"), (self.bytes.len() as u64, b"SKUL\xba\xbe")] {
            self.bytes[..6].copy_from_slice(magic);
            self.bytes[256..264].copy_from_slice(&offset.to_be_bytes());
            if offset > 0 {
                self.bytes[104..168].copy_from_slice(&second_salt);
            }
            let sum = checksum(&self.bytes);
            self.bytes[448..480].copy_from_slice(&sum);
            device.seek(SeekFrom::Start(offset))?;
            device.write_all(&self.bytes)?;
            flush(device)?;
        }
        Ok(())
    }
}

fn checksum(header: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(&header[..448]);
    hash.update([0; 64]);
    hash.update(&header[512..]);
    hash.finalize().into()
}

/// Bytes that nobody can guess.
///
/// # Errors
/// When the kernel has none.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .context("the kernel gives no random bytes")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn fresh(subsystem: &str, json: &Value) -> Cursor<Vec<u8>> {
        let mut bytes = vec![0; 16 << 10];
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
        bytes[8..16].copy_from_slice(&(16_u64 << 10).to_be_bytes());
        bytes[23] = 3;
        bytes[72..78].copy_from_slice(b"sha256");
        bytes[208..208 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        let text = serde_json::to_vec(json).unwrap();
        bytes[4096..4096 + text.len()].copy_from_slice(&text);
        let sum = checksum(&bytes);
        bytes[448..480].copy_from_slice(&sum);
        let mut device = bytes.clone();
        device.resize(1 << 20, 0);
        Cursor::new(device)
    }

    #[test]
    fn a_key_that_was_left_is_found_again_in_both_copies() {
        let mut device = fresh("kraud", &json!({"tokens": {}, "keyslots": {"0": {}}}));
        let Content::Unfinished(header) = look(&mut device).unwrap() else { panic!("a fresh header has no key") };
        header.finish(b"secret", &mut device, |_| Ok(())).unwrap();
        let Content::Open(key) = look(&mut device).unwrap() else { panic!("the key is not there") };
        assert_eq!(key, b"secret");
        let second = device.get_ref()[16 << 10..32 << 10].to_vec();
        assert_eq!(&second[..6], b"SKUL\xba\xbe");
        assert_eq!(checksum(&second)[..], second[448..480]);
        assert_eq!(second[23], 4, "both have the next sequence number");
    }

    #[test]
    fn what_is_not_of_a_first_boot_is_never_called_unfinished() {
        let slots = |n: u8| (0..n).map(|i| (i.to_string(), json!({}))).collect::<serde_json::Map<_, _>>();
        for (subsystem, tokens, n) in
            [("", json!({}), 1), ("kraud", json!({"0": {"type": "systemd-tpm2"}}), 1), ("kraud", json!({}), 2)]
        {
            let mut device = fresh(subsystem, &json!({"tokens": tokens, "keyslots": slots(n)}));
            assert!(matches!(look(&mut device).unwrap(), Content::Sealed), "{subsystem} {tokens} {n}");
        }
        assert!(matches!(look(&mut Cursor::new(vec![0; 1 << 20])).unwrap(), Content::Other));
    }

    #[test]
    fn a_header_whose_text_is_no_object_is_left_as_it_is() {
        for json in [json!([1]), json!("text"), json!(null), json!({"tokens": 5})] {
            let mut device = fresh("kraud", &json);
            let before = device.get_ref().clone();
            let Content::Unfinished(header) = look(&mut device).unwrap() else { panic!("{json} has no token") };
            assert!(header.finish(b"secret", &mut device, |_| Ok(())).is_err(), "{json}");
            assert_eq!(*device.get_ref(), before);
        }
    }

    #[test]
    fn a_torn_header_is_an_error_and_not_a_fresh_device() {
        let mut device = fresh("kraud", &json!({"tokens": {}, "keyslots": {}}));
        device.get_mut()[5000] ^= 1;
        assert!(look(&mut device).is_err());
    }
}
