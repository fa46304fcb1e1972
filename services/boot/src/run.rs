//! The one way in which programs of the root are started: to their end, with their words in the error.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a program to its end with `input` on its standard input.
///
/// # Errors
/// When it cannot be started or fails; with what it wrote to its standard error.
pub fn run(argv: &[&str], input: &[u8]) -> Result<()> {
    let [program, args @ ..] = argv else { bail!("no program") };
    let mut command = Command::new(program);
    // udev may not run yet; device nodes are made by the programs themselves.
    command.args(args).env("LC_ALL", "C").env("DM_DISABLE_UDEV", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input has its own reasons, and says so by its status.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
    if !output.status.success() {
        bail!("`{}`: {}: {}", argv.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
