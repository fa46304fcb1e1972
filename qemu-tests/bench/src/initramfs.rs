//! The peer gets the very same initramfs as our monitor makes: the agent's archive with the spec behind it (cpio, "newc").

/// `archive` followed by an archive of one file `name` with `content`.
pub fn with_file(archive: &[u8], name: &str, content: &[u8]) -> Vec<u8> {
    let mut out = archive.to_vec();
    pad(&mut out);
    entry(&mut out, name, content, 0o100_644);
    entry(&mut out, "TRAILER!!!", &[], 0);
    out
}

fn entry(out: &mut Vec<u8>, name: &str, content: &[u8], mode: u32) {
    let fields = [1, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    pad(out);
    out.extend(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::with_file;

    #[test]
    fn the_file_starts_on_a_multiple_of_four_and_the_archive_ends() {
        let out = with_file(b"abcde", "spec.json", b"{}");
        assert_eq!(&out[..5], b"abcde");
        assert_eq!(&out[8..14], b"070701");
        assert!(out.windows(10).any(|w| w == b"TRAILER!!!"));
        assert_eq!(out.len() % 4, 0);
    }
}
