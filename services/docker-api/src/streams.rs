//! How output goes over the wire: raw for a terminal, else in frames (Docker Engine API, "Stream format"); and taking a
//! connection over from HTTP.
//!
//! ```text
//! +--------+---+---+---+-----------------+---------
//! | stream | 0 | 0 | 0 | length (32, BE) | bytes…
//! +--------+---+---+---+-----------------+---------
//! ```

use crate::version::ApiVersion;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use zone::log::Stream;

/// How output is put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As it is: a terminal.
    Raw,
    /// In frames.
    Frames,
}

impl Framing {
    /// The framing for a container with or without a terminal.
    #[must_use]
    pub fn of(tty: bool) -> Self {
        if tty { Self::Raw } else { Self::Frames }
    }

    /// A piece of output as it goes over the wire.
    #[must_use]
    pub fn encode(self, stream: Stream, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        self.put(&mut out, stream, &[bytes]);
        out.freeze()
    }

    /// Adds a piece of output, which is in parts, as it goes over the wire.
    pub fn put(self, out: &mut BytesMut, stream: Stream, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        out.reserve(8 + length);
        if self == Self::Frames {
            out.put_u8(if stream == Stream::Stdout { 1 } else { 2 });
            out.put_bytes(0, 3);
            // Pieces are bounded by the log's records, far below 4 GiB.
            out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        }
        parts.iter().for_each(|part| out.put_slice(part));
    }

    /// The media type; clients before 1.42 know only one.
    #[must_use]
    pub fn content_type(self, version: ApiVersion) -> &'static str {
        match self {
            Self::Frames if version >= ApiVersion(42) => "application/vnd.docker.multiplexed-stream",
            Self::Frames | Self::Raw => "application/vnd.docker.raw-stream",
        }
    }
}

/// Whether the client asked to take the connection over.
#[must_use]
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"tcp"))
}

/// The connection once it is taken over, if the client asked for it.
#[must_use]
pub fn upgrade_of(request: &mut Request) -> Option<OnUpgrade> {
    wants_upgrade(request.headers()).then(|| hyper::upgrade::on(request))
}

/// The answer that hands the connection over.
#[must_use]
pub fn switching(content_type: &str) -> Response {
    let headers = [(header::CONTENT_TYPE, content_type), (header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// An answer whose body is a stream of JSON lines or frames.
#[must_use]
pub fn streaming(content_type: &str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_its_stream_and_length() {
        assert_eq!(&Framing::Frames.encode(Stream::Stderr, b"hi")[..], b"\x02\0\0\0\0\0\0\x02hi");
        assert_eq!(&Framing::Raw.encode(Stream::Stdout, b"hi")[..], b"hi");
    }
}
