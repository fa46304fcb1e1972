//! Signed images: whatever stands behind a signature that holds, and whatever comes instead of one.

use crate::cradle::devices::file;
use crate::input::Input;
use crate::{scratch, tar};
use ::bali::format::{HEADER_BYTES, Header};
use ::bali::image::Image;
use ::bali::{Keyring, SigningKey, source::Source};
use flate2::{Compression, write::DeflateEncoder};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;

static KEYS: OnceLock<(SigningKey, Keyring)> = OnceLock::new();

#[allow(clippy::expect_used)]
fn keys() -> &'static (SigningKey, Keyring) {
    KEYS.get_or_init(|| {
        let folder = scratch::folder();
        let key = SigningKey::generate().expect("the machine that fuzzes has random numbers");
        key.save(&folder.path().join("key")).expect("the machine that fuzzes has memory");
        let keys = Keyring::load(folder.path()).expect("a key that was saved is one");
        (key, keys)
    })
}

fn signed(body: &[u8]) -> Vec<u8> {
    let (key, _) = keys();
    let header = Header { key_id: key.id(), signature: key.sign(&Sha256::digest(body).into()) };
    [&header.encode()[..], body].concat()
}

#[allow(clippy::expect_used)]
fn packed(content: &[u8]) -> Vec<u8> {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::none());
    deflate.write_all(content).expect("memory takes all");
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let mut body = deflate.finish().expect("memory takes all");
    body.extend(crc.sum().to_le_bytes());
    body.extend(crc.amount().to_le_bytes());
    body
}

/// A file that may be an image; one that is taken unpacks below its folder, or not.
pub fn image(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, config) = (input.byte(), input.piece());
    let whole = match kind % 8 {
        // Nobody has signed it.
        0 => input.rest().to_vec(),
        // Signed, but no stream.
        1 => signed(input.rest()),
        _ => {
            let mut first = ::tar::Builder::new(Vec::new());
            let mut header = ::tar::Header::new_ustar();
            header.set_size(config.len() as u64);
            header.set_mode(0o644);
            let _ = first.append_data(&mut header, ".bali/config.json", config);
            let first = first.get_ref().clone();
            signed(&packed(&[first, tar::archive(&mut input)].concat()))
        }
    };
    let held = file(&whole);
    let source = Source::Path(format!("/proc/self/fd/{}", held.as_raw_fd()).into());
    let Ok(mut image) = Image::open(&source, &keys().1) else { return };
    assert!(whole.len() > HEADER_BYTES && kind % 8 != 0, "an image that nobody signed is taken");
    let _ = (image.id(), image.config().command(&[]));
    let outside = scratch::folder();
    let inside = outside.path().join("in");
    let _ = std::fs::create_dir(&inside);
    let _ = ::bali::unpack::unpack(&mut image, &inside);
    assert_eq!(std::fs::read_dir(outside.path()).map_or(0, Iterator::count), 1, "an image leaves its folder");
}

/// A Dockerfile of a service.
pub fn dockerfile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = ::bali::dockerfile::base(&text);
    if let Ok(file) = ::bali::dockerfile::parse(&text) {
        assert!(file.copies.iter().all(|copy| !copy.sources.is_empty()));
    }
}
