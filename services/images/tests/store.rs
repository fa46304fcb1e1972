//! The whole service against its real peers: the state engine, mkfs.erofs 1.8.
//!
//! Peers that this machine lacks are named on stderr, and the test is skipped. `KRAUD_MKFS_EROFS` says where the program is
//! when it is not in its usual place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod harness;

use harness::{DIR, FILE, Zone, archive, image, skip, two_layers, until};
use hyper::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use zone::image::Image;

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
async fn another_database_does_not_empty_the_store() {
    let Some(mut zone) = Zone::start(&[]) else { return };
    zone.post("/load", image("x:1", &two_layers())).await;
    until("the store's marker", || zone.path("store/.zone").exists());
    let before = zone.files();
    assert!(before.len() > 5, "{before:?}");
    zone.forget_everything();
    assert!(zone.images().await.is_empty());
    // A collection is asked for, and has nothing to do.
    let freed = zone.post("/build/prune?all=1", "").await;
    assert!(freed.contains(r#""SpaceReclaimed":0"#), "{freed}");
    assert_eq!(zone.files(), before);
    zone.post("/load", image("x:1", &two_layers())).await;
    assert!(zone.images().await[0].status.ready, "the same image is there again, of what is there");
}
