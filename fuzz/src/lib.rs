//! Fuzz targets: everything of this project that takes a stranger's bytes.
//!
//! A target is a function of bytes that must neither panic nor hang nor ask for more memory than [`memory::LIMIT`]; many also
//! compare what they get with a second way to it. The table is [`TARGETS`]; `cargo appliance fuzz` builds and runs them.
//!
//! Must not: write to the machine but in memory ([`scratch`] sees to it), or depend on the time, or on the input before.

mod bali;
mod boot;
mod cradle;
mod docker_api;
mod images;
mod input;
pub mod memory;
mod scratch;
mod services;
mod tar;
mod vdocker;
mod zone;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The variable that names the target.
pub const VARIABLE: &str = "KRAUD_FUZZ_TARGET";

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// The longest input worth a try, bytes.
    pub max_len: usize,
    /// New inputs of a short run: about as long for each target; none until a longer run has been clean.
    pub short: u64,
    run: fn(&[u8]),
}

const fn target(name: &'static str, max_len: usize, short: u64, run: fn(&[u8])) -> Target {
    Target { name, max_len, short, run }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("cradle-chain", 512, 10_000, cradle::chain::run),
    target("cradle-blk", 1024, 4_000, cradle::devices::blk),
    target("cradle-net", 1024, 4_000, cradle::devices::net),
    target("cradle-rng", 512, 4_000, cradle::devices::rng),
    target("cradle-balloon", 512, 4_000, cradle::devices::balloon),
    target("cradle-vsock", 2048, 4_000, cradle::vsock::run),
    target("cradle-bus", 1024, 4_000, cradle::bus::run),
    target("cradle-bundle", 2048, 20_000, cradle::files::bundle),
    target("cradle-template", 4096, 10_000, cradle::files::template),
    target("vdocker-http", 2048, 10_000, vdocker::http),
    target("vdocker-texts", 512, 4_000, vdocker::texts),
    target("vdocker-unpack", 1024, 3_000, vdocker::unpacking),
    target("bali-image", 2048, 4_000, bali::image),
    target("bali-dockerfile", 1024, 20_000, bali::dockerfile),
    target("boot-gpt", 512, 3_000, boot::gpt),
    target("boot-luks", 2048, 5_000, boot::luks),
    target("boot-texts", 1024, 20_000, boot::texts),
    target("docker-create", 4096, 0, docker_api::create),
    target("docker-query", 1024, 0, docker_api::query),
    target("docker-words", 512, 0, docker_api::words),
    target("images-manifest", 2048, 20_000, images::manifest),
    target("images-words", 512, 0, images::words_of_clients),
    target("images-dockerfile", 1024, 0, images::dockerfile),
    target("images-archive", 2048, 5_000, images::archive),
    target("images-layer", 2048, 5_000, images::layers),
    target("macro-transactions", 2048, 20_000, services::transactions),
    target("vpc-names", 512, 20_000, services::names),
    target("zone-documents", 2048, 20_000, zone::documents),
    target("zone-log", 4096, 5_000, zone::log),
    target("zone-orders", 512, 20_000, zone::orders),
];

static CHOSEN: OnceLock<Target> = OnceLock::new();

/// Takes the target that the environment names; without one, prints the table and ends the process.
pub fn choose() {
    let named = std::env::var(VARIABLE).ok();
    let found = named.as_deref().and_then(|name| TARGETS.iter().find(|target| target.name == name));
    if let Some(target) = found {
        let _ = CHOSEN.set(*target);
        if let Err(error) = scratch::confine(&writable()) {
            let _ = writeln!(std::io::stderr(), "this process is not confined: {error}");
        }
        return;
    }
    let mut out = std::io::stdout().lock();
    for target in TARGETS {
        let _ = writeln!(out, "{} {} {}", target.name, target.max_len, target.short);
    }
    std::process::exit(i32::from(named.is_some()));
}

/// Where libFuzzer is told to write.
fn writable() -> Vec<PathBuf> {
    let folder = |word: String| match word.strip_prefix("-artifact_prefix=") {
        Some(prefix) => Path::new(prefix).parent().map(Path::to_owned),
        None => (!word.starts_with('-')).then(|| word.into()),
    };
    std::env::args().skip(1).filter_map(folder).filter(|path| path.is_dir()).collect()
}

/// Gives an input to the chosen target.
pub fn run(data: &[u8]) {
    if let Some(target) = CHOSEN.get() {
        memory::begin();
        (target.run)(data);
        memory::end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_corpus_and_every_corpus_its_target() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let mut found: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| std::fs::read_dir(entry.path()).unwrap().next().is_some())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        let mut wanted: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        found.sort();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }

    #[test]
    fn every_target_is_in_the_page_about_fuzzing() {
        let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fuzzing.md")).unwrap();
        for target in TARGETS {
            assert!(page.contains(&format!("| `{}` |", target.name)), "{} is missing in docs/fuzzing.md", target.name);
        }
    }

    #[test]
    fn every_input_of_a_corpus_still_passes() {
        for target in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
            for entry in std::fs::read_dir(folder).unwrap() {
                (target.run)(&std::fs::read(entry.unwrap().path()).unwrap());
            }
        }
    }
}
