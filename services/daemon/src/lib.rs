//! What every service of a zone does alike when it starts: its log, its unix socket, its TLS door.
//!
//! Owns nothing else; it must not know what a service is for.
#![forbid(unsafe_code)]

mod socket;
pub mod tls;

pub use socket::{listen, terminated};

/// Sends the log to standard error, which systemd keeps with the time of each line. `RUST_LOG` chooses what is told;
/// from `info` on when it is not set.
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .init();
}
