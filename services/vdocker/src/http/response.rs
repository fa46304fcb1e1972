//! What a request is answered with.

use crate::platform::Stream;
use serde::Serialize;
use std::sync::Arc;

/// An answer.
pub enum Answer {
    /// Head and body at once.
    Response(Response),
    /// A body that is made while it is sent, the head included; the connection ends with it.
    Download(Download),
    /// The connection becomes a stream.
    Upgrade(Upgrade),
}

/// Writes an answer, the head included.
pub type Download = Box<dyn FnOnce(&Arc<Stream>)>;

/// Takes a connection over.
pub struct Upgrade {
    /// Bytes go as they are, not in frames.
    pub tty: bool,
    /// Gets the connection and what came behind the request.
    pub work: Box<dyn FnOnce(Arc<Stream>, Vec<u8>)>,
}

/// A small answer.
#[derive(Debug)]
pub struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

impl Response {
    /// Only a status.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// A status and JSON.
    pub fn json(status: u16, body: &impl Serialize) -> Self {
        let mut body = serde_json::to_vec(body).unwrap_or_default();
        body.push(b'\n');
        Self { status, headers: vec![("Content-Type", "application/json".into())], body }
    }

    /// An error as Docker words it.
    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &serde_json::json!({ "message": message }))
    }

    /// With one more header line.
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Head and body as sent.
    pub fn to_bytes(&self, head_only: bool, keep_alive: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        // 204 has no body, hence no length (RFC 9110, 8.6).
        if self.status != 204 {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        if !keep_alive {
            head += "Connection: close\r\n";
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Internal Server Error",
    }
}

/// The head before a stream.
pub fn upgrade_head(asked: bool, tty: bool) -> Vec<u8> {
    let kind = if tty { "raw-stream" } else { "multiplexed-stream" };
    let first = if asked { "101 UPGRADED" } else { "200 OK" };
    let last = if asked { "Connection: Upgrade\r\nUpgrade: tcp\r\n" } else { "" };
    format!("HTTP/1.1 {first}\r\nContent-Type: application/vnd.docker.{kind}\r\n{last}\r\n").into_bytes()
}
