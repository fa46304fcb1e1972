//! Pull and push against Debian's docker-registry on loopback, and what becomes of registries that break off or lie.
//!
//! `KRAUD_DOCKER_REGISTRY` says where the program is when it is not in its usual place; tests that need it are skipped without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod harness;

use base64::Engine as _;
use harness::{Running, Zone, hash, image, program, skip, two_layers, until};
use hyper::Method;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use zone::image::Image;

/// A docker-registry with its files in `dir`; `more` is added to its configuration.
fn registry(dir: &Path, more: &str) -> Option<(u16, Running)> {
    let Some(registry) = program("KRAUD_DOCKER_REGISTRY", "/usr/bin/docker-registry") else {
        return skip("there is no docker-registry");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::create_dir_all(dir).unwrap();
    let files = dir.join("files").display().to_string();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {files}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{more}"
    );
    std::fs::write(dir.join("registry.yml"), config).unwrap();
    let child = Command::new(registry)
        .arg("serve")
        .arg(dir.join("registry.yml"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the registry's start", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    Some((port, Running(child)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_to_a_registry_and_pulled_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some((port, _registry)) = registry(dir.path(), "") else { return };
    let mirror = format!("http://127.0.0.1:{port}");
    let Some(zone) = Zone::start(&["--registry-mirror", &mirror]) else { return };

    let name = format!("127.0.0.1:{port}/library/box:1");
    zone.post("/load", image(&name, &two_layers())).await;
    let pushed = zone.post(&format!("/push?image={name}"), "").await;
    assert!(pushed.contains(r#""aux""#) && !pushed.contains("error"), "{pushed}");
    let image = zone.images().await.remove(0);
    zone.client().delete::<Image>(&image.meta.name).await.unwrap();
    until("the removal of the image's files", || zone.files().is_empty());

    // Docker's own name, by way of the mirror.
    let pulled = zone.post("/pull?image=box:1", "").await;
    assert!(pulled.contains("Status: Downloaded newer image for box:1"), "{pulled}");
    let again = zone.images().await.remove(0);
    assert_eq!(again.meta.name, image.meta.name);
    let digest = image.spec.repo_digests[0].split('@').nth(1).unwrap().to_owned();
    assert_eq!(again.spec.repo_digests, [format!("docker.io/library/box@{digest}")]);
    assert!(zone.post("/pull?image=box:1", "").await.contains("Image is up to date"));
    assert_eq!(zone.call(Method::POST, "/pull?image=box:none", "").await.0, 404);
    let by_digest = zone.post(&format!("/pull?image=127.0.0.1:{port}/library/box@{digest}"), "").await;
    assert!(by_digest.contains("up to date"), "{by_digest}");
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_and_wrong_ones_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    // me:secret
    std::fs::write(dir.path().join("users"), "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n")
        .unwrap();
    let users = dir.path().join("users").display().to_string();
    let Some((port, _registry)) =
        registry(dir.path(), &format!("auth: {{htpasswd: {{realm: here, path: {users}}}}}\n"))
    else {
        return;
    };
    let Some(zone) = Zone::start(&[]) else { return };
    let name = format!("127.0.0.1:{port}/box:1");
    zone.post("/load", image(&name, &two_layers())).await;
    let as_whom = |user: &str, password: &str| {
        let json = format!(r#"{{"username":"{user}","password":"{password}","serveraddress":"127.0.0.1:{port}"}}"#);
        base64::engine::general_purpose::URL_SAFE.encode(json)
    };
    let push = format!("/push?image={name}");
    for header in [String::new(), as_whom("me", "wrong")] {
        let refused = zone.post_as(&push, &header).await;
        assert!(refused.contains("denied") || refused.contains("authentication required"), "{refused}");
    }
    let pushed = zone.post_as(&push, &as_whom("me", "secret")).await;
    assert!(pushed.contains(r#""aux""#), "{pushed}");
    let refused = zone.post_as(&format!("/pull?image={name}"), "").await;
    assert!(refused.contains("may require 'docker login'"), "{refused}");
    let pulled = zone.post_as(&format!("/pull?image={name}"), &as_whom("me", "secret")).await;
    assert!(pulled.contains("Image is up to date"), "{pulled}");
    let login = format!("/login?registry=127.0.0.1:{port}");
    assert_eq!(zone.call_as(Method::POST, &login, "", &as_whom("me", "secret")).await.0, 204);
    let (status, words) = zone.call_as(Method::POST, &login, "", &as_whom("me", "wrong")).await;
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(status == 403 && words.contains("failed with status: 401 Unauthorized"), "{status} {words}");
}

/// What the stand-in registry does with the one layer of its image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// Sends half of it, then breaks off, once; goes on where it is asked to.
    CutOnce,
    /// As above, but knows no ranges.
    CutOnceWithoutRanges,
    /// Sends other bytes of the same length.
    Damaged,
}

/// A registry that misbehaves, with one image called `box:1` in an index; returns its port and the requests that came.
fn bad_registry(behaviour: Layer) -> (u16, Arc<Mutex<Vec<String>>>) {
    let layer = two_layers().remove(0);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        hash(&layer)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{}","size":{}}}]}}"#,
        hash(config.as_bytes()),
        config.len(),
        hash(&layer),
        layer.len()
    );
    let entry = |architecture: &str, digest: &str| {
        format!(
            r#"{{"mediaType":"{MANIFEST}","digest":"sha256:{digest}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
            manifest.len()
        )
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{},{}]}}"#,
        entry("arm64", &"0".repeat(64)),
        entry("amd64", &hash(manifest.as_bytes()))
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    std::thread::spawn(move || {
        let mut cut = false;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let range = lines
                .take_while(|l| !l.is_empty())
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let from: usize = range.and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
            requests.lock().unwrap().push(format!("{first} from {from}"));
            let mut answer = |status: &str, kind: &str, length: usize, body: &[u8]| {
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                // The client may have seen enough.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            };
            let has = |digest: String| first.contains(&digest);
            if first.contains("/manifests/1 ") {
                answer("200 OK", INDEX, index.len(), index.as_bytes());
            } else if has(hash(manifest.as_bytes())) {
                answer("200 OK", MANIFEST, manifest.len(), manifest.as_bytes());
            } else if has(hash(config.as_bytes())) {
                answer("200 OK", "application/octet-stream", config.len(), config.as_bytes());
            } else if has(hash(&layer)) {
                let kind = "application/octet-stream";
                match behaviour {
                    Layer::Damaged => answer("200 OK", kind, layer.len(), &vec![b'x'; layer.len()]),
                    _ if !cut => {
                        cut = true;
                        answer("200 OK", kind, layer.len(), &layer[..layer.len() / 2]);
                    }
                    Layer::CutOnce if from > 0 => {
                        answer("206 Partial Content", kind, layer.len() - from, &layer[from..]);
                    }
                    _ => answer("200 OK", kind, layer.len(), &layer),
                }
            } else {
                answer("404 Not Found", "text/plain", 0, b"");
            }
        }
    });
    (port, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_was_cut_goes_on_where_it_stopped() {
    for behaviour in [Layer::CutOnce, Layer::CutOnceWithoutRanges] {
        let Some(zone) = Zone::start(&[]) else { return };
        let (port, seen) = bad_registry(behaviour);
        let pulled = zone.post(&format!("/pull?image=127.0.0.1:{port}/box:1"), "").await;
        assert!(pulled.contains("Status: Downloaded newer image"), "{pulled}");
        let seen = seen.lock().unwrap().clone();
        assert!(seen.iter().any(|r| !r.ends_with("from 0")), "no request went on: {seen:?}");
        assert!(zone.images().await[0].status.ready);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_digest_and_a_platform_that_is_not_there_are_refused_and_leave_nothing() {
    let Some(mut zone) = Zone::start(&[]) else { return };
    let (port, _) = bad_registry(Layer::Damaged);
    let refused = zone.post(&format!("/pull?image=127.0.0.1:{port}/box:1"), "").await;
    assert!(refused.contains("filesystem layer verification failed for digest"), "{refused}");
    let other =
        zone.call(Method::POST, &format!("/pull?image=127.0.0.1:{port}/box:1&platform=linux/riscv64"), "").await;
    assert_eq!(other.0, 404);
    assert!(String::from_utf8_lossy(&other.1).contains("no matching manifest for linux/riscv64"));
    assert!(zone.images().await.is_empty());
    zone.restart();
    until("the removal of what was half made", || zone.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_has_is_told_without_pulling_and_an_insecure_one_is_named_in_the_settings() {
    let Some(zone) = Zone::start(&[]) else { return };
    let (port, _) = bad_registry(Layer::Damaged);
    let (status, body) = zone.call(Method::GET, &format!("/distribution?image=127.0.0.1:{port}/box:1"), "").await;
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &told["Descriptor"]["mediaType"]), (200, &serde_json::json!(INDEX)));
    assert_eq!(told["Platforms"][1], serde_json::json!({"os": "linux", "architecture": "amd64"}));
    std::fs::write(zone.path("store/registries.json"), r#"{"insecure": true}"#).unwrap();
    let refused = zone.call(Method::POST, &format!("/pull?image=127.0.0.1:{port}/box:1"), "").await;
    assert!(String::from_utf8_lossy(&refused.1).contains("registries.json is not valid"), "{refused:?}");
}
