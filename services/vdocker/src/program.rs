//! What a process shall be: the program found in the container's PATH, its environment, who it is.
//!
//! Errors carry Docker's words, because clients make exit codes of them.

use crate::inroot::InRoot;
use crate::user::Identity;
use rustix::fs::FileType;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use zone::guest::IDLE_PROGRAM;
use zone::pod::{StartError, StartErrorKind};

/// PATH when the environment has none; Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, ready for execve(2).
#[derive(Debug)]
pub struct Program {
    /// What is executed, inside of the container's root.
    pub path: CString,
    /// Arguments.
    pub args: Vec<CString>,
    /// Environment.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: CString,
}

/// An error of no particular kind.
pub fn other(message: impl Into<String>) -> StartError {
    StartError { kind: StartErrorKind::Other, message: message.into() }
}

impl Program {
    /// Finds the program and makes the environment whole.
    ///
    /// # Errors
    /// When there is no program, it is not found or cannot be executed, or a string contains a zero byte.
    pub fn prepare(
        root: &InRoot,
        args: &[String],
        env: &[String],
        cwd: &str,
        identity: &Identity,
        hostname: &str,
        tty: bool,
    ) -> Result<Self, StartError> {
        let env = complete(env, identity, hostname, tty);
        let cwd = if cwd.is_empty() { "/" } else { cwd };
        if !cwd.starts_with('/') {
            return Err(other(format!("the working directory {cwd:?} is invalid, it needs to be an absolute path")));
        }
        let name = args.first().ok_or_else(|| other("no command specified"))?;
        if name == IDLE_PROGRAM {
            let none = Vec::new();
            return Ok(Self { path: c_string(name)?, args: none.clone(), env: none, cwd: c_string("/")? });
        }
        let path = find(root, name, value(&env, "PATH").unwrap_or(DEFAULT_PATH), cwd)?;
        let strings = |list: &[String]| list.iter().map(|s| c_string(s)).collect::<Result<Vec<_>, _>>();
        Ok(Self { path: c_string(&path)?, args: strings(args)?, env: strings(&env)?, cwd: c_string(cwd)? })
    }
}

/// A string for the kernel.
///
/// # Errors
/// When it contains a zero byte.
pub fn c_string(text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| other(format!("{text:?} contains a zero byte")))
}

fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn complete(env: &[String], identity: &Identity, hostname: &str, tty: bool) -> Vec<String> {
    let mut all = Vec::with_capacity(env.len() + 4);
    let mut default = |name: &str, text: &str| {
        if value(env, name).is_none() {
            all.push(format!("{name}={text}"));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOSTNAME", hostname);
    if tty {
        default("TERM", "xterm");
    }
    // An empty HOME is as good as none.
    if value(env, "HOME").is_none_or(str::is_empty) {
        all.push(format!("HOME={}", identity.home));
    }
    // Names without a value are removals that the client has not applied.
    all.extend(env.iter().filter(|line| line.contains('=') && *line != "HOME=").cloned());
    all
}

/// Looks `name` up as execvp(3) would, in the container's root.
fn find(root: &InRoot, name: &str, path: &str, cwd: &str) -> Result<String, StartError> {
    let not_found =
        |text: &str| StartError { kind: StartErrorKind::NotFound, message: format!("exec: \"{name}\": {text}") };
    let denied =
        || StartError { kind: StartErrorKind::NotExecutable, message: format!("exec: \"{name}\": permission denied") };
    if name.is_empty() {
        return Err(not_found("executable file not found in $PATH"));
    }
    if name.contains('/') {
        return match executable(root, &Path::new(cwd).join(name)) {
            Ok(true) => Ok(name.to_owned()),
            Ok(false) => Err(denied()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(denied()),
            Err(_) => Err(not_found(&format!("stat {name}: no such file or directory"))),
        };
    }
    let mut seen = false;
    for folder in path.split(':') {
        let candidate =
            if folder.is_empty() { PathBuf::from(cwd).join(name) } else { Path::new(cwd).join(folder).join(name) };
        match executable(root, &candidate) {
            Ok(true) => return Ok(candidate.to_string_lossy().into_owned()),
            Ok(false) => seen = true,
            Err(_) => {}
        }
    }
    Err(if seen { denied() } else { not_found("executable file not found in $PATH") })
}

/// Whether it is a file that somebody may execute; who may is for the kernel to say.
fn executable(root: &InRoot, path: &Path) -> io::Result<bool> {
    let stat = root.stat(path)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0)
}

/// An error of the kernel as Go, hence Docker, words it: in lower case, without the number.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// What execve(2) said of a program that was found.
pub fn exec_error(name: &str, error: &io::Error) -> StartError {
    let (kind, text) = match error.raw_os_error() {
        Some(libc::ENOENT) => (StartErrorKind::NotFound, "no such file or directory".to_owned()),
        Some(libc::EACCES) => (StartErrorKind::NotExecutable, "permission denied".to_owned()),
        Some(libc::ENOEXEC) => (StartErrorKind::Other, "exec format error".to_owned()),
        _ => (StartErrorKind::Other, errno_text(error)),
    };
    StartError { kind, message: format!("exec {name}: {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn root() -> InRoot {
        let dir = std::env::temp_dir().join(format!("vdocker-program-{:?}", std::thread::current().id()));
        std::fs::create_dir_all(dir.join("bin/folder")).unwrap();
        for (name, mode) in [("bin/run", 0o755), ("bin/data", 0o644)] {
            std::fs::write(dir.join(name), "").unwrap();
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        InRoot::open(&dir).unwrap()
    }

    fn check(name: &str, want: Result<&str, (StartErrorKind, &str)>) {
        let got = find(&root(), name, "/sbin:/bin", "/");
        assert_eq!(
            got,
            want.map(str::to_owned).map_err(|(kind, m)| StartError { kind, message: m.to_owned() }),
            "{name}"
        );
    }

    #[test]
    fn programs_are_found_as_docker_finds_them() {
        check("run", Ok("/bin/run"));
        check("bin/run", Ok("bin/run"));
        check("nosuch", Err((StartErrorKind::NotFound, "exec: \"nosuch\": executable file not found in $PATH")));
        check("/nosuch", Err((StartErrorKind::NotFound, "exec: \"/nosuch\": stat /nosuch: no such file or directory")));
        check("data", Err((StartErrorKind::NotExecutable, "exec: \"data\": permission denied")));
        check("/bin/folder", Err((StartErrorKind::NotExecutable, "exec: \"/bin/folder\": permission denied")));
    }

    #[test]
    fn the_environment_gets_what_is_missing_only() {
        let identity = Identity { home: "/home/x".into(), ..Identity::default() };
        let env = complete(&["PATH=/p".into(), "HOME=".into(), "A=1".into(), "GONE".into()], &identity, "h", true);
        assert_eq!(env, ["HOSTNAME=h", "TERM=xterm", "HOME=/home/x", "PATH=/p", "A=1"]);
    }
}
