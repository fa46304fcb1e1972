//! Runs a verified image: a private root that vanishes with the process, an identity with no more rights than asked for,
//! then execve(2) in place. The payload has our process id, control group, network, stdio, inherited descriptors and
//! environment; nothing of us stays.
//!
//! Order, and why: names of users are resolved while the host's files are still there; everything that may be wrong in the
//! options is found before anything is mounted; the mounts need root; the last thing before execve is the filter, which
//! forbids what came before it.
//!
//! Must be called while the process has one thread: namespaces, ids and capabilities are a thread's own.

pub mod capabilities;
pub mod identity;
pub mod mounts;
pub mod seccomp;

use crate::error::Error;
use crate::image::Image;
use capabilities::Capability;
use identity::Identity;
use mounts::{Bind, Mounts};
use seccomp::Profile;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// How an image is run. The default is: root without any capability, an empty root but for the image, /proc and a small /dev.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `USER[:GROUP]` instead of the image's.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Capabilities that stay.
    pub capabilities: Vec<Capability>,
    /// The filter of system calls.
    pub seccomp: Profile,
    /// System calls that the filter lets through nevertheless.
    pub allow_syscalls: Vec<String>,
    /// Parts of the host that are shown.
    pub binds: Vec<Bind>,
    /// Device nodes that are shown.
    pub devices: Vec<PathBuf>,
    /// More empty writable folders.
    pub tmpfs: Vec<PathBuf>,
    /// Show /sys, read only.
    pub sys: bool,
    /// Show the host's /usr and /etc, read only.
    pub host_usr: bool,
    /// Show processes of other users in /proc.
    pub all_processes: bool,
    /// The image's root is writable (and still gone afterwards).
    pub writable: bool,
    /// Environment added to the caller's.
    pub env: Vec<(OsString, OsString)>,
}

/// The exit code for an image that is refused: no permission, in sysexits(3). A supervisor need not try again.
pub const REFUSED: u8 = 77;

/// Why a payload was not started, with the exit code that says so (as Docker's, but for [`REFUSED`]).
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// 77: the image is refused; 125: our own failure, or a wrong option.
    #[error(transparent)]
    Image(#[from] Error),
    /// 125: a step of the preparation failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried, on what.
        step: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// 126 or 127: the program is there but cannot be executed, or is not there.
    #[error("cannot execute {program}")]
    Exec {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// A function that wraps an I/O error with the step that failed.
    pub(crate) fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Self::Step { step, source: source.into() }
    }

    /// The exit code that tells it to the caller.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Image(error) if error.is_refusal() => REFUSED,
            Self::Image(_) | Self::Step { .. } => 125,
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { .. } => 126,
        }
    }
}

/// Becomes the payload; returns only when that is not possible.
pub fn run(image: Image, options: &Options, args: &[String]) -> RunError {
    match prepare(image, options, args) {
        Ok((mut command, program)) => RunError::Exec { program, source: command.exec() },
        Err(error) => error,
    }
}

fn prepare(mut image: Image, options: &Options, args: &[String]) -> Result<(Command, String), RunError> {
    let config = image.config().clone();
    let mut words = config.command(args).into_iter();
    let program =
        words.next().ok_or_else(|| Error::Invalid(format!("{} names no program and none was given", image.name())))?;
    let user = options.user.as_deref().unwrap_or(&config.user);
    let identity = Identity::resolve(user, &options.groups)?;
    let filters = seccomp::compile(options.seccomp, &options.allow_syscalls)?;

    let mounts = Mounts::new(options)?;
    mounts.unpack(&mut image)?;
    drop(image);
    mounts.enter(options)?;

    let workdir = if config.workdir.is_empty() { "/" } else { &config.workdir };
    std::env::set_current_dir(workdir)
        .map_err(RunError::step(format!("change to the image's working directory {workdir}")))?;
    capabilities::limit(&options.capabilities)?;
    identity.assume()?;
    capabilities::keep(&options.capabilities)?;
    seccomp::apply(&filters)?;

    let mut command = Command::new(&program);
    command.args(words);
    for (name, value) in &config.env {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    Ok((command, program))
}
