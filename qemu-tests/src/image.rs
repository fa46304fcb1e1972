//! Images made on the spot: no registry is needed.

use sha2::{Digest as _, Sha256};
use std::path::PathBuf;

/// Applets that get a link in `/bin`.
const APPLETS: [&str; 46] = [
    "sh",
    "echo",
    "cat",
    "ls",
    "true",
    "false",
    "sleep",
    "httpd",
    "wget",
    "ping",
    "nslookup",
    "ip",
    "id",
    "ps",
    "top",
    "uname",
    "hostname",
    "mount",
    "df",
    "free",
    "env",
    "printf",
    "seq",
    "dd",
    "md5sum",
    "sha256sum",
    "wc",
    "head",
    "tail",
    "grep",
    "sed",
    "awk",
    "touch",
    "mkdir",
    "rm",
    "cp",
    "mv",
    "ln",
    "chmod",
    "chown",
    "stat",
    "kill",
    "nc",
    "sync",
    "date",
    "tty",
];

/// A docker archive of a busybox image called `reference`.
///
/// # Panics
/// When there is no static busybox.
#[must_use]
pub fn busybox(reference: &str) -> Vec<u8> {
    archive(reference, &busybox_config(), &[layer(&[])])
}

/// The same with files of its own and labels, so that it shares nothing with any other image.
///
/// # Panics
/// When there is no static busybox.
#[must_use]
pub fn busybox_of_its_own(reference: &str, files: &[(&str, &str)], labels: &serde_json::Value) -> Vec<u8> {
    let mut config = busybox_config();
    config["Labels"] = labels.clone();
    archive(reference, &config, &[layer(files)])
}

fn busybox_config() -> serde_json::Value {
    serde_json::json!({"Cmd": ["sh"], "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]})
}

/// A docker archive of an image with these layers and this `config` part of its configuration.
///
/// # Panics
/// When memory cannot be written to.
#[must_use]
pub fn archive(reference: &str, config: &serde_json::Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|l| format!("sha256:{}", hex(l))).collect();
    let configuration = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": config,
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": ids.iter().map(|_| serde_json::json!({"created": "2026-01-01T00:00:00Z", "created_by": "test"})).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let name = format!("{}.json", hex(&configuration));
    let files: Vec<String> = layers.iter().map(|l| format!("{}/layer.tar", hex(l))).collect();
    let manifest = serde_json::json!([{"Config": name, "RepoTags": [reference], "Layers": files}]).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, &name, &configuration, 0o644);
    for (file, layer) in files.iter().zip(layers) {
        append(&mut tar, file, layer, 0o644);
    }
    append(&mut tar, "manifest.json", manifest.as_bytes(), 0o644);
    tar.into_inner().expect("memory can be written to")
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let program = std::fs::read(busybox_program()).expect("busybox can be read");
    let mut tar = tar::Builder::new(Vec::new());
    for (folder, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777), ("var/", 0o755), ("home/", 0o755)]
    {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        tar.append_data(&mut header, folder, std::io::empty()).expect("memory can be written to");
    }
    append(&mut tar, "bin/busybox", &program, 0o755);
    for applet in APPLETS {
        let mut header = header();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("memory can be written to");
    }
    append(
        &mut tar,
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
        0o644,
    );
    append(&mut tar, "etc/group", b"root:x:0:\nnobody:x:65534:\n", 0o644);
    for (path, text) in files {
        append(&mut tar, path, text.as_bytes(), 0o644);
    }
    tar.into_inner().expect("memory can be written to")
}

fn header() -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_767_225_600);
    header
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = header();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).expect("memory can be written to");
}

fn busybox_program() -> PathBuf {
    let named = std::env::var_os("KRAUD_BUSYBOX").map(PathBuf::from);
    let places = named.into_iter().chain(["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from));
    places.into_iter().find(|p| p.is_file()).expect("no static busybox: set KRAUD_BUSYBOX, or install busybox-static")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
