//! Files of an image without what differs between two makers of the same thing: signatures and public keys.

use super::pe;
use bali::format::HEADER_BYTES;
use std::path::Path;

/// In front of the signature of a service's image there are this many bytes that are not about its key.
const SERVICE_HEAD_BYTES: usize = 17;
/// The end of a signed kernel module (kernel: `include/linux/module_signature.h`), and the structure before it, whose last four
/// bytes are the signature's length.
const MODULE_END: &[u8] = b"~Module signature appended~\n";
const MODULE_INFO_BYTES: usize = 12;
/// What a kernel image is told of its root: that follows from the root.
const ROOT_HASH: &[u8] = b"kraud.roothash=";
const ROOT_HASH_BYTES: usize = 64;

/// The file at `place` (in the root, or in the ESP) as it is without signatures; nothing when it is only about keys.
#[must_use]
pub fn of(place: &Path, content: &[u8]) -> Option<Vec<u8>> {
    let name = place.to_string_lossy();
    let ends = |end: &str| name.to_ascii_lowercase().ends_with(end);
    if name.starts_with("usr/lib/kraud/keys/") || name.starts_with("loader/keys/") {
        return None;
    }
    if ends(".efi") {
        return Some(without_root_hash(pe::unsigned(content).unwrap_or_else(|| content.to_vec())));
    }
    if name.starts_with("usr/lib/kraud/services/") && content.len() > HEADER_BYTES {
        return Some([&content[..SERVICE_HEAD_BYTES], &content[HEADER_BYTES..]].concat());
    }
    if ends(".ko") {
        return Some(module(content).unwrap_or(content).to_vec());
    }
    Some(content.to_vec())
}

/// A kernel module without the signature at its end.
fn module(content: &[u8]) -> Option<&[u8]> {
    let signed = content.strip_suffix(MODULE_END)?;
    let (rest, info) = signed.split_at_checked(signed.len().checked_sub(MODULE_INFO_BYTES)?)?;
    let length = u32::from_be_bytes(*info.last_chunk::<4>()?);
    rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
}

fn without_root_hash(mut content: Vec<u8>) -> Vec<u8> {
    let found = content.windows(ROOT_HASH.len()).position(|bytes| bytes == ROOT_HASH);
    if let Some(hash) = found.and_then(|at| content.get_mut(at + ROOT_HASH.len()..)) {
        let length = hash.len().min(ROOT_HASH_BYTES);
        hash[..length].fill(0);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed_module(body: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut info = [0; MODULE_INFO_BYTES];
        info[8..].copy_from_slice(&u32::try_from(signature.len()).unwrap().to_be_bytes());
        [body, signature, &info, MODULE_END].concat()
    }

    #[test]
    fn signatures_and_keys_make_no_difference_and_content_does() {
        let same = |place: &str, one: &[u8], other: &[u8]| of(Path::new(place), one) == of(Path::new(place), other);
        let module = "usr/lib/modules/6/extra/zfs.ko";
        assert!(same(module, &signed_module(b"code", b"one"), &signed_module(b"code", b"another")));
        assert!(same(module, &signed_module(b"code", b"one"), b"code"));
        assert!(!same(module, &signed_module(b"code", b"one"), &signed_module(b"cide", b"one")));
        let service = "usr/lib/kraud/services/macro.tar.gz";
        let image = |key: u8, body: u8| [vec![1; SERVICE_HEAD_BYTES], vec![key; 96], vec![body; 9]].concat();
        assert!(same(service, &image(1, 5), &image(2, 5)) && !same(service, &image(1, 5), &image(1, 6)));
        assert!(same("usr/lib/kraud/keys/zone.pub", b"a", b"b"));
        assert!(!same("usr/bin/bali", b"a", b"b"));
    }

    #[test]
    fn a_module_that_lies_about_its_signature_is_taken_as_it_is() {
        let mut long = signed_module(b"code", b"one");
        let at = long.len() - MODULE_END.len() - 4;
        long[at] = 0xff;
        assert_eq!(of(Path::new("x.ko"), &long), Some(long));
        assert_eq!(of(Path::new("x.ko"), MODULE_END), Some(MODULE_END.to_vec()));
    }
}
