//! The Docker Engine API, and the agent's, over a socket, as little of it as a measurement needs: one connection for a request, HTTP/1.0,
//! so that no answer comes in chunks.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The longest head of an answer.
const MAX_HEAD: u64 = 64 * 1024;

/// An answer whose body is still to be read.
pub struct Answer<S> {
    /// HTTP status.
    pub status: u16,
    /// The body, up to the end of the connection.
    pub body: BufReader<S>,
}

/// Asks the engine that listens at `socket`, with a body of a content type.
///
/// # Errors
/// When nothing answers there.
pub fn ask(socket: &Path, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer<UnixStream>> {
    ask_on(connect(socket)?, method, path, kind, body)
}

/// Asks on a connection, with a body of a content type.
///
/// # Errors
/// When nothing answers there.
pub fn ask_on<S: Read + Write>(mut stream: S, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<Answer<S>> {
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .and_then(|()| stream.write_all(body))
    .with_context(|| format!("{method} {path}"))?;
    answer(stream).with_context(|| format!("{method} {path}"))
}

/// Asks for the connection itself.
///
/// # Errors
/// When it is refused.
pub fn upgrade(socket: &Path, path: &str) -> Result<BufReader<UnixStream>> {
    let mut stream = connect(socket)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    )
    .with_context(|| format!("POST {path}"))?;
    let answer = answer(stream)?;
    ensure!(answer.status == 101, "POST {path}: {}", answer.status);
    Ok(answer.body)
}

fn connect(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))
}

fn answer<S: Read>(stream: S) -> Result<Answer<S>> {
    let mut body = BufReader::with_capacity(256 * 1024, stream);
    let mut line = String::new();
    body.read_line(&mut line).context("read the answer")?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("not HTTP: {line:?}"))?;
    let mut left = MAX_HEAD;
    loop {
        line.clear();
        let got = body.by_ref().take(left).read_line(&mut line).context("read the answer")?;
        if line.trim_end().is_empty() && got > 0 {
            return Ok(Answer { status, body });
        }
        left = left.saturating_sub(got as u64);
        if got == 0 || left == 0 {
            bail!("the answer's head has no end");
        }
    }
}

/// Asks with JSON for JSON; null where there is no body.
///
/// # Errors
/// When the answer is no success.
pub fn json(socket: &Path, method: &str, path: &str, body: &Value) -> Result<Value> {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut answer = ask(socket, method, path, "application/json", text.as_bytes())?;
    let mut content = Vec::new();
    answer.body.read_to_end(&mut content).context("read the answer")?;
    ensure!(
        (200..400).contains(&answer.status),
        "{method} {path}: {} {}",
        answer.status,
        String::from_utf8_lossy(&content).trim_end()
    );
    if content.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&content).context("read the answer") }
}
