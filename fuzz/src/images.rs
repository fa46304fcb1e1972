//! Images: what registries, archives, clients and Dockerfiles say.

use crate::cradle::devices::file;
use crate::input::Input;
use crate::tar;
use ::images::archive::Archive;
use ::images::build::config::{Config as Settings, KNOWN, apply};
use ::images::build::files::{Tree, clean};
use ::images::build::{parse, plan::Plan, words};
use ::images::digest::Digest;
use ::images::layer;
use ::images::manifest::{Config, Index, Manifest, Platform, is_index};
use ::images::oldtar;
use ::images::query::Query;
use ::images::reference::Reference;
use ::images::registry::auth::{Challenge, Credentials};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

/// Bytes of a piece that comes again and again, so that what is deep or long is reached by a short input.
const MOST: usize = 128 << 10;

fn path(held: &File) -> PathBuf {
    format!("/proc/self/fd/{}", held.as_raw_fd()).into()
}

/// Manifests, lists of them, configurations: what is taken keeps to the limits.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        assert!(manifest.config.digest().is_ok() && manifest.layers.iter().all(|layer| layer.digest().is_ok()));
        let again = serde_json::to_vec(&manifest).unwrap_or_default();
        assert!(Manifest::parse(&again).is_ok());
        let _ = is_index(&manifest.media_type, data);
    }
    if let Ok(index) = Index::parse(data) {
        let _ = index.for_platform(&Platform::here()).map(::images::manifest::Descriptor::digest);
    }
    if let Ok((config, layers)) = Config::parse(data) {
        assert_eq!(config.rootfs.diff_ids.len(), layers.len());
    }
}

/// Words of clients and registries: references, platforms, queries, headers. What is taken is written as it would be read.
pub fn words_of_clients(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = Reference::parse(&text) {
        assert_eq!(Reference::parse(&reference.to_string()).ok(), Some(reference.clone()));
        assert_eq!(Reference::parse(&reference.familiar()).ok(), Some(reference.clone()), "{}", reference.familiar());
        let _ = (reference.selector(), reference.familiar_repository());
    }
    if let Ok(platform) = Platform::parse(&text) {
        assert!(platform.takes(&platform), "{platform}");
    }
    if let Ok(digest) = Digest::parse(&text) {
        assert_eq!(digest.to_string(), text);
    }
    let query = Query::parse(Some(&text));
    let _ = (query.all("a"), query.need("b").is_ok());
    let _ = Challenge::parse(&text);
    if let Ok(credentials) = Credentials::from_header(&text) {
        let _ = (credentials.basic(), credentials.username());
    }
}

/// Dockerfiles: lines, stages, variables, and what instructions do to a configuration.
pub fn dockerfile(data: &[u8]) {
    let mut input = Input::new(data);
    let (often, piece) = (input.byte(), input.piece());
    let often = if often & 31 == 31 { MOST / piece.len().max(1) } else { usize::from(often & 3) };
    let (before, after) = (input.piece(), String::from_utf8_lossy(input.rest()));
    let text = [String::from_utf8_lossy(before), String::from_utf8_lossy(&piece.repeat(often)), after].concat();
    let values = words::Values::from([("A".to_owned(), "value".to_owned()), ("EMPTY".to_owned(), String::new())]);
    let _ = words::expand_document(&text, &values);
    let Ok(file) = parse::parse(&text) else { return };
    let mut settings = Settings::new();
    for instruction in &file.instructions {
        assert!(instruction.line > 0 && !instruction.name.is_empty());
        let _ = words::split(&instruction.rest, file.escape);
        if KNOWN.contains(&instruction.name.as_str()) {
            let _ = apply(&mut settings, instruction, &values, file.escape);
        }
    }
    if let Ok(plan) = Plan::new(&file, &BTreeMap::new(), "linux/amd64") {
        let Ok(needed) = plan.needed(None) else { return };
        assert!(needed.iter().all(|stage| *stage < plan.stages.len()));
    }
}

/// Archives of images: what they name lies in them.
pub fn archive(data: &[u8]) {
    let held = file(&tar::archive(&mut Input::new(data)));
    let Ok(archive) = Archive::open(&path(&held)) else { return };
    for candidate in archive.images().into_iter().flatten() {
        for (name, _) in &candidate.layers {
            let _ = archive.reader(name).map(|mut layer| layer.read_to_end(&mut Vec::new()));
        }
    }
}

/// Layers: headers that are checked, rewritten and looked up; what was rewritten needs it no more.
pub fn layers(data: &[u8]) {
    let mut input = Input::new(data);
    let wanted = String::from_utf8_lossy(input.piece()).into_owned();
    let held = file(&tar::archive(&mut input));
    let mut tree = Tree::default();
    if tree.add(&path(&held), true).is_ok() {
        let _ = tree.add(&path(&held), false);
        if let Ok(real) = tree.resolve(&wanted) {
            assert!(!real.split('/').any(|part| part == ".."), "a path climbs: {real}");
            let _ = (tree.is_folder(&real), tree.read(&wanted, 1 << 16), tree.below(&real).count());
        }
    }
    assert!(!clean(&wanted).split('/').any(|part| part == ".." || part == "."));
    if let Ok(checked) = layer::check(&path(&held)) {
        let rewritten = oldtar::rewrite(&held, &checked.old);
        assert!(rewritten.is_ok());
        let again = layer::check(&path(&held));
        assert!(again.is_ok_and(|again| again.old.is_empty()), "a layer that was rewritten is old");
    }
}
