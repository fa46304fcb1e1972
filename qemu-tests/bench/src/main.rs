//! `bench`: measures the zone beside a peer, in the same boot, in turns.
//!
//! Runs inside the development image. Prints one JSON object a line: the medians, their ratio, and all samples with what
//! they were taken of. A peer that cannot run makes the benchmark fail: there is no number without its comparison.

mod cradle;
mod docker;
mod guest;
mod initramfs;
mod memory;
mod ours;
mod peer;
mod phases;
mod run;
mod samples;
mod trace;
mod vsock;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

/// Measures the zone beside a peer.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which benchmark: cradle or docker; all when left out.
    name: Option<String>,
    /// One JSON object a line; this is what it always prints.
    #[arg(long)]
    json: bool,
    /// How many runs of each side.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

type Bench = fn(u32) -> Result<()>;

const BENCHES: [(&str, Bench); 2] = [("cradle", cradle::run), ("docker", docker::run)];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let wanted = |name: &str| arguments.name.as_deref().is_none_or(|n| n == name);
    let chosen: Vec<_> = BENCHES.iter().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        bail!("there is no benchmark '{}': there are cradle and docker", arguments.name.unwrap_or_default());
    }
    for (name, run) in chosen {
        run(arguments.runs).with_context(|| format!("benchmark {name}"))?;
    }
    Ok(())
}
