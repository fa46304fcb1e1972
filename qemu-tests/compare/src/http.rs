//! One HTTP request on a unix socket, with nothing between the engine and the comparison.
//!
//! Every request has a connection of its own, so that an answer that breaks the connection shows at the call it belongs to.

use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an engine may be silent.
const SILENCE: Duration = Duration::from_secs(180);
/// Larger answers are none of a comparison.
const LIMIT: u64 = 64 << 20;

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers besides those of the protocol.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Ask for a raw stream, and send this on it.
    pub stream: Option<String>,
    /// Ask for a WebSocket, and send this message on it.
    pub websocket: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Asks and reads the whole answer.
///
/// # Errors
/// When the engine cannot be reached, is silent, or does not speak HTTP.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    let mut connection = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    connection.set_read_timeout(Some(SILENCE)).context("set a timeout")?;
    let mut head = format!("{} {} HTTP/1.1\r\nHost: docker\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += match (&request.stream, &request.websocket) {
        (Some(_), _) => "Connection: Upgrade\r\nUpgrade: tcp\r\n",
        (_, Some(_)) => WEBSOCKET,
        _ => "Connection: close\r\n",
    };
    if !request.body.is_empty() || request.method != "GET" {
        head += &format!("Content-Length: {}\r\n", request.body.len());
    }
    head += "\r\n";
    connection.write_all(head.as_bytes()).context("send the request")?;
    // An engine may answer before it has read the whole body, and close: the answer counts.
    let sent = connection.write_all(&request.body);
    let mut raw = Vec::new();
    if let Some(input) = &request.stream {
        until_head(&mut connection, &mut raw)?;
        connection.write_all(input.as_bytes()).context("send the input")?;
        connection.shutdown(Shutdown::Write).context("end the input")?;
    }
    if let Some(message) = &request.websocket {
        until_head(&mut connection, &mut raw)?;
        connection.write_all(&frame(message)).context("send the message")?;
    }
    let read = read_all(&mut connection, &mut raw);
    if raw.is_empty() {
        sent.context("send the body")?;
    }
    read?;
    let mut answer = parse(&raw, &request.method)?;
    if request.websocket.is_some() && answer.status == 101 {
        answer.body = messages(&answer.body);
    }
    Ok(answer)
}

/// What asks for a WebSocket (RFC 6455).
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://docker\r\n";

/// A client's text message of less than 126 bytes; its mask is zero.
fn frame(message: &str) -> Vec<u8> {
    let length = u8::try_from(message.len()).unwrap_or(125).min(125);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], &message.as_bytes()[..usize::from(length)]].concat()
}

/// What a server's messages hold, one after the other.
fn messages(mut raw: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let [first, length, rest @ ..] = raw {
        let (length, rest) = match (length & 0x7f, rest) {
            (126, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            (127, _) => break,
            (length, rest) => (usize::from(length), rest),
        };
        let content = rest.get(..length).unwrap_or(rest);
        if first & 0x0f <= 2 {
            whole.extend_from_slice(content);
        }
        raw = &rest[content.len()..];
    }
    whole
}

fn until_head(connection: &mut UnixStream, raw: &mut Vec<u8>) -> Result<()> {
    let mut byte = [0u8; 1];
    while !raw.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).context("read the answer's head")? == 0 {
            return Ok(());
        }
        raw.push(byte[0]);
    }
    Ok(())
}

fn read_all(connection: &mut UnixStream, raw: &mut Vec<u8>) -> Result<()> {
    match connection.take(LIMIT).read_to_end(raw) {
        Ok(_) => Ok(()),
        // A reset after the answer is how some servers close.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && !raw.is_empty() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read the answer after {} bytes", raw.len())),
    }
}

fn parse(raw: &[u8], method: &str) -> Result<Answer> {
    let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        bail!("no HTTP answer: {:?}", String::from_utf8_lossy(&raw[..raw.len().min(200)]));
    };
    let head = String::from_utf8_lossy(&raw[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let mut answer = Answer { status: status.context("no status")?, headers, body: raw[end + 4..].to_vec() };
    if method != "HEAD" && answer.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        answer.body = dechunk(&answer.body)?;
    }
    Ok(answer)
}

fn dechunk(mut raw: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    while !raw.is_empty() {
        let end = raw.windows(2).position(|w| w == b"\r\n").context("a chunk without a size")?;
        let size = std::str::from_utf8(&raw[..end]).ok().and_then(|s| usize::from_str_radix(s.trim(), 16).ok());
        let size = size.context("a chunk's size is no number")?;
        if size == 0 {
            break;
        }
        let start = end + 2;
        let chunk = raw.get(start..start + size).context("a chunk is cut off")?;
        whole.extend_from_slice(chunk);
        raw = raw.get(start + size + 2..).unwrap_or_default();
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_put_together_without_what_controls_them() {
        let raw = [&b"\x82\x02hi\x89\x01p\x82\x7e\x00\x80"[..], &[b'x'; 128], b"\x88\x02\x03\xe8"].concat();
        assert_eq!(messages(&raw), [&b"hi"[..], &[b'x'; 128]].concat());
        assert_eq!(frame("ab"), b"\x81\x82\0\0\0\0ab");
    }

    #[test]
    fn chunks_are_put_together() {
        let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(raw, "GET").unwrap().body, b"abcde");
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "GET").is_err());
    }
}
