//! How much an archive may have between two of its files: a long name or an extended header, which the tar crate keeps in memory
//! whole, however large it says that it is.
//!
//! A few kilobytes of a compressed layer can be gigabytes of one name.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// More than any name and all attributes of a file.
const MAX_HEADERS: u64 = 1 << 20;

/// Bounds what is read on the way to the next file.
#[derive(Clone, Debug, Default)]
pub struct Bound(Rc<Cell<Option<u64>>>);

/// What an archive is read from.
#[derive(Debug)]
pub struct Bounded<R> {
    inner: R,
    left: Bound,
}

impl Bound {
    /// A reader that keeps to it.
    pub fn reader<R>(&self, inner: R) -> Bounded<R> {
        Bounded { inner, left: self.clone() }
    }

    /// The next item of a list of files, of which `list` reads nothing but headers.
    pub fn next<T>(&self, list: &mut impl Iterator<Item = T>) -> Option<T> {
        self.0.set(Some(MAX_HEADERS));
        let next = list.next();
        self.0.set(None);
        next
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if let Some(left) = self.left.0.get() {
            let left = left.checked_sub(got as u64);
            let left =
                left.ok_or_else(|| io::Error::other(format!("a file's headers are larger than {MAX_HEADERS} bytes")))?;
            self.left.0.set(Some(left));
        }
        Ok(got)
    }
}

impl<R: Seek> Seek for Bounded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive with one file, whose name is so long.
    fn named(length: u64) -> impl Read + Seek {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(length);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(bytes.len() + usize::try_from(length.next_multiple_of(512)).unwrap(), b'n');
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        io::Cursor::new(bytes)
    }

    #[test]
    fn a_name_of_megabytes_is_refused_and_one_of_kilobytes_is_not() {
        for (length, taken) in [(4000, true), (3 << 20, false)] {
            let bound = Bound::default();
            let mut archive = tar::Archive::new(bound.reader(named(length)));
            let mut entries = archive.entries_with_seek().unwrap();
            assert_eq!(bound.next(&mut entries).unwrap().is_ok(), taken);
        }
    }

    #[test]
    fn a_large_file_is_no_large_header() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(3 << 20);
            builder.append_data(&mut header, name, io::repeat(1).take(3 << 20)).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let bound = Bound::default();
        let mut archive = tar::Archive::new(bound.reader(bytes.as_slice()));
        let mut entries = archive.entries().unwrap();
        for _ in 0..2 {
            let mut entry = bound.next(&mut entries).unwrap().unwrap();
            assert_eq!(io::copy(&mut entry, &mut io::sink()).unwrap(), 3 << 20);
        }
        assert!(bound.next(&mut entries).is_none());
    }
}
