//! What a firmware is given to set one of its variables of keys to: a list with one certificate, the time, and a signature over both
//! (UEFI Specification 2.10: 8.2.2 `EFI_VARIABLE_AUTHENTICATION_2`, 32.4.1 `EFI_SIGNATURE_LIST`).

/// `EFI_CERT_X509_GUID`, `EFI_CERT_TYPE_PKCS7_GUID`, the two name spaces of variables, as they lie in memory.
const X509: [u8; 16] = *b"\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72";
const PKCS7: [u8; 16] = *b"\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7";
const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
const DATABASE: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
/// Who owns the certificates in the firmware's lists.
const OWNER: [u8; 16] = *b"kraudboxSecuBoot";
/// Kept, for boot services, for runtime services, and only changed by what is signed with a later time.
const ATTRIBUTES: u32 = 0x27;
/// `EFI_TIME` of 2026-01-01 00:00:00, the time of all builds.
const TIME: [u8; 16] = [0xea, 0x07, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LIST_HEADER_BYTES: usize = 28;
/// A PKCS #7 message is a SignedData behind so many bytes, which firmware does not expect.
const WRAPPER_BYTES: usize = 19;
/// Of a sequence and a context-specific element whose lengths have two bytes (X.690, 8.1.3.5).
const WRAPPER: [(usize, [u8; 2]); 2] = [(0, [0x30, 0x82]), (15, [0xa0, 0x82])];

/// A list of one certificate.
#[must_use]
pub fn list(certificate_der: &[u8]) -> Vec<u8> {
    let signature = OWNER.len() + certificate_der.len();
    let mut out = X509.to_vec();
    for length in [LIST_HEADER_BYTES + signature, 0, signature] {
        out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }
    out.extend_from_slice(&OWNER);
    out.extend_from_slice(certificate_der);
    out
}

/// What is signed to set the variable `name` to `value`.
#[must_use]
pub fn signed(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    out.extend_from_slice(if name.starts_with("db") { &DATABASE } else { &GLOBAL });
    out.extend_from_slice(&ATTRIBUTES.to_le_bytes());
    out.extend_from_slice(&TIME);
    out.extend_from_slice(value);
    out
}

/// The file that a firmware takes; nothing when `message` is no PKCS #7 message of the usual length.
#[must_use]
pub fn authenticated(value: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    if WRAPPER.iter().any(|(at, bytes)| message.get(*at..at + 2) != Some(bytes)) {
        return None;
    }
    let signed_data = message.get(WRAPPER_BYTES..)?;
    let mut out = TIME.to_vec();
    out.extend_from_slice(&u32::try_from(24 + signed_data.len()).ok()?.to_le_bytes());
    // WIN_CERT revision 2.0, of the kind that has a GUID.
    out.extend_from_slice(&[0x00, 0x02, 0xf1, 0x0e]);
    out.extend_from_slice(&PKCS7);
    out.extend_from_slice(signed_data);
    out.extend_from_slice(value);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_the_lengths_of_what_is_in_it() {
        let list = list(&[7; 100]);
        assert_eq!(list.len(), 28 + 16 + 100);
        assert_eq!(list[16..28], [144, 0, 0, 0, 0, 0, 0, 0, 116, 0, 0, 0]);
        assert_eq!(&list[28..44], b"kraudboxSecuBoot");
    }

    #[test]
    fn the_signature_covers_name_space_attributes_time_and_value() {
        assert_eq!(signed("PK", b"v").len(), 4 + 16 + 4 + 16 + 1);
        assert_eq!(signed("db", b"v")[4..20], DATABASE);
        assert_eq!(signed("KEK", b"v")[6..22], GLOBAL);
    }

    #[test]
    fn a_message_loses_its_wrapper_and_what_is_none_is_refused() {
        let mut message = vec![0; 19];
        message[..2].copy_from_slice(&[0x30, 0x82]);
        message[15..17].copy_from_slice(&[0xa0, 0x82]);
        message.extend_from_slice(b"data");
        let file = authenticated(b"value", &message).unwrap();
        assert_eq!((file.len(), &file[16..20]), (16 + 24 + 4 + 5, &[28, 0, 0, 0][..]));
        assert!(file.ends_with(b"datavalue"));
        assert_eq!(authenticated(b"value", b"short"), None);
        assert_eq!(authenticated(b"value", &[0; 64]), None);
    }
}
