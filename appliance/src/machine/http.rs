//! A small HTTP/1.1 client over TLS, for the zone's own interfaces: GET and forms, an answer or a stream of lines.
//!
//! It trusts the zone's authority and nothing else. Every size is bounded.

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const MAX_HEADERS: u64 = 64 * 1024;
const MAX_BODY: u64 = 16 << 20;

/// Talks to one address.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
    /// The first cookie that it set, `name=value`.
    pub cookie: Option<String>,
}

type Transport = BufReader<StreamOwned<ClientConnection, TcpStream>>;

impl Client {
    /// A client with the certificate in `dir` (`ca.pem`, `cert.pem`, `key.pem`).
    ///
    /// # Errors
    /// When one of the files is missing or is not what it should be.
    pub fn new(address: SocketAddr, dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&read("ca.pem")?) {
            roots.add(certificate.context("ca.pem is damaged")?).context("ca.pem is no authority's certificate")?;
        }
        let chain = CertificateDer::pem_slice_iter(&read("cert.pem")?).collect::<std::result::Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")?).context("key.pem is damaged")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.context("cert.pem is damaged")?, key)
            .context("cert.pem and key.pem do not belong together")?;
        Ok(Self { address, tls: Arc::new(tls) })
    }

    fn connect(&self, method: &str, path: &str, more: &str, timeout: Duration) -> Result<(Transport, Head)> {
        let tcp = TcpStream::connect_timeout(&self.address, timeout).context("cannot connect")?;
        tcp.set_read_timeout(Some(timeout))?;
        tcp.set_write_timeout(Some(timeout))?;
        let name = ServerName::from(self.address.ip());
        let session = ClientConnection::new(Arc::clone(&self.tls), name).context("cannot start TLS")?;
        let mut stream = StreamOwned::new(session, tcp);
        let host = self.address.ip();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: appliance\r\nConnection: close\r\n{more}"
        )
        .context("no TLS connection")?;
        let mut reader = BufReader::new(stream);
        let head = read_head(&mut reader)?;
        Ok((reader, head))
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    /// When the peer does not answer in HTTP in time, or with too much.
    pub fn get(&self, path: &str, timeout: Duration) -> Result<Answer> {
        self.ask("GET", path, "\r\n", timeout)
    }

    /// Sends a form, encoded already, with a cookie (may be empty), and waits for the whole answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, path: &str, cookie: &str, form: &str, timeout: Duration) -> Result<Answer> {
        let cookie = if cookie.is_empty() { String::new() } else { format!("Cookie: {cookie}\r\n") };
        let more = format!(
            "{cookie}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        self.ask("POST", path, &more, timeout)
    }

    fn ask(&self, method: &str, path: &str, more: &str, timeout: Duration) -> Result<Answer> {
        let (mut reader, head) = self.connect(method, path, more, timeout)?;
        let mut body = Vec::new();
        let read = Body::new(&mut reader, head.length).take(MAX_BODY).read_to_end(&mut body);
        match read {
            Ok(_) => {}
            // A peer that just closes the connection ends a body without a length.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && matches!(head.length, Length::Close) => {}
            Err(e) => return Err(e).context("the answer breaks off"),
        }
        Ok(Answer { status: head.status, body, cookie: head.cookie })
    }

    /// Asks, and gives each line of the answer to `line` until it says stop (false) or the stream ends.
    ///
    /// # Errors
    /// When the peer does not answer with 200, or a line is too long.
    pub fn lines(&self, path: &str, timeout: Duration, mut line: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let (mut reader, head) = self.connect("GET", path, "\r\n", timeout)?;
        if head.status != 200 {
            bail!("the answer is {}", head.status);
        }
        // Silence is normal in a stream of events.
        reader.get_ref().sock.set_read_timeout(None)?;
        let mut lines = BufReader::new(Body::new(&mut reader, head.length));
        // The answer has begun: whatever happened before it is not in the stream.
        let mut wanted = line(b"");
        while wanted {
            let mut bytes = Vec::new();
            let read = (&mut lines).take(MAX_BODY).read_until(b'\n', &mut bytes).context("the stream breaks off")?;
            if read == 0 {
                return Ok(());
            }
            wanted = line(bytes.trim_ascii());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Known(u64),
    Chunked,
    Close,
}

struct Head {
    status: u16,
    length: Length,
    cookie: Option<String>,
}

fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut limited = reader.take(MAX_HEADERS);
    let mut next = || -> Result<String> {
        let mut line = String::new();
        limited.read_line(&mut line).context("no answer")?;
        if !line.ends_with('\n') {
            bail!("the connection was closed before an answer");
        }
        Ok(line.trim_end().to_owned())
    };
    let first = next()?;
    let status =
        first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("the answer is not HTTP: {first}"))?;
    let (mut length, mut cookie) = (Length::Close, None);
    loop {
        let line = next()?;
        let Some((name, value)) = line.split_once(':') else {
            if line.is_empty() {
                return Ok(Head { status, length, cookie });
            }
            bail!("the answer has a damaged header");
        };
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" if value.trim().eq_ignore_ascii_case("chunked") => length = Length::Chunked,
            "content-length" if length != Length::Chunked => {
                length = Length::Known(value.trim().parse().context("the answer has a damaged length")?);
            }
            "set-cookie" if cookie.is_none() => cookie = value.split(';').next().map(|c| c.trim().to_owned()),
            _ => {}
        }
    }
}

/// A body without its transfer encoding.
struct Body<'a, R> {
    inner: &'a mut R,
    length: Length,
    /// Bytes left of the body or of the present chunk.
    left: u64,
    ended: bool,
}

impl<'a, R: BufRead> Body<'a, R> {
    fn new(inner: &'a mut R, length: Length) -> Self {
        let left = match length {
            Length::Known(left) => left,
            Length::Chunked => 0,
            Length::Close => u64::MAX,
        };
        Self { inner, length, left, ended: false }
    }

    fn chunk_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.inner.by_ref().take(1024).read_line(&mut line)?;
        if line.ends_with('\n') { Ok(line.trim().to_owned()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let line = self.chunk_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        self.left = u64::from_str_radix(size, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a chunk without a size"))?;
        if self.left == 0 {
            self.ended = true;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.length == Length::Chunked && self.left == 0 && !self.ended {
            self.next_chunk()?;
        }
        if self.ended || self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.inner.read(&mut buffer[..wanted])?;
        if length == 0 {
            return if self.length == Length::Close { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if self.length != Length::Close {
            self.left -= length as u64;
        }
        if self.length == Length::Chunked && self.left == 0 {
            self.chunk_line()?;
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(u16, String)> {
        let mut reader = text.as_bytes();
        let head = read_head(&mut reader)?;
        let mut body = String::new();
        Body::new(&mut reader, head.length).read_to_string(&mut body)?;
        Ok((head.status, body))
    }

    #[test]
    fn the_three_ways_to_end_a_body_are_understood() {
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, "abc0123456789".into()));
        assert_eq!(parse("HTTP/1.1 303 See\r\ncontent-length: 2\r\n\r\nabc").unwrap(), (303, "ab".into()));
        assert_eq!(parse("HTTP/1.0 404 No\r\n\r\nabc").unwrap(), (404, "abc".into()));
    }

    #[test]
    fn damaged_answers_are_errors() {
        for text in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
