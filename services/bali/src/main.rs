//! The command `bali`. stdout is data, stderr is for people; `bali run` exits with 125, 126 or 127 when there is no payload
//! whose exit code could be told, as Docker does, and with 77 when the image is refused.

#![forbid(unsafe_code)]

use anyhow::Context;
use bali::build::Content;
use bali::image::{self, Image};
use bali::run::capabilities::Capability;
use bali::run::mounts::Bind;
use bali::run::seccomp::Profile;
use bali::run::{Options, RunError};
use bali::source::Source;
use bali::{Keyring, SigningKey};
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

// The same as zone::paths; this crate depends on no other of the zone.
const SERVICES: &str = "/usr/lib/kraud/services";
const KEYS: &str = "/usr/lib/kraud/keys";

/// Signed single-file images.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Packs and signs an image
    Build(Build),
    /// Checks an image: signature, every entry, every limit
    Verify {
        /// A file, an http: URL, or the name of an installed image
        source: String,
        #[command(flatten)]
        place: Place,
    },
    /// Prints the id of an image's content; does not ask who signed it
    Id {
        /// A file, an http: URL, or the name of an installed image
        source: String,
        #[command(flatten)]
        place: Place,
    },
    /// Makes a key: KEY, and KEY.pub for those who verify
    Keygen {
        /// Where the private key goes
        #[arg(short, long = "output", value_name = "KEY")]
        output: PathBuf,
    },
    /// Unpacks a verified image into an empty folder
    Unpack {
        /// A file, an http: URL, or the name of an installed image
        source: String,
        /// The folder; made if it is missing
        dir: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Becomes the image's program, in a root of its own
    Run(Box<Run>),
}

#[derive(Args)]
struct Place {
    /// Keys that an image may be signed with, *.pub
    #[arg(long, default_value = KEYS, value_name = "DIR")]
    keys: PathBuf,
    /// Where installed images lie, NAME.tar.gz
    #[arg(long, default_value = SERVICES, value_name = "DIR")]
    services: PathBuf,
}

#[derive(Args)]
struct Build {
    /// A folder with a Dockerfile
    #[arg(required_unless_present = "rootfs", conflicts_with = "rootfs")]
    dir: Option<PathBuf>,
    /// An unpacked root, or a tar of one, instead
    #[arg(long, value_name = "TAR|DIR")]
    rootfs: Option<PathBuf>,
    /// The program and its first arguments, in JSON form, instead of the Dockerfile's
    #[arg(long, value_name = "JSON")]
    entrypoint: Option<String>,
    /// The image
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The private key
    #[arg(long)]
    key: PathBuf,
    /// The image's name; the output's name when left out
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
struct Run {
    /// The name of an installed image, a file, or an http: URL
    source: String,
    #[command(flatten)]
    place: Place,
    /// User and group, names of this machine or numbers
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// A supplementary group
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// A capability that stays, like NET_ADMIN
    #[arg(long, value_name = "NAME")]
    cap: Vec<Capability>,
    /// Filter of system calls: service or none
    #[arg(long, default_value = "service")]
    seccomp: Profile,
    /// A system call that the filter lets through nevertheless
    #[arg(long, value_name = "NAME")]
    allow_syscall: Vec<String>,
    /// Shows a file or folder of the host; -SRC: if it is there
    #[arg(long, value_name = "[-]SRC[:DST][:ro][:shared]", allow_hyphen_values = true)]
    bind: Vec<Bind>,
    /// Shows a device
    #[arg(long, value_name = "PATH")]
    device: Vec<PathBuf>,
    /// An empty writable folder
    #[arg(long, value_name = "PATH")]
    tmpfs: Vec<PathBuf>,
    /// Shows /sys, read only
    #[arg(long)]
    sys: bool,
    /// Shows the host's /usr and /etc, read only, for programs of the host
    #[arg(long)]
    host_usr: bool,
    /// Shows other users' processes in /proc
    #[arg(long)]
    all_processes: bool,
    /// The image's root can be written; it is gone afterwards all the same
    #[arg(long)]
    writable: bool,
    /// An environment variable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Arguments of the program, instead of the image's
    #[arg(last = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 125 } else { 0 };
            // Nobody can be told when even that fails.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Verb::Run(run) => {
            let error = start(&run);
            let code = error.exit_code();
            complain(&anyhow::Error::new(error));
            ExitCode::from(code)
        }
        verb => match other(verb) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
    }
}

#[expect(clippy::print_stderr, reason = "the one place where a failure is told")]
fn complain(error: &anyhow::Error) {
    eprintln!("bali: {error:#}");
}

#[expect(clippy::print_stdout, reason = "the results that were asked for")]
fn other(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Build(build) => pack(build),
        Verb::Verify { source, place } => {
            let mut image = open(&source, &place)?;
            image.for_each(|_, _, data| {
                std::io::copy(data, &mut std::io::sink())
                    .map(|_| ())
                    .map_err(|e| bali::Error::Content { name: source.clone(), source: e })
            })?;
            println!("{} signed by {}", image.id(), image.key_id());
            Ok(())
        }
        Verb::Id { source, place } => {
            println!("{}", image::id(&Source::parse(&source, &place.services)?)?);
            Ok(())
        }
        Verb::Keygen { output } => {
            let public = SigningKey::generate()?.save(&output)?;
            println!("{}", public.display());
            Ok(())
        }
        Verb::Unpack { source, dir, place } => {
            let mut image = open(&source, &place)?;
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            bali::unpack::unpack(&mut image, &dir)?;
            Ok(())
        }
        Verb::Run(run) => Err(start(&run).into()),
    }
}

fn pack(build: Build) -> anyhow::Result<()> {
    let key = SigningKey::load(&build.key)?;
    let mut content = match (&build.rootfs, &build.dir) {
        (Some(root), _) => Content::from_root(root)?,
        (None, dir) => Content::from_dockerfile(dir.as_deref().unwrap_or(Path::new(".")))?,
    };
    if let Some(json) = &build.entrypoint {
        content.config.entrypoint =
            serde_json::from_str(json).context("--entrypoint is not in JSON form, like [\"/bin/app\", \"--flag\"]")?;
    }
    let stem = || build.output.file_name().map(|n| n.to_string_lossy().trim_end_matches(".tar.gz").to_owned());
    content.config.name = build.name.or_else(stem).unwrap_or_default();
    content.write(&build.output, &key)?;
    Ok(())
}

fn open(source: &str, place: &Place) -> bali::Result<Image> {
    Image::open(&Source::parse(source, &place.services)?, &Keyring::load(&place.keys)?)
}

fn start(run: &Run) -> RunError {
    let env = run.env.iter().map(|line| line.split_once('=').ok_or(line)).collect::<Result<Vec<_>, _>>();
    let env = match env {
        Ok(pairs) => pairs.into_iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect(),
        Err(line) => return bali::Error::Invalid(format!("--env {line}: it is not NAME=VALUE")).into(),
    };
    let options = Options {
        user: run.user.clone(),
        groups: run.group.clone(),
        capabilities: run.cap.clone(),
        seccomp: run.seccomp,
        allow_syscalls: run.allow_syscall.clone(),
        binds: run.bind.clone(),
        devices: run.device.clone(),
        tmpfs: run.tmpfs.clone(),
        sys: run.sys,
        host_usr: run.host_usr,
        all_processes: run.all_processes,
        writable: run.writable,
        env,
    };
    match open(&run.source, &run.place) {
        Ok(image) => bali::run::run(image, &options, &run.args),
        Err(error) => error.into(),
    }
}
