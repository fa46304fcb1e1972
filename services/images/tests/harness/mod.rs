//! What the tests of the service have in common: a zone of real peers, and archives made on the spot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, dead_code)]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zone::client::Client;
use zone::image::Image;

/// A loaded machine with two cores starts a service in seconds.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Zone {
    pub dir: tempfile::TempDir,
    engine: PathBuf,
    state: Option<Running>,
    images: Option<Running>,
    mkfs: PathBuf,
    args: Vec<String>,
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn program(variable: &str, usual: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    path.exists().then_some(path)
}

pub fn skip<T>(why: &str) -> Option<T> {
    eprintln!("skipped: {why}");
    None
}

impl Zone {
    pub fn start(args: &[&str]) -> Option<Self> {
        let images = Path::new(env!("CARGO_BIN_EXE_images"));
        let engine = images.with_file_name("kraud-macro");
        if !engine.exists() {
            return skip("there is no kraud-macro; build it with `cargo build -p kraud-macro`");
        }
        let Some(mkfs) = program("KRAUD_MKFS_EROFS", "/usr/bin/mkfs.erofs") else {
            return skip("there is no mkfs.erofs 1.8");
        };
        let version = Command::new(&mkfs).arg("--version").output().unwrap();
        if !String::from_utf8_lossy(&version.stdout).contains(" 1.8") {
            return skip("mkfs.erofs is not 1.8");
        }
        let dir = tempfile::tempdir().unwrap();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut zone = Self { dir, engine, state: None, images: None, mkfs, args };
        zone.start_engine();
        zone.restart();
        Some(zone)
    }

    fn start_engine(&mut self) {
        let child = Command::new(&self.engine)
            .args(["--socket", &self.text("macro.sock"), "--state", &self.text("state")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.state = Some(Running(child));
        until("the state engine's start", || StdUnixStream::connect(self.path("macro.sock")).is_ok());
    }

    /// The state engine begins with a new database.
    pub fn forget_everything(&mut self) {
        (self.images, self.state) = (None, None);
        std::fs::remove_dir_all(self.path("state")).unwrap();
        std::fs::remove_file(self.path("macro.sock")).unwrap();
        self.start_engine();
        self.restart();
    }

    pub fn restart(&mut self) {
        self.images = None;
        let child = Command::new(env!("CARGO_BIN_EXE_images"))
            .args([
                "--socket",
                &self.text("images.sock"),
                "--macro",
                &self.text("macro.sock"),
                "--root",
                &self.text("store"),
            ])
            .arg("--mkfs-erofs")
            .arg(&self.mkfs)
            .args(&self.args)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.images = Some(Running(child));
        until("the service's start", || StdUnixStream::connect(self.path("images.sock")).is_ok());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn client(&self) -> Client {
        Client::new(self.path("macro.sock"))
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (u16, Vec<u8>) {
        self.call_as(method, path, body, "").await
    }

    /// Asks with credentials, as `X-Registry-Auth` has them.
    pub async fn call_as(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        credentials: &str,
    ) -> (u16, Vec<u8>) {
        let stream = tokio::net::UnixStream::connect(self.path("images.sock")).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "x");
        let request = request.header("x-registry-auth", credentials).body(Full::new(body.into())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> String {
        String::from_utf8(self.call(Method::POST, path, body).await.1).unwrap()
    }

    /// The place that an answer names.
    pub async fn location(&self, method: Method, path: &str, body: &str) -> String {
        let stream = tokio::net::UnixStream::connect(self.path("images.sock")).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "x");
        let response =
            sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
        response.headers()["location"].to_str().unwrap().to_owned()
    }

    pub async fn post_as(&self, path: &str, credentials: &str) -> String {
        String::from_utf8(self.call_as(Method::POST, path, "", credentials).await.1).unwrap()
    }

    pub async fn images(&self) -> Vec<zone::Resource<Image>> {
        self.client().list::<Image>().await.unwrap().items
    }

    pub fn files(&self) -> Vec<String> {
        let dirs = ["blobs/sha256", "layers", "merged", "images", "tmp"];
        let list = |d: &str| std::fs::read_dir(self.path("store").join(d)).unwrap();
        dirs.iter().flat_map(|d| list(d)).map(|e| e.unwrap().path().display().to_string()).collect()
    }
}

/// One file of a test archive: name, kind, content or target.
pub type Entry<'a> = (&'a str, tar::EntryType, &'a [u8]);

pub const DIR: tar::EntryType = tar::EntryType::Directory;
pub const FILE: tar::EntryType = tar::EntryType::Regular;
pub const HARD: tar::EntryType = tar::EntryType::Link;

pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == DIR { 0o751 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        if *kind == HARD {
            builder.append_link(&mut header, name, std::str::from_utf8(content).unwrap()).unwrap();
        } else {
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A docker-archive of layers.
pub fn image(tag: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|l| format!("sha256:{}", hash(l))).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": ids}})
    .to_string();
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let mut entries: Vec<Entry<'_>> = names.iter().zip(layers).map(|(n, l)| (n.as_str(), FILE, l.as_slice())).collect();
    entries.push(("config.json", FILE, config.as_bytes()));
    entries.push(("manifest.json", FILE, manifest.as_bytes()));
    archive(&entries)
}

pub fn two_layers() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "n".repeat(120), "m".repeat(120));
    let lower = archive(&[
        ("./", DIR, b""),
        ("etc/", DIR, b""),
        ("etc/stays", FILE, b"lower"),
        ("etc/gone", FILE, b"x"),
        ("opaque/", DIR, b""),
        ("opaque/old", FILE, b"old"),
        ("big", FILE, &[7; 100_000]),
        ("hard", HARD, b"big"),
        (&long, FILE, b"long"),
    ]);
    let upper = archive(&[
        ("etc/", DIR, b""),
        ("etc/.wh.gone", FILE, b""),
        ("opaque/", DIR, b""),
        ("opaque/.wh..wh..opq", FILE, b""),
        ("opaque/new", FILE, b"new"),
    ]);
    vec![lower, upper, archive(&[])]
}
