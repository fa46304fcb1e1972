//! `bench`: measures the zone beside a peer, in the same boot, in turns.
//!
//! Runs inside the development image. Prints one JSON object a line: the medians, their ratio, and all samples with what
//! they were taken of. A peer that cannot run makes the benchmark fail: there is no number without its comparison.

mod api;
mod cradle;
mod docker;
mod engine;
mod guest;
mod in_guest;
mod initramfs;
mod memory;
mod ours;
mod payload;
mod peer;
mod phases;
mod run;
mod samples;
mod sizes;
mod trace;
mod traffic;
mod vdocker;
mod vsock;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use sizes::Sizes;

/// Measures the zone beside a peer.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which benchmark: cradle, docker or vdocker; all when left out.
    name: Option<String>,
    /// Only these metrics; all when left out.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// One JSON object a line; this is what it always prints.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sizes: Sizes,
}

type Bench = fn(&Sizes, &[String]) -> Result<()>;

const BENCHES: [(&str, Bench); 3] = [("cradle", cradle::run), ("docker", docker::run), ("vdocker", vdocker::run)];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((in_guest::WORD, words)) = words.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return in_guest::run(words);
    }
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.name.as_deref().is_none_or(|n| n == name);
    let chosen: Vec<_> = BENCHES.iter().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!("there is no benchmark '{}': there are {}", arguments.name.unwrap_or_default(), names.join(", "));
    }
    for (name, run) in chosen {
        run(&arguments.sizes, &arguments.only).with_context(|| format!("benchmark {name}"))?;
    }
    Ok(())
}
