//! The door's frames: one byte of kind, four bytes of length (big endian), the payload.
//!
//! Nothing here allocates more than [`MAX_PAYLOAD`] on a peer's word.

use std::io::{self, Read, Write};

/// The largest payload of a frame; a request must fit too.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// How much output one frame carries.
pub const CHUNK: usize = 32 * 1024;
/// The most arguments or variables of a request.
pub const MAX_ITEMS: usize = 4096;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: the token.
    Auth = 1,
    /// Client: a [`Request`].
    Request = 2,
    /// Client: bytes for the command's input.
    Stdin = 3,
    /// Client: the input's end.
    StdinEof = 4,
    /// Client: a signal's number, one byte, for the command's process group.
    Signal = 5,
    /// Client: the terminal's rows and columns, two bytes each.
    Resize = 6,
    /// Server: the command runs; its process id, four bytes.
    Started = 17,
    /// Server: bytes of the command's output.
    Stdout = 18,
    /// Server: bytes of the command's error output.
    Stderr = 19,
    /// Server: the exit status as a shell tells it (128 + n for signal n), four bytes; the last frame.
    Exit = 20,
    /// Server: why the command was not started; the last frame.
    Error = 21,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Auth, Error, Exit, Request, Resize, Signal, Started, Stderr, Stdin, StdinEof, Stdout};
        [Auth, Request, Stdin, StdinEof, Signal, Resize, Started, Stdout, Stderr, Exit, Error]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The program and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`, added to the door's own few variables.
    pub env: Vec<Vec<u8>>,
    /// Rows and columns of a terminal; none = three pipes.
    pub terminal: Option<(u16, u16)>,
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Writes a frame with one call to `write_all`.
///
/// # Errors
/// The writer's, and `InvalidInput` for a payload over [`MAX_PAYLOAD`].
pub fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
    let Some(length) = length else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "frame over the size limit"));
    };
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    to.write_all(&frame)
}

/// Reads a frame; none when the peer ended between frames.
///
/// # Errors
/// The reader's, and `InvalidData` for an unknown kind or a length over [`MAX_PAYLOAD`].
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut kind = [0];
    loop {
        match from.read(&mut kind) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let kind = Kind::from_byte(kind[0]).ok_or_else(|| invalid(format!("unknown frame kind {}", kind[0])))?;
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_PAYLOAD {
        return Err(invalid(format!("frame of {length} bytes is over the limit of {MAX_PAYLOAD}")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, payload }))
}

fn put_list(out: &mut Vec<u8>, items: &[Vec<u8>]) {
    out.extend_from_slice(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_be_bytes());
    for item in items {
        out.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(item);
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length).ok_or_else(|| invalid("request ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self) -> io::Result<usize> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    fn half(&mut self) -> io::Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from(bytes[0]) << 8 | u16::from(bytes[1]))
    }

    fn list(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let count = self.number()?;
        if count > MAX_ITEMS {
            return Err(invalid(format!("{count} items are over the limit of {MAX_ITEMS}")));
        }
        let mut items = Vec::new();
        for _ in 0..count {
            let length = self.number()?;
            let item = self.take(length)?;
            if item.contains(&0) {
                return Err(invalid("a zero byte in an argument"));
            }
            items.push(item.to_vec());
        }
        Ok(items)
    }
}

impl Request {
    /// The payload of a [`Kind::Request`] frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.terminal.is_some())];
        let (rows, columns) = self.terminal.unwrap_or_default();
        out.extend_from_slice(&rows.to_be_bytes());
        out.extend_from_slice(&columns.to_be_bytes());
        put_list(&mut out, &self.argv);
        put_list(&mut out, &self.env);
        out
    }

    /// The request in a payload.
    ///
    /// # Errors
    /// `InvalidData` when it is cut, has too much, has no program or zero bytes.
    pub fn decode(payload: &[u8]) -> io::Result<Self> {
        let mut cursor = Cursor(payload);
        let terminal = cursor.take(1)?[0] != 0;
        let size = (cursor.half()?, cursor.half()?);
        let argv = cursor.list()?;
        let env = cursor.list()?;
        if !cursor.0.is_empty() {
            return Err(invalid("bytes after the request"));
        }
        if argv.first().is_none_or(Vec::is_empty) {
            return Err(invalid("a request without a program"));
        }
        Ok(Self { argv, env, terminal: terminal.then_some(size) })
    }
}

/// Rows and columns of a [`Kind::Resize`] payload.
#[must_use]
pub fn decode_size(payload: &[u8]) -> Option<(u16, u16)> {
    let mut cursor = Cursor(payload);
    let size = (cursor.half().ok()?, cursor.half().ok()?);
    cursor.0.is_empty().then_some(size)
}

/// The payload of a [`Kind::Resize`] frame.
#[must_use]
pub fn encode_size(rows: u16, columns: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
    [a, b, c, d]
}

/// Whether two secrets are equal, in a time that depends on their lengths only.
#[must_use]
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    let mut difference = u8::from(a.len() != b.len());
    for (x, y) in a.iter().zip(b) {
        difference |= std::hint::black_box(x ^ y);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"exit 3".to_vec(), Vec::new()],
            env: vec![b"A=b c".to_vec()],
            terminal: Some((24, 80)),
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        assert_eq!(Request::decode(&request().encode()).unwrap(), request());
        let plain = Request { terminal: None, ..request() };
        assert_eq!(Request::decode(&plain.encode()).unwrap(), plain);
    }

    #[test]
    fn every_cut_request_is_refused() {
        let whole = request().encode();
        for length in 0..whole.len() {
            assert!(Request::decode(&whole[..length]).is_err(), "cut at {length}");
        }
        assert!(Request::decode(&[&whole[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_request_without_a_program_is_refused() {
        assert!(Request::decode(&Request::default().encode()).is_err());
        let nul = Request { argv: vec![b"a\0b".to_vec()], ..Request::default() };
        assert!(Request::decode(&nul.encode()).is_err());
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut bytes = vec![Kind::Stdin as u8];
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(read_frame(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(write_frame(&mut Vec::new(), Kind::Stdin, &vec![0; MAX_PAYLOAD + 1]).is_err());
    }

    #[test]
    fn frames_follow_each_other_and_then_end() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"hello").unwrap();
        write_frame(&mut bytes, Kind::Exit, &7u32.to_be_bytes()).unwrap();
        let mut reader = &bytes[..];
        assert_eq!(read_frame(&mut reader).unwrap().unwrap().payload, b"hello");
        assert_eq!(read_frame(&mut reader).unwrap().unwrap().kind, Kind::Exit);
        assert_eq!(read_frame(&mut reader).unwrap(), None);
        assert!(read_frame(&mut &[0u8, 0, 0, 0, 0][..]).is_err());
    }

    #[test]
    fn secrets_differ_by_any_byte_and_by_length() {
        assert!(same_secret(b"abc", b"abc"));
        for other in [&b"abd"[..], b"bbc", b"ab", b"abcd", b""] {
            assert!(!same_secret(b"abc", other));
        }
    }
}
