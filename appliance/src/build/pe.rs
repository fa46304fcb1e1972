//! A program of the firmware's kind (PE32+), as far as signatures are concerned: which bytes are signed.
//!
//! Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash": all but the checksum, the entry of the
//! table of certificates, and that table, which is the file's end.

/// Offsets from the PE header.
const OPTIONAL: usize = 24;
const CHECKSUM: usize = OPTIONAL + 64;
const CERTIFICATES: usize = OPTIONAL + 144;
const PE32_PLUS: u16 = 0x20b;

/// The file without its signatures: everything that they do not cover is zero or left out. Nothing when it is no such program.
#[must_use]
pub fn unsigned(file: &[u8]) -> Option<Vec<u8>> {
    let start = usize::try_from(number(file, 0x3c)?).ok()?;
    let magic = file.get(start.checked_add(OPTIONAL)?..)?.first_chunk::<2>()?;
    if file.get(start..start + 4)? != b"PE\0\0" || u16::from_le_bytes(*magic) != PE32_PLUS {
        return None;
    }
    let table = usize::try_from(number(file, start + CERTIFICATES)?).ok()?;
    let length = usize::try_from(number(file, start + CERTIFICATES + 4)?).ok()?;
    let end = if length == 0 { file.len() } else { table };
    if end > file.len() || end < start + CERTIFICATES + 8 || (length > 0 && table + length != file.len()) {
        return None;
    }
    let mut out = file[..end].to_vec();
    out[start + CHECKSUM..start + CHECKSUM + 4].fill(0);
    out[start + CERTIFICATES..start + CERTIFICATES + 8].fill(0);
    // A signer fills up to eight bytes before it appends.
    out.resize(out.len().next_multiple_of(8), 0);
    Some(out)
}

fn number(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*file.get(at..)?.first_chunk::<4>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, a body of `length` bytes, and a signature when there is one.
    fn program(length: usize, signature: &[u8]) -> Vec<u8> {
        let start = 64;
        let mut file = vec![0; start + CERTIFICATES + 8];
        file[0x3c..0x40].copy_from_slice(&u32::try_from(start).unwrap().to_le_bytes());
        file[start..start + 4].copy_from_slice(b"PE\0\0");
        file[start + OPTIONAL..start + OPTIONAL + 2].copy_from_slice(&PE32_PLUS.to_le_bytes());
        file.extend(std::iter::repeat_n(7, length));
        if !signature.is_empty() {
            file.resize(file.len().next_multiple_of(8), 0);
            let table = u32::try_from(file.len()).unwrap();
            let at = start + CERTIFICATES;
            file[at..at + 4].copy_from_slice(&table.to_le_bytes());
            file[at + 4..at + 8].copy_from_slice(&u32::try_from(signature.len()).unwrap().to_le_bytes());
            file[start + CHECKSUM] = signature[0];
            file.extend_from_slice(signature);
        }
        file
    }

    #[test]
    fn two_signatures_of_a_program_leave_the_same_bytes_and_another_body_does_not() {
        let plain = unsigned(&program(21, b"")).unwrap();
        assert_eq!(unsigned(&program(21, b"one")).unwrap(), plain);
        assert_eq!(unsigned(&program(21, b"another")).unwrap(), plain);
        let mut changed = program(21, b"one");
        changed[64 + CERTIFICATES + 8] ^= 1;
        assert_ne!(unsigned(&changed).unwrap(), plain);
    }

    #[test]
    fn what_is_no_program_or_cut_is_refused() {
        let whole = program(21, b"one");
        for length in 0..whole.len() {
            assert!(unsigned(&whole[..length]).is_none(), "{length}");
        }
        assert!(unsigned(&[0; 512]).is_none());
    }
}
