//! Writes `newc` cpio archives, the format of an initramfs (kernel: `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Everything belongs to root and has no time, so that the same content is the same file.

use super::error::{At, Result};
use std::fs;
use std::io::Write;
use std::path::Path;

/// An archive under construction, in memory.
#[derive(Default)]
pub struct Cpio {
    out: Vec<u8>,
    inode: u32,
}

/// File type bits of `mode`.
const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHAR: u32 = 0o020_000;

impl Cpio {
    /// Adds a folder.
    pub fn dir(&mut self, name: &str) {
        self.entry(name, DIR | 0o755, b"", (0, 0));
    }

    /// Adds a file with the given content.
    pub fn data(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, FILE | mode, content, (0, 0));
    }

    /// Adds a copy of a file; links are followed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(&mut self, name: &str, mode: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).at("read", from)?;
        self.data(name, mode, &content);
        Ok(())
    }

    /// Adds a character device.
    pub fn device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, CHAR | mode, b"", number);
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, b"", (0, 0));
        self.out
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.inode += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name.len() + 1).unwrap_or(0),
            0,
        ];
        // Writing to memory cannot fail.
        let _ = self.out.write_all(b"070701");
        for field in fields {
            let _ = write!(self.out, "{field:08X}");
        }
        let _ = self.out.write_all(name.as_bytes());
        self.out.push(0);
        self.pad();
        let _ = self.out.write_all(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn headers_and_contents_are_aligned_to_four_bytes() {
        let mut cpio = Cpio::default();
        cpio.data("a", 0o644, b"xyz");
        let bytes = cpio.finish();
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header, "a\0": 112; then the content, padded.
        assert_eq!(&bytes[112..116], b"xyz\0");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn busybox_or_cpio_lists_what_was_written() {
        let Some(cpio) = super::super::host::find("cpio") else {
            eprintln!("skipped: no cpio on this machine");
            return;
        };
        let mut archive = Cpio::default();
        archive.dir("d");
        archive.data("d/file", 0o755, &[7; 1000]);
        let mut child = Command::new(cpio).arg("-t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "d\nd/file\n");
    }
}
