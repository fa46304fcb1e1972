//! How much of everything is measured. The defaults are what the metrics' names say; an emulated machine may want less,
//! and each line says in its payload what was taken.

use clap::Args;

/// Counts and sizes.
#[derive(Args, Clone, Copy, Debug)]
pub struct Sizes {
    /// How many runs of each side.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// How often each side does what takes long.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// MiB that `docker cp` copies.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub cp_mib: u32,
    /// MiB that go through the agent alone: its archives, vsock, network and disk.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub stream_mib: u32,
    /// Lines of a log.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub lines: u32,
    /// Containers that are listed.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub containers: u32,
    /// Containers that are created one after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub creates: u32,
    /// Containers that are run at once.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub at_once: u32,
}
