//! Builds without a step that runs something: layers from the context, from stages and from documents, and the cache.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod harness;

use harness::{FILE, Zone, archive, image, two_layers};
use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read as _;

const DOCKERFILE: &str = "
ARG BASE=base
FROM ${BASE} AS one
ARG WHO=nobody
WORKDIR /src/deep
COPY --chmod=0600 *.txt ./
COPY dir /bin/
FROM scratch AS never
COPY nothing /
FROM base
COPY --from=one --chown=7:8 /src/deep /app
COPY <<conf /etc/conf
who=${WHO:-unset} '$HOME'
conf
ADD packed.tar /unpacked/
ENV A=1
ENTRYPOINT [\"cat\"]
";

/// The files that the layers of a saved image add up to, with owner, mode and content; whiteouts are not looked at.
async fn files(zone: &Zone, name: &str) -> (Value, BTreeMap<String, (u64, u32, String)>) {
    let (_, saved) = zone.call(Method::GET, &format!("/save?names={name}"), "").await;
    let mut blobs = BTreeMap::new();
    for entry in tar::Archive::new(&saved[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        blobs.insert(entry.path().unwrap().display().to_string(), content);
    }
    let manifest: Value = serde_json::from_slice(&blobs["manifest.json"]).unwrap();
    let config: Value = serde_json::from_slice(&blobs[manifest[0]["Config"].as_str().unwrap()]).unwrap();
    let mut files = BTreeMap::new();
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        for entry in tar::Archive::new(&blobs[layer.as_str().unwrap()][..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            let _ = entry.read_to_string(&mut content);
            let (uid, mode) = (entry.header().uid().unwrap(), entry.header().mode().unwrap());
            files.insert(entry.path().unwrap().display().to_string(), (uid, mode, content));
        }
    }
    (config, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_documents_and_archives_make_layers_and_the_same_build_is_the_same_image() {
    let Some(zone) = Zone::start(&[]) else { return };
    zone.post("/load", image("base", &two_layers())).await;
    let packed = archive(&[("inside/file", FILE, b"packed")]);
    let context = archive(&[
        ("Dockerfile", FILE, DOCKERFILE.as_bytes()),
        ("a.txt", FILE, b"a"),
        ("b.txt", FILE, b"b"),
        ("dir/tool", FILE, b"tool"),
        ("packed.tar", FILE, &packed),
    ]);
    let path = "/build?t=built:1&labels=%7B%22k%22%3A%22a%20%24b%22%7D&buildargs=%7B%22WHO%22%3A%22me%22%2C%22OTHER%22%3A%22x%22%7D";
    let said = zone.post(path, context.clone()).await;
    assert!(said.contains("Successfully tagged built:1") && !said.contains("never"), "{said}");
    assert!(said.contains("OTHER") && said.contains("were not consumed"), "{said}");
    let (config, files) = files(&zone, "built:1").await;
    assert_eq!(config["config"]["Labels"], json!({"k": "a $b"}));
    assert_eq!((&config["config"]["Entrypoint"], &config["config"]["Env"]), (&json!(["cat"]), &json!(["A=1"])));
    assert_eq!(files["app/a.txt"], (7, 0o600, "a".into()));
    assert_eq!(files["etc/conf"], (0, 0o644, "who=unset '$HOME'\n".replace("$HOME", "")));
    assert_eq!(files["unpacked/inside/file"].2, "packed");
    assert_eq!(files["etc/"].1 & 0o7777, 0o751, "a folder of the base keeps what it is");
    assert!(!files.contains_key("app/tool") && !files.contains_key("src/deep/a.txt"));
    let id = |images: Vec<zone::Resource<zone::image::Image>>| {
        let tagged = images.into_iter().find(|i| i.spec.tags.contains(&"docker.io/library/built:1".to_owned()));
        tagged.unwrap().meta.name
    };
    let first = id(zone.images().await);
    let again = zone.post(path, context).await;
    assert!(again.contains("Using cache"), "{again}");
    assert_eq!(id(zone.images().await), first);
    // Another content is another image; the steps before stay.
    let changed = archive(&[("Dockerfile", FILE, b"FROM built:1\nCOPY Dockerfile /\n")]);
    assert!(zone.post("/build?t=built:1", changed).await.contains("Successfully tagged"));
    assert_ne!(id(zone.images().await), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_is_said_with_its_line() {
    let Some(zone) = Zone::start(&[]) else { return };
    for (file, expected) in [
        ("FROM scratch\nCOPY nothing /\n", "nothing"),
        ("FROM scratch\nNOSUCH x\n", "unknown instruction: NOSUCH"),
        ("RUN x\n", "FROM must come first"),
        ("FROM scratch\nCOPY ../../../etc/passwd /\n", "etc/passwd"),
        ("FROM scratch\nENV A\n", "line 2"),
        ("FROM scratch AS a\nFROM a\nCOPY --from=a /none /\n", "none"),
    ] {
        let said = zone.post("/build", archive(&[("Dockerfile", FILE, file.as_bytes())])).await;
        assert!(said.contains("error") && said.contains(expected), "{file}: {said}");
    }
    let said = zone.post("/build?dockerfile=other", archive(&[("Dockerfile", FILE, b"FROM scratch\n")])).await;
    assert!(said.contains("Cannot locate specified Dockerfile: other"), "{said}");
    let (status, said) = zone.call(Method::POST, "/build?version=2", "").await;
    assert!(status == 400 && String::from_utf8_lossy(&said).contains("DOCKER_BUILDKIT=0"));
    assert!(zone.post("/build", "no archive").await.contains("cannot read the build context"));
}
