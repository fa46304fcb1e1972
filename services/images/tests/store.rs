//! The whole service against its real peers: the state engine, mkfs.erofs 1.8, Debian's docker-registry on loopback.
//!
//! Peers that this machine lacks are named on stderr, and the test is skipped. `KRAUD_MKFS_EROFS` and
//! `KRAUD_DOCKER_REGISTRY` say where programs are that are not in their usual places.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zone::client::Client;
use zone::image::Image;

/// A loaded machine with two cores starts a service in seconds.
const DEADLINE: Duration = Duration::from_secs(30);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Zone {
    dir: tempfile::TempDir,
    _macro: Running,
    images: Option<Running>,
    mkfs: PathBuf,
    args: Vec<String>,
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn program(variable: &str, usual: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    path.exists().then_some(path)
}

fn skip<T>(why: &str) -> Option<T> {
    eprintln!("skipped: {why}");
    None
}

impl Zone {
    fn start(args: &[&str]) -> Option<Self> {
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
        let child = Command::new(engine)
            .arg("--socket")
            .arg(dir.path().join("macro.sock"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut zone = Self { dir, _macro: Running(child), images: None, mkfs, args };
        until("the state engine's start", || StdUnixStream::connect(zone.path("macro.sock")).is_ok());
        zone.restart();
        Some(zone)
    }

    fn restart(&mut self) {
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn client(&self) -> Client {
        Client::new(self.path("macro.sock"))
    }

    async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (u16, Vec<u8>) {
        let stream = tokio::net::UnixStream::connect(self.path("images.sock")).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::builder().method(method).uri(path).header("host", "x").body(Full::new(body.into())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn post(&self, path: &str, body: impl Into<Bytes>) -> String {
        String::from_utf8(self.call(Method::POST, path, body).await.1).unwrap()
    }

    async fn images(&self) -> Vec<zone::Resource<Image>> {
        self.client().list::<Image>().await.unwrap().items
    }

    fn files(&self) -> Vec<String> {
        let dirs = ["blobs/sha256", "layers", "merged", "images", "tmp"];
        let list = |d: &str| std::fs::read_dir(self.path("store").join(d)).unwrap();
        dirs.iter().flat_map(|d| list(d)).map(|e| e.unwrap().path().display().to_string()).collect()
    }
}

/// One file of a test archive: name, kind, content or target.
type Entry<'a> = (&'a str, tar::EntryType, &'a [u8]);

const DIR: tar::EntryType = tar::EntryType::Directory;
const FILE: tar::EntryType = tar::EntryType::Regular;
const HARD: tar::EntryType = tar::EntryType::Link;

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
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

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A docker-archive of layers.
fn image(tag: &str, layers: &[Vec<u8>]) -> Vec<u8> {
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

fn two_layers() -> Vec<Vec<u8>> {
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

/// Puts the pieces of a disk into one file and mounts it; none without the right to.
fn mounted(disk: &[zone::bundle::Extent], dir: &Path) -> Option<PathBuf> {
    let (flat, point) = (dir.join("flat"), dir.join("mnt"));
    let mut out = File::create(&flat).unwrap();
    for extent in disk {
        let copied = std::io::copy(&mut File::open(&extent.path).unwrap(), &mut out).unwrap();
        assert_eq!((copied, copied % 4096), (extent.len, 0));
    }
    std::fs::create_dir_all(&point).unwrap();
    let status = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&flat).arg(&point).status().unwrap();
    if status.success() { Some(point) } else { skip("cannot mount EROFS here: needs root and loop devices") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_image_is_one_flat_disk_with_whiteouts_applied() {
    let Some(zone) = Zone::start(&[]) else { return };
    let archive = image("busybox", &two_layers());
    let packed = zstd::encode_all(&archive[..], 1).unwrap();
    for body in [archive, packed] {
        assert_eq!(zone.post("/load", body).await.trim(), r#"{"stream":"Loaded image: busybox:latest\n"}"#);
    }
    let images = zone.images().await;
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].spec.tags, ["docker.io/library/busybox:latest"]);
    let status = &images[0].status;
    assert!(status.ready && status.layers.len() == 3 && status.disk.len() == 4);
    let Some(point) = mounted(&status.disk, zone.dir.path()) else { return };
    let tree: BTreeMap<String, Vec<u8>> =
        ["etc/stays", "opaque/new", "hard", &format!("{}/{}", "n".repeat(120), "m".repeat(120))]
            .iter()
            .map(|f| ((*f).to_owned(), std::fs::read(point.join(f)).unwrap()))
            .collect();
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let root_mode = point.metadata().unwrap().permissions().mode() & 0o7777;
    let (links, gone) = (point.join("big").metadata().unwrap().nlink(), point.join("etc/gone").exists());
    let opaque = std::fs::read_dir(point.join("opaque")).unwrap().count();
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    assert_eq!(tree["etc/stays"], b"lower");
    assert_eq!(tree["hard"], [7; 100_000]);
    assert_eq!((root_mode, links, gone, opaque), (0o751, 2, false, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_is_an_error_line_and_leaves_nothing() {
    let Some(mut zone) = Zone::start(&[]) else { return };
    let good = image("x", &two_layers());
    let wrong_layer = {
        let mut bytes = good.clone();
        let at = bytes.windows(5).position(|w| w == b"lower").unwrap();
        bytes[at] = b'L';
        bytes
    };
    for body in [good[..good.len() / 2].to_vec(), wrong_layer, b"no archive at all".to_vec(), Vec::new()] {
        let answer: Value = serde_json::from_str(zone.post("/load", body).await.trim()).unwrap();
        assert!(answer["errorDetail"]["message"].is_string(), "{answer}");
    }
    assert!(zone.images().await.is_empty());
    zone.restart();
    until("the removal of what was half made", || zone.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_a_deleted_images_files_go() {
    let Some(zone) = Zone::start(&[]) else { return };
    zone.post("/load", image("x:1", &two_layers())).await;
    zone.post("/load", image("x:1", &[archive(&[("other", FILE, b"1")])])).await;
    let images = zone.images().await;
    let tags: Vec<usize> = images.iter().map(|i| i.spec.tags.len()).collect();
    assert_eq!(tags.iter().sum::<usize>(), 1, "{tags:?}");
    for image in &images {
        assert!(image.status.disk.iter().all(|e| e.path.exists()));
        zone.client().delete::<Image>(&image.meta.name).await.unwrap();
    }
    until("the removal of the images' files", || zone.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_loads_again_as_the_same_image() {
    let Some(zone) = Zone::start(&[]) else { return };
    zone.post("/load", image("x:1", &two_layers())).await;
    let (status, saved) = zone.call(Method::GET, "/save?names=x:1", "").await;
    assert_eq!(status, 200);
    let before = zone.images().await[0].meta.name.clone();
    zone.client().delete::<Image>(&before).await.unwrap();
    until("the removal of the image's files", || zone.files().is_empty());
    assert!(zone.post("/load", saved.clone()).await.contains("Loaded image: x:1"));
    assert_eq!(zone.images().await[0].meta.name, before);
    let (_, again) = zone.call(Method::GET, "/save?names=x:1", "").await;
    assert!(again == saved, "the same image is saved as the same bytes");
    assert_eq!(zone.call(Method::GET, "/save?names=nope", "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_file_system_is_imported_with_changes() {
    let Some(zone) = Zone::start(&[]) else { return };
    let root = archive(&[("bin/", DIR, b""), ("bin/sh", FILE, b"#")]);
    let answer = zone.post("/import?ref=imported&changes=CMD%20%5B%22a%22%5D&changes=ENV%20A%3D1", root).await;
    assert!(answer.contains("sha256:"), "{answer}");
    let image = zone.images().await.remove(0);
    assert_eq!(image.spec.tags, ["docker.io/library/imported:latest"]);
    assert_eq!(image.status.config["config"], serde_json::json!({"Cmd": ["a"], "Env": ["A=1"]}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_to_a_registry_and_pulled_from_it() {
    let Some(registry) = program("KRAUD_DOCKER_REGISTRY", "/usr/bin/docker-registry") else {
        eprintln!("skipped: there is no docker-registry");
        return;
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mirror = format!("http://127.0.0.1:{port}");
    let Some(zone) = Zone::start(&["--registry-mirror", &mirror]) else { return };
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
        zone.text("registry")
    );
    std::fs::write(zone.path("registry.yml"), config).unwrap();
    let child = Command::new(registry)
        .arg("serve")
        .arg(zone.path("registry.yml"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let _registry = Running(child.unwrap());
    until("the registry's start", || TcpStream::connect(("127.0.0.1", port)).is_ok());

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
