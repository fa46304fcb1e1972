//! Words for whoever reads the serial console: errors that no record or answer can carry.
//!
//! Must not fail: a message that cannot be written is dropped.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::OnceLock;

static KMSG: OnceLock<std::fs::File> = OnceLock::new();

/// From now on messages go to the kernel's log, which goes to the console.
pub fn use_kernel_log() {
    if let Ok(file) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = KMSG.set(file);
    }
}

/// One line.
pub fn say(text: &str) {
    use std::io::Write as _;
    let line = format!("vdocker: {text}\n");
    let written = match KMSG.get() {
        Some(mut file) => file.write(line.as_bytes()),
        None => std::io::stderr().write(line.as_bytes()),
    };
    drop(written);
}

/// An error with its causes.
pub fn error(error: &dyn Error) {
    say(&chain(error));
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
