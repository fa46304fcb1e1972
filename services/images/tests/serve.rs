//! The zone as a registry: what it holds is served, what is pushed becomes an image, what is wrong is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod harness;

use harness::{Zone, hash, image, two_layers, until};
use hyper::Method;
use serde_json::{Value, json};
use zone::image::Image;

async fn get(zone: &Zone, path: &str) -> (u16, Value) {
    let (status, body) = zone.call(Method::GET, path, "").await;
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_zone_holds_is_served_and_comes_back_as_the_same_image() {
    let Some(zone) = Zone::start(&[]) else { return };
    zone.post("/load", image("team/app:1", &two_layers())).await;
    let id = zone.images().await[0].meta.name.clone();
    assert_eq!(get(&zone, "/v2/").await, (200, json!({})));
    assert_eq!(get(&zone, "/v2/_catalog").await.1, json!({"repositories": ["team/app"]}));
    assert_eq!(get(&zone, "/v2/team/app/tags/list").await.1, json!({"name": "team/app", "tags": ["1"]}));
    assert_eq!(get(&zone, "/v2/team/none/tags/list").await.0, 404);
    let (status, bytes) = zone.call(Method::GET, "/v2/team/app/manifests/1", "").await;
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        (status, format!("sha256:{}", hash(manifest["config"]["digest"].as_str().unwrap().as_bytes())).len()),
        (200, 71)
    );
    assert_eq!(manifest["config"]["digest"], json!(id));
    let by_digest = format!("/v2/team/app/manifests/sha256:{}", hash(&bytes));
    assert_eq!(zone.call(Method::GET, &by_digest, "").await, (200, bytes.clone()));
    let mut blobs = vec![manifest["config"]["digest"].as_str().unwrap().to_owned()];
    blobs.extend(manifest["layers"].as_array().unwrap().iter().map(|l| l["digest"].as_str().unwrap().to_owned()));
    let mut contents = Vec::new();
    for blob in &blobs {
        let (status, content) = zone.call(Method::GET, &format!("/v2/team/app/blobs/{blob}"), "").await;
        assert_eq!((status, &format!("sha256:{}", hash(&content))), (200, blob));
        contents.push(content);
    }

    zone.client().delete::<Image>(&id).await.unwrap();
    until("the removal of the image's files", || zone.files().is_empty());
    // In one piece, and in several.
    for (number, (blob, content)) in blobs.iter().zip(&contents).enumerate() {
        if number == 0 {
            let path = format!("/v2/team/app/blobs/uploads/?digest={blob}");
            assert_eq!(zone.call(Method::POST, &path, content.clone()).await.0, 201);
            continue;
        }
        let place = zone.location(Method::POST, "/v2/team/app/blobs/uploads/", "").await;
        let (first, second) = content.split_at(content.len() / 2);
        assert_eq!(zone.call(Method::PATCH, &place, first.to_vec()).await.0, 202);
        assert_eq!(zone.call(Method::PUT, &format!("{place}?digest={blob}"), second.to_vec()).await.0, 201);
    }
    let (status, said) = zone.call(Method::PUT, "/v2/team/app/manifests/2", bytes.clone()).await;
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&said));
    let images = zone.images().await;
    assert_eq!(
        (images[0].meta.name.as_str(), &images[0].spec.tags),
        (id.as_str(), &vec!["docker.io/team/app:2".to_owned()])
    );
    assert!(images[0].status.ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_manifests_that_are_not_what_they_say_are_refused() {
    let Some(zone) = Zone::start(&[]) else { return };
    let wrong = format!("/v2/a/blobs/uploads/?digest=sha256:{}", "0".repeat(64));
    assert_eq!(zone.call(Method::POST, &wrong, "content").await.0, 400);
    let digest = format!("sha256:{}", "1".repeat(64));
    let manifest =
        json!({"schemaVersion": 2, "config": {"mediaType": "", "digest": digest, "size": 1}, "layers": []}).to_string();
    let (status, said) = zone.call(Method::PUT, "/v2/a/manifests/1", manifest).await;
    assert!(status == 400 && String::from_utf8_lossy(&said).contains("has not been uploaded"), "{status}");
    for path in ["/v2/a/manifests/1", "/v2/a/blobs/x", "/v2/UPPER/tags/list", "/v2/a", "/v2/a/blobs/uploads/none"] {
        let (status, said) = zone.call(Method::GET, path, "").await;
        assert!(status == 400 || status == 404, "{path}: {status}");
        assert!(String::from_utf8_lossy(&said).contains("errors"), "{path}");
    }
    assert!(zone.images().await.is_empty());
}
