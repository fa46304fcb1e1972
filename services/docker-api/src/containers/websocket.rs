//! `GET /containers/{id}/attach/ws`: attaching by WebSocket (RFC 6455).
//!
//! Output goes out as binary messages, as it was written: the two streams are not told apart, as with Docker Engine. What
//! the client sends, text or binary, is the container's input; its close ends the input.
//!
//! Must not: keep more than a piece of a message.

use super::attach::{self, Attached};
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::Params;
use crate::streams::Framing;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Why a connection is closed: it has done what it was for.
const ALL_IS_WELL: u16 = 1000;
/// The longest content of a control frame.
const MAX_CONTROL: u64 = 125;
/// How much of a message is passed on at a time.
const PIECE: usize = 16 * 1024;

/// `GET /containers/{id}/attach/ws`.
///
/// # Errors
/// 400 when the request is no WebSocket's, 404 when there is no such container.
pub async fn attach(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    params: Params,
    mut request: Request,
) -> Result<Response> {
    let container = app.store.world().container(&id)?;
    let accept = accept_key(request.headers())?;
    let Attached { wanted, baseline, follower, keys } = attach::prepare(&app, &container, &params).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(raw) = upgrade.await else { return };
        let (reader, writer) = tokio::io::split(TokioIo::new(raw));
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(attach::output(follower, baseline, wanted, Framing::Raw, sender));
        let (control, answers) = mpsc::channel(8);
        // Weak: that nobody receives any more has to be seen.
        let detach = control.downgrade();
        let (to_input, from_client) = tokio::io::duplex(PIECE);
        let input = tokio::spawn(async move {
            if wanted.stdin && wanted.stream {
                let detached = attach::input(&app, &container, baseline, &keys, from_client).await;
                if let Some(control) = detach.upgrade().filter(|_| detached) {
                    let _ = control.send((CLOSE, ALL_IS_WELL.to_be_bytes().to_vec())).await;
                }
            } else {
                let _ = tokio::io::copy(&mut { from_client }, &mut tokio::io::sink()).await;
            }
        });
        let receiving = tokio::spawn(async move {
            if let Err(error) = receive(reader, to_input, control).await {
                tracing::debug!(%error, "a websocket broke off");
            }
        });
        let _ = send(writer, receiver, answers).await;
        receiving.abort();
        input.abort();
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "websocket")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers, [(header::SEC_WEBSOCKET_ACCEPT, accept)]).into_response())
}

/// What proves to the client that it speaks with a WebSocket's server.
fn accept_key(headers: &HeaderMap) -> Result<String> {
    let is = |name: header::HeaderName, value: &[u8]| {
        headers.get(name).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(value))
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(axum::http::HeaderValue::as_bytes);
    match key {
        Some(key) if is(header::UPGRADE, b"websocket") && is(header::SEC_WEBSOCKET_VERSION, b"13") => {
            Ok(STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize()))
        }
        _ => Err(Failure::invalid("not a websocket's request: it needs Upgrade: websocket, version 13 and a key")),
    }
}

fn frame(opcode: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match content.len() {
        length @ ..126 => frame.extend([u8::try_from(length).unwrap_or_default()]),
        length => match u16::try_from(length) {
            Ok(length) => {
                frame.push(126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        },
    }
    frame.extend_from_slice(content);
    frame
}

/// Sends output until it ends, and what the other direction answers.
async fn send(
    mut writer: impl AsyncWrite + Unpin,
    mut output: mpsc::Receiver<Result<Bytes, io::Error>>,
    mut answers: mpsc::Receiver<(u8, Vec<u8>)>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            biased;
            answer = answers.recv() => match answer {
                Some((opcode, content)) => {
                    writer.write_all(&frame(opcode, &content)).await?;
                    if opcode == CLOSE {
                        return writer.shutdown().await;
                    }
                }
                // The client is gone without a close.
                None => return writer.shutdown().await,
            },
            piece = output.recv() => match piece {
                Some(Ok(bytes)) => writer.write_all(&frame(BINARY, &bytes)).await?,
                Some(Err(_)) | None => {
                    writer.write_all(&frame(CLOSE, &ALL_IS_WELL.to_be_bytes())).await?;
                    return writer.shutdown().await;
                }
            },
        }
        writer.flush().await?;
    }
}

/// Reads the client's frames: messages are input, pings are answered.
async fn receive(
    mut reader: impl AsyncRead + Unpin,
    mut input: impl AsyncWrite + Unpin,
    answers: mpsc::Sender<(u8, Vec<u8>)>,
) -> io::Result<()> {
    loop {
        let [first, second] = {
            let mut head = [0; 2];
            reader.read_exact(&mut head).await?;
            head
        };
        let opcode = first & 0x0f;
        if second & 0x80 == 0 || first & 0x70 != 0 {
            return Err(io::Error::other("a frame without a mask, or with reserved bits"));
        }
        let length = match second & 0x7f {
            126 => u64::from(reader.read_u16().await?),
            127 => reader.read_u64().await?,
            length => u64::from(length),
        };
        let mut mask = [0; 4];
        reader.read_exact(&mut mask).await?;
        if opcode < CLOSE {
            pass(&mut reader, &mut input, length, mask).await?;
            continue;
        }
        if length > MAX_CONTROL {
            return Err(io::Error::other("a control frame is too long"));
        }
        let mut content = Vec::new();
        pass(&mut reader, &mut content, length, mask).await?;
        let answer = match opcode {
            CLOSE => (CLOSE, content),
            PING => (PONG, content),
            _ => continue,
        };
        if answers.send(answer).await.is_err() || opcode == CLOSE {
            return input.shutdown().await;
        }
    }
}

/// Passes the content of a frame on, in pieces; nobody taking it is no error: the frames behind it count still.
async fn pass(
    reader: &mut (impl AsyncRead + Unpin),
    sink: &mut (impl AsyncWrite + Unpin),
    length: u64,
    mask: [u8; 4],
) -> io::Result<()> {
    let (mut left, mut at, mut buffer) = (length, 0usize, vec![0; PIECE]);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let got = reader.read(&mut buffer[..want]).await?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for byte in &mut buffer[..got] {
            *byte ^= mask[at % 4];
            at += 1;
        }
        let _ = sink.write_all(&buffer[..got]).await;
        left -= got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_the_rfc_has_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        assert_eq!(accept_key(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        headers.remove("upgrade");
        assert_eq!(accept_key(&headers).unwrap_err().status, 400);
    }

    #[test]
    fn lengths_take_one_three_or_nine_bytes() {
        assert_eq!(frame(BINARY, b"hi"), b"\x82\x02hi");
        assert_eq!(frame(BINARY, &[0; 126])[..4], [0x82, 126, 0, 126]);
        assert_eq!(frame(BINARY, &vec![0; 65536])[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    async fn received(bytes: &[u8]) -> (io::Result<()>, Vec<u8>, Vec<(u8, Vec<u8>)>) {
        let (answers, mut from) = mpsc::channel(8);
        let mut input = Vec::new();
        let result = receive(bytes, &mut input, answers).await;
        let mut all = Vec::new();
        while let Ok(answer) = from.try_recv() {
            all.push(answer);
        }
        (result, input, all)
    }

    #[tokio::test]
    async fn messages_are_unmasked_pings_answered_and_a_close_ends_it() {
        let bytes = [
            &b"\x02\x82\x01\x02\x03\x04"[..],
            &[b'h' ^ 1, b'i' ^ 2],
            b"\x89\x81\0\0\0\0p",
            b"\x80\x81\0\0\0\0!",
            b"\x88\x80\0\0\0\0",
        ]
        .concat();
        let (result, input, answers) = received(&bytes).await;
        assert!(result.is_ok());
        assert_eq!((input.as_slice(), answers), (&b"hi!"[..], vec![(PONG, b"p".to_vec()), (CLOSE, vec![])]));
    }

    #[tokio::test]
    async fn frames_that_no_client_may_send_end_the_connection() {
        for bytes in [&b"\x82\x01x"[..], b"\xf2\x81\0\0\0\0x", b"\x89\xfe\x01\0\0\0\0\0", b"\x82\x85\0\0\0\0x"] {
            assert!(received(bytes).await.0.is_err(), "{bytes:?}");
        }
    }
}
