//! Test: every endpoint of the API has a handler, and every answer is one of HTTP with Docker's headers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Endpoints that are newer than every version that this engine speaks.
const ABSENT: [&str; 1] = ["/images/x/attestations"];

fn head_of(socket: &Path, method: &str, path: &str) -> String {
    let mut connection = UnixStream::connect(socket).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    )
    .unwrap();
    let mut head = Vec::new();
    let mut byte = [0u8; 1];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

#[test]
fn every_endpoint_has_a_handler() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(async { daemon::listen(&socket) }).unwrap();
    let router = crate::router(Arc::new(crate::tests::app()));
    runtime.spawn(async move { axum::serve(listener, router).await });
    let list = include_str!("../../../qemu-tests/compare/endpoints.list");
    for line in list.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let path = path.replace("{id}", "x").replace("{name}", "x").replace("{checkpoint}", "x");
        let head = head_of(&socket, method, &path);
        assert!(head.starts_with("http/1.1 "), "{line}: {head:?}");
        // An answer for a path that is none tells less.
        assert_eq!(head.contains("\r\nostype: linux\r\n"), !ABSENT.contains(&path.as_str()), "{line}: {head}");
    }
}
