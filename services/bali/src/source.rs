//! Where an image comes from: a name, a path, an `http:` URL. Whatever it is, it is copied once into a sealed memory
//! file, and never read from its untrusted place again.

use crate::error::{Error, Result};
use crate::format::FILE_MAX_BYTES;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HTTP_TIMEOUT: Duration = Duration::from_secs(30);
const HTTP_HEADER_MAX_BYTES: u64 = 64 << 10;

/// A place to get an image from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    Path(PathBuf),
    /// `http://HOST[:PORT]/PATH`.
    Http {
        /// Host and port, to connect to.
        authority: String,
        /// What to ask for.
        path: String,
    },
}

impl Source {
    /// Understands what a user typed: an `http:` URL, a path (anything with `/`, or ending in `.tar.gz`), else the name of
    /// an image in `services`.
    ///
    /// # Errors
    /// `Fetch` for `https:` and other schemes, `Invalid` for a name that is none.
    pub fn parse(text: &str, services: &Path) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("http://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
            return Ok(Self::Http { authority, path: format!("/{path}") });
        }
        if text.contains("://") {
            let reason =
                "only http: is known; the signature protects the content, so fetch it over http: or to a file".into();
            return Err(Error::Fetch { name: text.into(), reason });
        }
        if text.contains('/') || text.ends_with(".tar.gz") {
            return Ok(Self::Path(text.into()));
        }
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(Error::Invalid(format!("{text:?} is neither the name of an image nor a path")));
        }
        Ok(Self::Path(services.join(format!("{text}.tar.gz"))))
    }

    /// How messages call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Http { authority, path } => format!("http://{authority}{path}"),
        }
    }

    /// Copies all bytes into a sealed memory file, positioned at its start.
    ///
    /// # Errors
    /// `File` or `Fetch` when the source cannot be read, `TooLarge` past [`FILE_MAX_BYTES`].
    pub fn fetch(&self) -> Result<File> {
        match self {
            Self::Path(path) => {
                let mut file = File::open(path).map_err(Error::file("open", path))?;
                self.seal(&mut file)
            }
            Self::Http { authority, path } => self.seal(&mut self.get(authority, path)?),
        }
    }

    fn seal(&self, reader: &mut dyn Read) -> Result<File> {
        let copy = |e: std::io::Error| Error::Fetch { name: self.name(), reason: e.to_string() };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut memory = File::from(memfd_create("bali-image", flags).map_err(|e| copy(e.into()))?);
        let bytes = std::io::copy(&mut reader.take(FILE_MAX_BYTES + 1), &mut memory).map_err(copy)?;
        if bytes > FILE_MAX_BYTES {
            return Err(Error::TooLarge { name: self.name(), limit: format!("{FILE_MAX_BYTES} bytes") });
        }
        fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|e| copy(e.into()))?;
        memory.rewind().map_err(copy)?;
        Ok(memory)
    }

    fn get(&self, authority: &str, path: &str) -> Result<impl Read> {
        let fail = |reason: String| Error::Fetch { name: self.name(), reason };
        if path.bytes().chain(authority.bytes()).any(|b| b <= b' ') {
            return Err(fail("the URL has blanks in it".into()));
        }
        let stream = TcpStream::connect(authority).map_err(|e| fail(e.to_string()))?;
        stream.set_read_timeout(Some(HTTP_TIMEOUT)).map_err(|e| fail(e.to_string()))?;
        // HTTP/1.0: the body is never chunked, and ends with the connection.
        (&stream)
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\n\r\n").as_bytes())
            .map_err(|e| fail(e.to_string()))?;
        let mut reader = BufReader::new(stream);
        let mut head = (&mut reader).take(HTTP_HEADER_MAX_BYTES);
        let mut line = String::new();
        head.read_line(&mut line).map_err(|e| fail(e.to_string()))?;
        if line.split(' ').nth(1) != Some("200") {
            return Err(fail(format!("the server answered {:?}", line.trim_end())));
        }
        loop {
            line.clear();
            match head.read_line(&mut line) {
                Ok(0) => return Err(fail("the answer ends in its header".into())),
                Ok(_) if line.trim_end().is_empty() => return Ok(reader),
                Ok(_) => {}
                Err(error) => return Err(fail(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn names_paths_and_urls_are_told_apart() {
        let parse = |text: &str| Source::parse(text, Path::new("/s"));
        assert_eq!(parse("vpc").unwrap(), Source::Path("/s/vpc.tar.gz".into()));
        assert_eq!(parse("./vpc").unwrap(), Source::Path("./vpc".into()));
        assert_eq!(parse("vpc.tar.gz").unwrap(), Source::Path("vpc.tar.gz".into()));
        assert_eq!(parse("http://h:1/a/b").unwrap(), Source::Http { authority: "h:1".into(), path: "/a/b".into() });
        assert!(parse("https://h/a").is_err());
        assert!(parse("a b").is_err());
    }

    #[test]
    fn a_fetched_file_no_longer_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        std::fs::write(&path, b"before").unwrap();
        let mut sealed = Source::Path(path.clone()).fetch().unwrap();
        std::fs::write(&path, b"after!").unwrap();
        let mut bytes = Vec::new();
        sealed.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"before");
        assert!(sealed.write_all(b"x").is_err(), "the copy is sealed");
    }

    #[test]
    fn http_gives_the_body_and_refuses_other_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\nx: y\r\n\r\nbody", "HTTP/1.1 404 Not Found\r\n\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while request.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let source = Source::parse(&format!("http://{address}/a.tar.gz"), Path::new("/")).unwrap();
        let mut body = String::new();
        source.fetch().unwrap().read_to_string(&mut body).unwrap();
        assert_eq!(body, "body");
        assert!(source.fetch().unwrap_err().to_string().contains("404"));
        server.join().unwrap();
    }
}
