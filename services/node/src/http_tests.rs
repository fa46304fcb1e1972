//! The interface over a real socket.

use super::*;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::path::Path;
use tokio::net::UnixStream;

fn serve(dir: &Path) -> String {
    let pairing = Pairing::load(&dir.join("pairing-code")).unwrap();
    let code = pairing.code().to_owned();
    let authority = Authority::load(&dir.join("pki"), zone::time::believable_now_s()).unwrap();
    let listener = UnixListener::bind(dir.join("node.sock")).unwrap();
    let app = router(Arc::new(Door { pairing, authority })).into_make_service_with_connect_info::<Peer>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    code
}

async fn ask(dir: &Path, method: &str, path: &str, body: &str) -> (u16, Bytes) {
    let stream = UnixStream::connect(dir.join("node.sock")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "node")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn the_code_opens_a_bundle_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let code = serve(dir);
    let body = |code: &str| format!(r#"{{"code":"{code}"}}"#);
    assert_eq!(ask(dir, "POST", "/pair", &body(&code.to_lowercase())).await.0, 204);
    assert_eq!(ask(dir, "POST", "/pair", &body("AAAA-AAAA-AAAA")).await.0, 403);
    let (status, answer) = ask(dir, "POST", "/client-bundle", &body("AAAA-AAAA-AAAA")).await;
    let error: ApiError = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, error.kind), (403, ErrorKind::Forbidden));
    let (status, tar) = ask(dir, "POST", "/client-bundle", &body(&code)).await;
    assert_eq!(status, 200);
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (name, text)
    });
    let files: BTreeMap<String, String> = entries.collect();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["ca.pem", "cert.pem", "key.pem"]);
    assert!(files["key.pem"].contains("PRIVATE KEY") && files["cert.pem"].contains("CERTIFICATE"));
    assert_eq!(ask(dir, "POST", "/pair", &"x".repeat(MAX_BODY + 1)).await.0, 413);
}

#[tokio::test]
async fn root_alone_reads_the_code() {
    let dir = tempfile::tempdir().unwrap();
    let code = serve(dir.path());
    let (status, answer) = ask(dir.path(), "GET", "/pairing-code", "").await;
    if rustix::process::geteuid().is_root() {
        assert_eq!((status, &answer[..]), (200, code.as_bytes()));
    } else {
        assert_eq!(status, 403);
    }
}
