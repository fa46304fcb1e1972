//! `kcradle`: one microVM per process.
//!
//! Owns the command line and the exit codes: 0 the guest ended, 1 it could not start, 2 it crashed. Everything else is in the
//! modules, and none of them knows of containers, images or the zone: a bundle's directory goes in, a running guest comes out.

#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]

mod boot;
mod bundle;
mod bus;
mod cpu;
mod epoll;
mod memory;
mod run;
mod seccomp;
mod serial;
mod vcpu;
mod virtio;
mod vm;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: kcradle run DIR [--pid-file FILE]";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Run { dir: PathBuf, pid_file: Option<PathBuf> },
    Help,
}

fn main() -> ExitCode {
    let command = match parse(std::env::args_os().skip(1).map(PathBuf::from)) {
        Ok(command) => command,
        Err(problem) => {
            say(&format!("{problem}\n{USAGE}"));
            return ExitCode::from(1);
        }
    };
    match command {
        Command::Help => {
            let _ = writeln!(std::io::stdout(), "{USAGE}");
            ExitCode::SUCCESS
        }
        Command::Run { dir, pid_file } => match start(&dir, pid_file.as_deref()) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                say(&format!("{error:#}"));
                ExitCode::from(1)
            }
        },
    }
}

fn start(dir: &Path, pid_file: Option<&Path>) -> anyhow::Result<u8> {
    run::run(dir, pid_file)
}

/// One line for people, on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "kcradle: {line}");
}

fn parse(mut args: impl Iterator<Item = PathBuf>) -> Result<Command, String> {
    let verb = args.next().ok_or("a command is missing")?;
    match verb.to_str() {
        Some("run") => {
            let dir = args.next().ok_or("run needs the bundle's directory")?;
            let pid_file = match args.next() {
                None => None,
                Some(flag) if flag.as_os_str() == "--pid-file" => {
                    Some(args.next().ok_or("--pid-file needs a file name")?)
                }
                Some(other) => return Err(format!("run does not know {}", other.display())),
            };
            match args.next() {
                None => Ok(Command::Run { dir, pid_file }),
                Some(other) => Err(format!("run does not know {}", other.display())),
            }
        }
        Some("-h" | "--help" | "help") => Ok(Command::Help),
        _ => Err(format!("there is no command {}", verb.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(PathBuf::from))
    }

    #[test]
    fn run_takes_a_directory_and_perhaps_a_pid_file() {
        assert_eq!(parsed(&["run", "/b"]), Ok(Command::Run { dir: "/b".into(), pid_file: None }));
        assert_eq!(
            parsed(&["run", "/b", "--pid-file", "p"]),
            Ok(Command::Run { dir: "/b".into(), pid_file: Some("p".into()) })
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(parsed(&["run"]), Err("run needs the bundle's directory".into()));
        assert_eq!(parsed(&["run", "/b", "--x"]), Err("run does not know --x".into()));
        assert_eq!(parsed(&["walk"]), Err("there is no command walk".into()));
    }
}
