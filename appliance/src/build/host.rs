//! The machine that builds: who we are, what it lacks, and the one way to run its programs.
//!
//! A build needs real root for file owners and mounts. As root commands run directly; as somebody else they go through sudo,
//! and each step that does says so before ([`Host::may`]).

use super::Progress;
use super::error::{At, Error, Result};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// How much of a failed program's output an error shows.
const TAIL_BYTES: u64 = 2000;

/// The machine that builds.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    root: bool,
}

impl Host {
    /// Looks at who we are, and settles what this process' new files are like.
    ///
    /// # Errors
    /// [`Error::NotRoot`] when neither root nor sudo is there.
    pub fn detect() -> Result<Self> {
        // What is made has the same modes whatever those are that the user gives to new files.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let root = rustix::process::geteuid().is_root();
        if !root && find("sudo").is_none() {
            return Err(Error::NotRoot { user: user() });
        }
        Ok(Self { root })
    }

    /// A command with root's rights.
    #[must_use]
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        if self.root {
            return Command::new(program);
        }
        let mut command = Command::new("sudo");
        command.arg(program);
        command
    }

    /// Says that `step` goes through sudo, and makes sure that it will, with a password where sudo wants one.
    ///
    /// # Errors
    /// [`Error::SudoRefused`].
    pub fn may(self, step: &str, progress: &mut dyn Progress) -> Result<()> {
        if self.root {
            return Ok(());
        }
        progress.note(&format!("{step} needs root's rights: through sudo"));
        let refused = |said: &str| {
            let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
            Error::SudoRefused { step: step.into(), user: user(), said }
        };
        let no_program = |source| Error::Start { program: "sudo".into(), source };
        let quiet = Command::new("sudo").args(["-n", "true"]).env("LC_ALL", "C").output().map_err(no_program)?;
        if quiet.status.success() {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(refused(&String::from_utf8_lossy(&quiet.stderr)));
        }
        let mut asked = Ok(false);
        progress.aside(&mut || asked = Command::new("sudo").arg("-v").status().map(|status| status.success()));
        if asked.map_err(no_program)? { Ok(()) } else { Err(refused("no password was accepted")) }
    }

    /// Makes sure that a program is there: apt installs its package. A build needs mmdebstrap only, fuzzing a C++ compiler.
    ///
    /// # Errors
    /// [`Error::MissingProgram`], with apt's last words when it failed.
    pub fn need(
        self,
        program: &'static str,
        package: &'static str,
        log: &Path,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        if find(program).is_some() {
            return Ok(());
        }
        let missing = |tried| Error::MissingProgram { program, package, tried };
        if find("apt-get").is_none() {
            return Err(missing(None));
        }
        progress.note(&format!("this computer lacks {program}: apt-get installs it"));
        let install = ["apt-get", "install", "-yq", "--no-install-recommends", package];
        for words in [&["apt-get", "update", "-q"][..], &install[..]] {
            run("host", log, self.command("env").arg("DEBIAN_FRONTEND=noninteractive").args(words)).map_err(
                |error| match error {
                    Error::Tool { tail, .. } => missing(tail.lines().last().map(str::to_owned)),
                    other => other,
                },
            )?;
        }
        Ok(())
    }

    /// Removes a file or a tree, whoever owns it. A path that is not there is no error.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn remove(self, path: &Path) -> Result<()> {
        // What is one's own goes without sudo.
        if !self.root && own_rm(path).is_ok() {
            return Ok(());
        }
        let status = self.command("rm").args(["-rf", "--one-file-system", "--"]).arg(path).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(std::io::Error::other("rm failed")).at("remove", path),
            Err(source) => Err(Error::Start { program: "rm".into(), source }),
        }
    }
}

fn own_rm(path: &Path) -> std::io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        meta => meta?.file_type(),
    };
    if kind.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Who we are, for messages.
fn user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid)).and_then(|line| line.split(':').next());
    name.map_or_else(|| format!("user {uid}"), str::to_owned)
}

/// Where a program lies on PATH or in the system's folders.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| p.is_file())
}

/// The cargo that runs this program, or the one on PATH.
#[must_use]
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A copy of a file with holes, as quick as the file system can.
#[must_use]
pub fn sparse_copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to);
    command
}

/// How much an ordinary user may still write to a path's file system, in MiB.
///
/// # Errors
/// When it cannot be looked at.
pub fn free_mib(path: &Path) -> std::io::Result<u64> {
    let fs = rustix::fs::statvfs(path)?;
    Ok(fs.f_bavail.saturating_mul(fs.f_frsize) >> 20)
}

/// Runs a program to its end; both its outputs go to `log`.
///
/// # Errors
/// [`Error::Start`] or [`Error::Tool`] with the end of its output.
pub fn run(step: &str, log: &Path, command: &mut Command) -> Result<()> {
    let mut out = OpenOptions::new().create(true).append(true).read(true).open(log).at("open", log)?;
    let program = describe(command);
    let begin = out.seek(SeekFrom::End(0)).at("read", log)?;
    let err = out.try_clone().at("open", log)?;
    let status = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(out.try_clone().at("open", log)?)
        .stderr(err)
        .status()
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(failed(step, program, status, tail(&mut out, begin), log))
}

/// Runs a program and returns what it wrote to its standard output; the rest goes to `log`.
///
/// # Errors
/// As [`run`].
pub fn output(step: &str, log: &Path, command: &mut Command) -> Result<String> {
    let mut err = OpenOptions::new().create(true).append(true).read(true).open(log).at("open", log)?;
    let program = describe(command);
    let begin = err.seek(SeekFrom::End(0)).at("read", log)?;
    let out = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(err.try_clone().at("open", log)?)
        .output()
        .map_err(|source| Error::Start { program: program.clone(), source })?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(failed(step, program, out.status, tail(&mut err, begin), log))
}

fn failed(step: &str, program: String, status: ExitStatus, tail: String, log: &Path) -> Error {
    if tail.contains("No space left on device") {
        return Error::ToolFull { step: step.into(), log: log.into() };
    }
    Error::Tool { step: step.into(), program, status, tail, log: log.into() }
}

/// Reads a whole text file.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).at("read", path)
}

/// The lines of a list: no comments, no blank lines.
///
/// # Errors
/// When it cannot be read.
pub fn read_list(path: &Path) -> Result<Vec<String>> {
    Ok(read(path)?.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
}

fn describe(command: &Command) -> String {
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    let line = words.iter().filter(|w| !w.contains('\n')).map(AsRef::as_ref).collect::<Vec<&str>>().join(" ");
    if line.len() > 300 { format!("{}…", line.chars().take(300).collect::<String>()) } else { line }
}

fn tail(log: &mut fs::File, begin: u64) -> String {
    let end = log.seek(SeekFrom::End(0)).unwrap_or(begin);
    let from = begin.max(end.saturating_sub(TAIL_BYTES));
    let mut bytes = Vec::new();
    let _ = log.seek(SeekFrom::Start(from)).and_then(|_| log.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_reported_with_the_end_of_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "from an earlier program\n").unwrap();
        let error = run("step", &log, Command::new("sh").args(["-c", "echo no such mirror >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such mirror") && !error.contains("earlier"), "{error}");
    }

    #[test]
    fn a_program_that_found_the_disk_full_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = run("step", &dir.path().join("log"), Command::new("sh").args(["-c", "echo x | cat > /dev/full"]));
        assert!(error.unwrap_err().to_string().contains("cargo appliance cache gc"));
    }

    #[test]
    fn removing_takes_what_is_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("kept"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/b/up")).unwrap();
        own_rm(&dir.path().join("a")).unwrap();
        own_rm(&dir.path().join("a")).unwrap();
        assert!(!dir.path().join("a").exists() && dir.path().join("kept").exists());
    }
}
