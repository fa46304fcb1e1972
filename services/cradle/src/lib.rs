//! `kcradle`: one microVM per process.
//!
//! Owns the command line and the exit codes: 0 the guest ended, 1 it could not start, 2 it crashed. Everything else is in the
//! modules. What runs a guest knows nothing of containers, images or the zone: a bundle's directory goes in, a running guest
//! comes out. `summon` makes such a directory of an image, in a process of its own; `logs` shows what the guest wrote.
//!
//! Public is [`main`], and what takes a stranger's bytes: the fuzz targets are its only other user.

#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]

mod begin;
mod boot;
pub mod bucket;
pub mod bundle;
pub mod bus;
mod control;
mod cpu;
mod doctor;
pub mod epoll;
mod jail;
mod logs;
pub mod memory;
mod plug;
mod plugger;
mod run;
mod seccomp;
pub mod serial;
pub mod slots;
mod summon;
pub mod template;
mod vcpu;
pub mod virtio;
mod vm;
mod worker;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: kcradle run DIR [--strict] [--exit-status] [--pid-file FILE]
       kcradle template DIR [--strict]
       kcradle logs DIR
       kcradle plug DIR net TAP MAC [NIC] | disk FILE [ro]
       kcradle unplug DIR DEVICE
       kcradle doctor";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Run(run::Options),
    Summon(summon::args::Options),
    Template { dir: PathBuf, strict: bool },
    Logs { dir: PathBuf },
    Plug { dir: PathBuf, what: plug::What },
    Unplug { dir: PathBuf, device: String },
    Doctor,
    Help,
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let usage = format!("{USAGE}\n       {}", summon::args::USAGE);
    let result = match parse(std::env::args_os().skip(1)) {
        Err(problem) => {
            say(&format!("{problem}\n{usage}"));
            return ExitCode::from(1);
        }
        Ok(Command::Help) => {
            let _ = writeln!(std::io::stdout(), "{usage}");
            Ok(0)
        }
        Ok(Command::Run(options)) => run::run(&options),
        Ok(Command::Template { dir, strict }) => template::make::make(&dir, strict).map(|()| 0),
        Ok(Command::Summon(options)) => summon::summon(&options).map(|()| 0),
        Ok(Command::Logs { dir }) => logs::logs(&dir, std::io::stdout().lock(), std::io::stderr().lock()).map(|()| 0),
        Ok(Command::Plug { dir, what }) => plug::plug(&dir, &what).map(|answer| {
            let _ = writeln!(std::io::stdout(), "{answer}");
            0
        }),
        Ok(Command::Doctor) => doctor::doctor(std::io::stdout()),
        Ok(Command::Unplug { dir, device }) => plug::unplug(&dir, &device).map(|()| 0),
    };
    result.map_or_else(
        |error| {
            say(&format!("{error:#}"));
            ExitCode::from(1)
        },
        ExitCode::from,
    )
}

/// One line for people, on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "kcradle: {line}");
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let verb = args.next().ok_or("a command is missing")?;
    match verb.to_str() {
        Some("run") => parse_run(args),
        Some("summon") => summon::args::parse(args).map(Command::Summon),
        Some("template") => {
            let dir = args.next().ok_or("template needs the bundle's directory")?.into();
            let strict = match args.next() {
                None => false,
                Some(word) if word == "--strict" => true,
                Some(other) => return Err(format!("template does not know {}", other.display())),
            };
            end(args, "template").map(|()| Command::Template { dir, strict })
        }
        Some("logs") => {
            let dir = args.next().ok_or("logs needs the bundle's directory")?.into();
            end(args, "logs").map(|()| Command::Logs { dir })
        }
        Some("plug") => parse_plug(args),
        Some("unplug") => {
            let dir = args.next().ok_or("unplug needs the bundle's directory")?.into();
            let device = text(args.next(), "unplug needs a device")?;
            end(args, "unplug").map(|()| Command::Unplug { dir, device })
        }
        Some("doctor") => end(args, "doctor").map(|()| Command::Doctor),
        Some("-h" | "--help" | "help") => Ok(Command::Help),
        _ => Err(format!("there is no command {}", verb.display())),
    }
}

fn parse_run(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let dir = args.next().ok_or("run needs the bundle's directory")?.into();
    let mut options = run::Options { dir, ..run::Options::default() };
    while let Some(flag) = args.next() {
        match flag.to_str() {
            Some("--strict") => options.strict = true,
            Some("--exit-status") => options.exit_status = true,
            Some("--pid-file") => options.pid_file = Some(args.next().ok_or("--pid-file needs a file name")?.into()),
            _ => return Err(format!("run does not know {}", flag.display())),
        }
    }
    Ok(Command::Run(options))
}

fn parse_plug(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let dir = args.next().ok_or("plug needs the bundle's directory")?.into();
    let kind = args.next().unwrap_or_default();
    let what = match kind.to_str() {
        Some("net") => {
            let tap = text(args.next(), "plug net needs a tap")?;
            let mac = text(args.next(), "plug net needs a MAC address")?;
            plug::What::Net(tap, mac, args.next().map(|nic| text(Some(nic), "")).transpose()?)
        }
        Some("disk") => {
            let file = args.next().ok_or("plug disk needs a file")?.into();
            let read_only = match args.next() {
                None => false,
                Some(word) if word == "ro" => true,
                Some(other) => return Err(format!("plug disk does not know {}", other.display())),
            };
            plug::What::Disk(file, read_only)
        }
        _ => return Err("plug knows net and disk".into()),
    };
    end(args, "plug").map(|()| Command::Plug { dir, what })
}

fn text(argument: Option<OsString>, missing: &str) -> Result<String, String> {
    argument.ok_or(missing)?.into_string().map_err(|other| format!("{} is no text", other.display()))
}

fn end(mut args: impl Iterator<Item = OsString>, verb: &str) -> Result<(), String> {
    args.next().map_or(Ok(()), |other| Err(format!("{verb} does not know {}", other.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Command, String> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn run_takes_a_directory_and_perhaps_a_pid_file() {
        let options = |strict, pid_file| {
            Ok(Command::Run(run::Options { dir: "/b".into(), strict, exit_status: strict, pid_file }))
        };
        assert_eq!(parsed(&["run", "/b"]), options(false, None));
        assert_eq!(
            parsed(&["run", "/b", "--strict", "--exit-status", "--pid-file", "p"]),
            options(true, Some("p".into()))
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        assert_eq!(parsed(&["run"]), Err("run needs the bundle's directory".into()));
        assert_eq!(parsed(&["run", "/b", "--x"]), Err("run does not know --x".into()));
        assert_eq!(parsed(&["logs"]), Err("logs needs the bundle's directory".into()));
        assert_eq!(parsed(&["logs", "/b", "x"]), Err("logs does not know x".into()));
        assert_eq!(parsed(&["walk"]), Err("there is no command walk".into()));
    }
}
