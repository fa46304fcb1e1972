//! A request: its head parsed, its body readable, whether it came with a length or in chunks.

use crate::platform::Stream;
use std::io::{self, Read, Write as _};
use std::sync::Arc;

/// The longest head.
const MAX_HEAD: usize = 64 * 1024;
/// The most header lines.
const MAX_HEADERS: usize = 64;
/// The longest body that is kept in memory.
const MAX_JSON: u64 = 1 << 20;
/// The longest line between chunks.
const MAX_CHUNK_LINE: usize = 4096;
/// What is taken from the connection at once: the lines between chunks are too short to ask the kernel for each.
const PIECE: usize = 64 * 1024;

/// A request.
#[derive(Debug)]
pub struct Request {
    /// The method, in capitals.
    pub method: String,
    /// The path, decoded, without the query.
    pub path: String,
    /// The connection may serve another request.
    pub keep_alive: bool,
    /// The client asks to take the connection over.
    pub upgrade: bool,
    query: Vec<(String, String)>,
    body: Body,
}

/// A request that is not served.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The client has left between requests.
    #[error("the connection is closed")]
    Closed,
    /// The head is too long.
    #[error("the request's head is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// The body is too long.
    #[error("the request's body is longer than {MAX_JSON} bytes")]
    BodyTooLong,
    /// It is no HTTP/1.1.
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    /// The connection broke.
    #[error("the request ended early")]
    Io(#[from] io::Error),
}

impl RequestError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::HeadTooLong => 431,
            Self::BodyTooLong => 413,
            Self::Closed | Self::Malformed(_) | Self::Io(_) => 400,
        }
    }
}

#[derive(Debug)]
struct Body {
    stream: Arc<Stream>,
    /// Bytes that came behind the head, or behind what was read of the body.
    ahead: Vec<u8>,
    /// How many of them are used up.
    used: usize,
    left: Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Done,
    Length(u64),
    /// Bytes of the chunk that is being read; 0 before a chunk's line.
    Chunk(u64),
    /// Before the line end behind a chunk.
    ChunkEnd,
}

impl Request {
    /// Reads a head; `ahead` is what the request before left.
    ///
    /// # Errors
    /// When the client leaves, or what it sends is no request within the limits.
    pub fn read(stream: &Arc<Stream>, ahead: Vec<u8>) -> Result<Self, RequestError> {
        let mut bytes = ahead;
        loop {
            if !bytes.is_empty()
                && let Some(request) = Self::parse(stream, &bytes)?
            {
                return Ok(request);
            }
            if bytes.len() >= MAX_HEAD {
                return Err(RequestError::HeadTooLong);
            }
            let mut buffer = [0; 4096];
            let got = (&**stream).read(&mut buffer)?;
            if got == 0 {
                return Err(if bytes.is_empty() {
                    RequestError::Closed
                } else {
                    io::Error::from(io::ErrorKind::UnexpectedEof).into()
                });
            }
            bytes.extend_from_slice(&buffer[..got]);
        }
    }

    fn parse(stream: &Arc<Stream>, bytes: &[u8]) -> Result<Option<Self>, RequestError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let malformed = |e: httparse::Error| RequestError::Malformed(e.to_string());
        let httparse::Status::Complete(end) = parsed.parse(bytes).map_err(malformed)? else { return Ok(None) };
        let header = |name: &str| {
            parsed
                .headers
                .iter()
                .find(|h| h.name.eq_ignore_ascii_case(name))
                .map(|h| String::from_utf8_lossy(h.value).to_ascii_lowercase())
        };
        let has = |name: &str, word: &str| header(name).is_some_and(|v| v.split(',').any(|w| w.trim() == word));
        let left = match (header("transfer-encoding"), header("content-length")) {
            (Some(coding), None) if coding.trim() == "chunked" => Left::Chunk(0),
            (Some(_), _) => return Err(RequestError::Malformed("its transfer coding is not supported".into())),
            (None, Some(length)) => {
                match length.trim().parse().map_err(|_| RequestError::Malformed("its length is no number".into()))? {
                    0 => Left::Done,
                    length => Left::Length(length),
                }
            }
            (None, None) => Left::Done,
        };
        let (path, query) = split_target(parsed.path.unwrap_or("/"));
        if has("expect", "100-continue") && left != Left::Done {
            let mut out: &Stream = stream;
            out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        Ok(Some(Self {
            method: parsed.method.unwrap_or_default().to_owned(),
            path,
            keep_alive: parsed.version == Some(1) && !has("connection", "close"),
            upgrade: header("upgrade").is_some(),
            query,
            body: Body { stream: Arc::clone(stream), ahead: bytes[end..].to_vec(), used: 0, left },
        }))
    }

    /// A query parameter, decoded; empty when it is absent.
    pub fn query(&self, name: &str) -> &str {
        self.query.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Whether a query parameter is set, as Docker understands it.
    pub fn flag(&self, name: &str) -> bool {
        !matches!(self.query(name).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The whole body as JSON; an empty one is `{}`.
    ///
    /// # Errors
    /// When it is too long or no such JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, RequestError> {
        let mut bytes = Vec::new();
        (&mut self.body).take(MAX_JSON + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_JSON {
            return Err(RequestError::BodyTooLong);
        }
        let text = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes.as_slice() };
        serde_json::from_slice(text).map_err(|e| RequestError::Malformed(e.to_string()))
    }

    /// The connection.
    pub fn stream(&self) -> Arc<Stream> {
        Arc::clone(&self.body.stream)
    }

    /// The body, to read from.
    pub fn body(&mut self) -> impl Read {
        &mut self.body
    }

    /// Whether nothing of the body is left.
    pub fn body_is_read(&self) -> bool {
        self.body.left == Left::Done
    }

    /// What came behind this request.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.body.ahead.split_off(self.body.used)
    }
}

impl Body {
    fn raw(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.ahead.len() {
            if buffer.len() >= PIECE {
                return (&*self.stream).read(buffer);
            }
            self.used = 0;
            self.ahead.resize(PIECE, 0);
            let got = (&*self.stream).read(&mut self.ahead);
            self.ahead.truncate(*got.as_ref().unwrap_or(&0));
            got?;
        }
        let held = &self.ahead[self.used..];
        let length = held.len().min(buffer.len());
        buffer[..length].copy_from_slice(&held[..length]);
        self.used += length;
        Ok(length)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            if self.raw(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match byte[0] {
                b'\n' => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
                _ if line.len() >= MAX_CHUNK_LINE => return Err(io::ErrorKind::InvalidData.into()),
                other => line.push(other),
            }
        }
    }

    /// Up to the first byte of the next chunk, or the end.
    fn next_chunk(&mut self) -> io::Result<()> {
        if self.left == Left::ChunkEnd {
            self.line()?;
        }
        let line = self.line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(digits, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.left = Left::Chunk(length);
        if length == 0 {
            while !self.line()?.is_empty() {}
            self.left = Left::Done;
        }
        Ok(())
    }
}

impl Read for &mut Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if matches!(self.left, Left::Chunk(0) | Left::ChunkEnd) {
            self.next_chunk()?;
        }
        let (Left::Length(left) | Left::Chunk(left)) = self.left else { return Ok(0) };
        if buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.raw(&mut buffer[..most])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = match (self.left, left - got as u64) {
            (Left::Length(_), 0) => Left::Done,
            (Left::Length(_), left) => Left::Length(left),
            (_, 0) => Left::ChunkEnd,
            (_, left) => Left::Chunk(left),
        };
        Ok(got)
    }
}

fn split_target(target: &str) -> (String, Vec<(String, String)>) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name, true), decode(value, true))
    };
    (decode(path, false), query.split('&').filter(|p| !p.is_empty()).map(pair).collect())
}

/// Percent-decoding; in a query `+` is a space.
fn decode(text: &str, plus: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let digits = bytes.get(index + 1..index + 3).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[index], digits.and_then(|d| u8::from_str_radix(d, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                index += 2;
            }
            (b'+', _) if plus => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        index += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn request(bytes: &[u8]) -> Result<Request, RequestError> {
        let (client, server) = UnixStream::pair().unwrap();
        let bytes = bytes.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = (&client).write_all(&bytes);
        });
        let request = Request::read(&Arc::new(Stream(server.into())), Vec::new());
        writer.join().unwrap();
        request
    }

    #[test]
    fn path_and_query_are_decoded() {
        let request = request(b"GET /containers/a%20b/top?ps_args=-o+pid%2Ccomm&x HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(
            (request.path.as_str(), request.query("ps_args"), request.query("y")),
            ("/containers/a b/top", "-o pid,comm", "")
        );
        assert!(request.keep_alive && request.body_is_read());
    }

    #[test]
    fn a_chunked_body_is_put_together_and_what_follows_is_kept() {
        let mut request = request(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: 1\r\n\r\nNEXT").unwrap();
        let mut body = String::new();
        request.body().read_to_string(&mut body).unwrap();
        assert_eq!(body, "abc0123456789abcdef");
        assert!(request.body_is_read());
        assert_eq!(request.into_rest(), b"NEXT");
    }

    #[test]
    fn bytes_behind_an_upgrade_are_kept() {
        let request = request(b"POST /x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nstdin").unwrap();
        assert!(request.upgrade);
        assert_eq!(request.into_rest(), b"stdin");
    }

    #[test]
    fn a_body_that_ends_early_is_an_error() {
        let mut request = request(b"POST /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}").unwrap();
        assert!(matches!(request.json::<serde_json::Value>(), Err(RequestError::Io(_))));
    }

    #[test]
    fn limits_hold() {
        let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
        long.resize(MAX_HEAD + 10_000, b'a');
        assert!(matches!(request(&long), Err(RequestError::HeadTooLong)));
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_JSON + 1);
        let (client, server) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = (&client).write_all(head.as_bytes());
            let _ = (&client).write_all(&vec![b' '; MAX_JSON as usize + 1]);
        });
        let mut request = Request::read(&Arc::new(Stream(server.into())), Vec::new()).unwrap();
        assert!(matches!(request.json::<serde_json::Value>(), Err(RequestError::BodyTooLong)));
        writer.join().unwrap();
    }

    #[test]
    fn what_is_no_http_is_refused() {
        for wrong in [
            &b"\x00\x01\x02\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            assert!(matches!(request(wrong), Err(RequestError::Malformed(_))), "{wrong:?}");
        }
    }
}
