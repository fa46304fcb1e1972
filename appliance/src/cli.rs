//! The command line of `cargo appliance`: what can be asked for. Nothing is done here.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Builds the kraudbox image, runs it in a virtual machine, tests it, writes it to a disk.
#[derive(Debug, Parser)]
#[command(name = "cargo appliance", bin_name = "cargo appliance", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build everything, boot the image in QEMU and wait until the zone answers
    Run(Run),
    /// Boot the last zone again with the image that it has: `run --no-build`
    Start(Boot),
    /// Run every test there is, the booted image included
    Test(Test),
    /// Give the parsers and devices inputs that nobody thought of
    Fuzz(Fuzz),
    /// Build the image only; print its path, size and hash
    Build(Build),
    /// Write a release into a folder: the image, the signed update to it, their checksums
    Release(Release),
    /// Build again what an image was made from, compare, and name the first difference
    Verify(Verify),
    /// Write the image to a disk or a file
    Flash(Flash),
    /// Print the running zone as shell variables: eval "$(cargo appliance env)"
    Env,
    /// Run a command as root in the running zone
    Exec(Exec),
    /// Show the journal of the running zone
    Logs(Logs),
    /// Give the running zone the services as they are in the sources now, without a new image
    Swap(Swap),
    /// Write a docker client's certificates into a folder, or take them back
    Client(Client),
    /// Show what runs and where it answers
    Status,
    /// Shut the running zone down
    Stop,
    /// Cut the running zone's power; `start` boots it again with the same disks
    Kill,
    /// Measure the running zone
    Bench(Bench),
    /// Take the versions that the mirror has now into image-recipes/packages.lock
    Lock(Source),
    /// Look after the builder's cache
    #[command(subcommand)]
    Cache(Cache),
    /// Show what the image's size is made of
    Size(Source),
    /// Owns a zone; started by `run`
    #[command(hide = true)]
    Supervise(Supervise),
}

/// Where the image comes from.
#[derive(Args, Clone, Debug)]
pub struct Source {
    /// Debian mirror; default: that of this computer's apt
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Fail unless every package is exactly that of the lock file; taken from the local package cache where it has it
    #[arg(long)]
    pub locked: bool,
    /// An archive of Debian as it was, for what the mirror no longer has; a second one for the security archive
    #[arg(long, value_name = "URL")]
    pub snapshot: Vec<String>,
}

/// `client`.
#[derive(Args, Clone, Debug)]
pub struct Client {
    /// Whose: a person's or a program's name
    pub name: String,
    /// What it may do: owner (everything), user (everything in one project), reader (look)
    #[arg(long, default_value = "owner", value_parser = ["owner", "user", "reader"])]
    pub role: String,
    /// The one project that it sees
    #[arg(long)]
    pub project: Option<String>,
    /// The folder, which must not be there yet; default: the name, here
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Take back all certificates that were issued for the name until now
    #[arg(long, conflicts_with_all = ["role", "project", "to"])]
    pub take_back: bool,
}

/// `run`.
#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub boot: Boot,
    /// Build nothing: boot the last zone again with the image that it has
    #[arg(long, conflicts_with_all = ["mirror", "locked", "snapshot", "release"])]
    pub no_build: bool,
    /// Boot the release image, which has no exec door, bench or logs (the zone's certificates come by pairing)
    #[arg(long, hide = true)]
    pub release: bool,
}

/// What `run` and `start` have in common.
#[derive(Args, Clone, Debug)]
pub struct Boot {
    #[command(flatten)]
    pub machine: Machine,
    /// Return when the zone answers; `stop` ends it
    #[arg(long, short)]
    pub detach: bool,
    /// Forget the zone that was: new disks
    #[arg(long)]
    pub fresh: bool,
    /// Give the zone a network of its own, which this computer is not part of, instead of forwarded ports (needs root)
    #[arg(long, conflicts_with_all = ["web_port", "docker_port"])]
    pub lan: bool,
    /// Port on 127.0.0.1 for the web page; default: 8443, or a free one
    #[arg(long, value_name = "PORT")]
    pub web_port: Option<u16>,
    /// Port on 127.0.0.1 for the Docker API; default: 2376, or a free one
    #[arg(long, value_name = "PORT")]
    pub docker_port: Option<u16>,
}

/// The virtual machine.
#[derive(Args, Clone, Debug)]
pub struct Machine {
    /// Memory, in MiB or as 3G; default: 4096, or with `start` what it had
    #[arg(long, value_name = "SIZE", value_parser = memory_mib)]
    pub memory: Option<u32>,
    /// Virtual CPUs; default: 2, or with `start` what it had
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub cpus: Option<u16>,
    /// Size of the disk for the zone's pool in GiB; default: 16, or what it has
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(2..=65536))]
    pub disk: Option<u32>,
    /// One disk for all, as a machine has that was flashed: the pool is its last partition. `--disk` is its size (default: 20)
    #[arg(long)]
    pub one_disk: bool,
    /// Firmware with Secure Boot: a new zone takes the image's keys at its first boot and starts nothing that they have not signed
    #[arg(long)]
    pub secure_boot: bool,
    /// How long the zone may take to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub deadline: u64,
    /// Write the zone's journal to its console too, which is kept in serial.log: for a zone that does not come up
    #[arg(long)]
    pub console_journal: bool,
}

/// `test`.
#[derive(Args, Clone, Debug)]
pub struct Test {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub machine: Machine,
    /// Also the long tests
    #[arg(long)]
    pub full: bool,
    /// List every endpoint of the Docker API with the test that shows it, and run nothing
    #[arg(long)]
    pub list_endpoints: bool,
}

/// `fuzz`.
#[derive(Args, Clone, Debug)]
pub struct Fuzz {
    /// Targets by name, or by what several names begin with; default: all
    pub targets: Vec<String>,
    /// How long each target runs; default: a number of inputs, the same ones each time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: Option<u32>,
    /// How many run at a time; default: as many as there are processors
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Add to fuzz/corpus what was found and reaches something new
    #[arg(long, requires = "seconds")]
    pub keep: bool,
    /// Give this file to the target, and show what comes of it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "keep", "jobs"], requires = "targets")]
    pub input: Option<PathBuf>,
    /// List the targets
    #[arg(long, conflicts_with_all = ["seconds", "keep", "jobs", "input", "targets"])]
    pub list: bool,
}

/// `build`.
#[derive(Args, Clone, Debug)]
pub struct Build {
    #[command(flatten)]
    pub source: Source,
    /// Build the development image: the release and an extension with the exec door
    #[arg(long)]
    pub development: bool,
}

/// `release`.
#[derive(Args, Clone, Debug)]
pub struct Release {
    #[command(flatten)]
    pub source: Source,
    /// The folder
    pub out: PathBuf,
    /// The version, such as 1.2.0; default: that of the sources. An update is taken only when it brings a newer one
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Of the development image
    #[arg(long)]
    pub development: bool,
    /// Only the update
    #[arg(long)]
    pub update_only: bool,
    /// For tests: an image that does not work
    #[arg(long, hide = true, value_enum)]
    pub flaw: Option<Flaw>,
}

/// What is wrong with an image that is made for a test.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Flaw {
    Panic,
    Verity,
    Service,
}

/// `verify`.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    #[command(flatten)]
    pub source: Source,
    /// The image
    pub image: PathBuf,
    /// The version that it was made with; default: that of the sources
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// It is a development image
    #[arg(long)]
    pub development: bool,
    /// Take nothing from the cache but packages and keys, which takes as long as the first build: for an image that was built on
    /// this computer
    #[arg(long)]
    pub cold: bool,
}

/// `flash`.
#[derive(Args, Clone, Debug)]
pub struct Flash {
    #[command(flatten)]
    pub source: Source,
    /// The whole disk, such as /dev/sdb, or a file
    pub target: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// The target's path or serial number once more, when it holds something that may go
    #[arg(long, value_name = "NAME")]
    pub overwrite: Option<String>,
}

/// `exec`.
#[derive(Args, Clone, Debug)]
pub struct Exec {
    /// Give the command a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Pass input on (it always is; accepted because docker's exec has it)
    #[arg(long, short, hide = true)]
    pub interactive: bool,
    /// Set a variable, NAME=VALUE
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// `swap`.
#[derive(Args, Clone, Debug)]
pub struct Swap {
    #[command(flatten)]
    pub source: Source,
    /// Services by name, `cradle` for monitor, guest kernel and agent, or `bali`; default: all that differ
    pub services: Vec<String>,
}

/// `logs`.
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// A unit, such as kraud-pods
    pub unit: Option<String>,
    /// Go on with what comes
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "N")]
    pub lines: Option<u32>,
}

/// `bench`.
#[derive(Args, Clone, Debug)]
pub struct Bench {
    /// One benchmark; default: all
    pub name: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// For the benchmark itself, such as `-- --runs 5 --cp-mib 64`; `-- --help` tells all
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// `cache`.
#[derive(Clone, Debug, Subcommand)]
pub enum Cache {
    /// Remove what the last build of no checkout needs
    Gc {
        /// Keep what any build has used in so many days, too
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        days: u32,
    },
}

/// `supervise`.
#[derive(Args, Clone, Debug)]
pub struct Supervise {
    /// The state directory
    pub state: PathBuf,
    /// Stop the zone when stdin ends
    #[arg(long)]
    pub leash: bool,
}

/// `3G`, `3072M` or `3072`.
fn memory_mib(text: &str) -> Result<u32, String> {
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let mib = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    let mib = mib.ok_or("give MiB, or a number with M or G, such as 3G")?;
    if mib < 1024 { Err("a zone needs at least 1024 MiB".into()) } else { Ok(mib) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_build_there_is_nothing_to_say_about_one() {
        assert!(Cli::try_parse_from(["x", "run", "--no-build", "--locked"]).is_err());
        let parsed = Cli::try_parse_from(["x", "run", "--no-build", "--detach", "--memory", "2048"]).unwrap();
        assert!(matches!(parsed.command, Command::Run(run) if run.no_build && run.boot.machine.memory == Some(2048)));
    }

    #[test]
    fn memory_is_given_in_the_units_that_people_use() {
        assert_eq!(["3G", "3072M", "3072"].map(memory_mib), [Ok(3072), Ok(3072), Ok(3072)]);
        assert!(["512", "1T", "", "G", "9999999G"].iter().all(|text| memory_mib(text).is_err()));
    }

    #[test]
    fn what_follows_exec_is_the_command_whatever_it_looks_like() {
        let parse = |words: &[&str]| match Cli::parse_from(words).command {
            Command::Exec(exec) => (exec.tty, exec.command),
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&["x", "exec", "--", "ls", "-l"]), (false, vec!["ls".into(), "-l".into()]));
        assert_eq!(parse(&["x", "exec", "-it", "sh", "-c", "x"]), (true, vec!["sh".into(), "-c".into(), "x".into()]));
    }
}
