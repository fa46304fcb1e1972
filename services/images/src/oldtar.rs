//! Headers as the oldest tar wrote them: `mkfs.erofs` leaves out a file whose type is a zero byte (V7's regular file,
//! POSIX.1-1988 ustar "AREGTYPE") without a word, and takes no number that is left empty. Such headers are rewritten, in a
//! copy, before it sees them.
//!
//! Must not: touch the blob itself, whose hash names it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Length of a header, bytes.
const BLOCK: usize = 512;
/// Places of the numbers that may be left empty: mode, uid, gid, size, mtime (tar(5), "Pre-POSIX Archives").
const NUMBERS: [std::ops::Range<usize>; 5] = [100..108, 108..116, 116..124, 124..136, 136..148];
const TYPE: usize = 156;

/// Whether the header needs to be rewritten.
pub fn is_old(header: &tar::Header) -> bool {
    let bytes = header.as_bytes();
    bytes[TYPE] == 0 || NUMBERS.iter().any(|place| is_empty(&bytes[place.clone()]))
}

fn is_empty(field: &[u8]) -> bool {
    field.iter().all(|b| matches!(b, 0 | b' '))
}

/// Rewrites the headers at these positions.
///
/// # Errors
/// When the file cannot be read or written.
pub fn rewrite(archive: &File, positions: &[u64]) -> io::Result<()> {
    for position in positions {
        let mut bytes = [0u8; BLOCK];
        archive.read_exact_at(&mut bytes, *position)?;
        let mut header = tar::Header::from_byte_slice(&bytes).clone();
        for place in NUMBERS {
            let field = &mut header.as_mut_bytes()[place];
            if is_empty(field) {
                field.fill(b'0');
                if let Some(last) = field.last_mut() {
                    *last = 0;
                }
            }
        }
        if header.as_bytes()[TYPE] == 0 {
            // The oldest tar told a directory by its name only.
            let is_folder = header.path_bytes().ends_with(b"/");
            header.set_entry_type(if is_folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        }
        header.set_cksum();
        archive.write_all_at(header.as_bytes(), *position)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_oldest_kind_becomes_one_that_every_reader_knows() {
        let mut header = tar::Header::new_ustar();
        header.set_path("bin/x").unwrap();
        header.as_mut_bytes()[TYPE] = 0;
        header.set_size(3);
        header.set_mode(0o755);
        header.set_cksum();
        assert!(is_old(&header));
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(header.as_bytes(), 0).unwrap();
        rewrite(&file, &[0]).unwrap();
        let mut bytes = [0u8; BLOCK];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let new = tar::Header::from_byte_slice(&bytes);
        assert!(!is_old(new));
        assert_eq!((new.entry_type(), new.uid().unwrap(), new.size().unwrap()), (tar::EntryType::Regular, 0, 3));
        assert_eq!(new.mode().unwrap(), 0o755);
    }
}
