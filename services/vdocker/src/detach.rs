//! The keys by which a client leaves a terminal without ending its process (`--detach-keys`).
//!
//! The bytes of a sequence that has begun are held back until it is whole, which detaches, or broken, which sends them.

/// Docker's default.
const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Watches the input of a terminal.
#[derive(Debug, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    seen: usize,
}

impl DetachKeys {
    /// `ctrl-p,ctrl-q`, `a,b`; empty is the default. What is no such list is the default, too.
    pub fn parse(text: &str) -> Self {
        let keys: Option<Vec<u8>> = if text.is_empty() { None } else { text.split(',').map(key).collect() };
        let keys = keys.or_else(|| DEFAULT.split(',').map(key).collect()).unwrap_or_default();
        Self { keys, seen: 0 }
    }

    /// What of `bytes` goes to the process; None when the sequence is whole.
    pub fn pass(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.seen) != Some(byte) {
                out.extend_from_slice(&self.keys[..self.seen]);
                self.seen = 0;
            }
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return None;
                }
            } else {
                out.push(*byte);
            }
        }
        Some(out)
    }
}

fn key(text: &str) -> Option<u8> {
    match (text.strip_prefix("ctrl-").map(str::as_bytes), text.as_bytes()) {
        (Some([letter @ b'a'..=b'z']), _) => Some(letter - b'a' + 1),
        (Some([b'@']), _) => Some(0),
        (Some([sign @ b'['..=b'_']), _) => Some(sign - b'[' + 27),
        (None, [byte]) => Some(*byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::DetachKeys;

    #[test]
    fn a_whole_sequence_detaches_wherever_it_is_cut() {
        let mut keys = DetachKeys::parse("");
        assert_eq!(keys.pass(b"ab\x10"), Some(b"ab".to_vec()));
        assert_eq!(keys.pass(b"\x11"), None);
        assert_eq!(DetachKeys::parse("ctrl-],x").pass(b"q\x1dx"), None);
    }

    #[test]
    fn a_broken_sequence_reaches_the_process() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q");
        assert_eq!(keys.pass(b"\x10\x10a\x10"), Some(b"\x10\x10a".to_vec()));
        assert_eq!(keys.pass(b"b"), Some(b"\x10b".to_vec()));
    }

    #[test]
    fn what_is_no_list_of_keys_is_the_default() {
        assert_eq!(DetachKeys::parse("ctrl-p,nonsense"), DetachKeys::parse(""));
    }
}
