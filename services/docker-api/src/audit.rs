//! The audit log: every request with who made it, in the journal, with fields.
//!
//! ```text
//! journalctl SYSLOG_IDENTIFIER=kraud-audit -o json     AUDIT_WHO AUDIT_PEER AUDIT_PROJECT AUDIT_METHOD AUDIT_PATH
//!                                                      AUDIT_STATUS AUDIT_MS
//! ```
//! Sent to the journal's own socket (systemd, "Native Journal Protocol"); where there is none, to the log as a line.
//! Must not: tell a query or a body, which may hold secrets; wait for the journal.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// Where the journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Longer paths are cut.
const MAX_VALUE: usize = 512;

/// A request that has been answered (or whose stream has begun).
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Who: a certificate's name, a user id, a pod.
    pub who: &'a str,
    /// Where from.
    pub peer: &'a str,
    /// The one project that it is restricted to; empty for all.
    pub project: &'a str,
    /// The method.
    pub method: &'a str,
    /// The path, without the query.
    pub path: &'a str,
    /// What was answered.
    pub status: u16,
    /// How long it took.
    pub took: Duration,
}

/// Notes a request.
pub fn note(entry: &Entry<'_>) {
    static SOCKET: OnceLock<Option<UnixDatagram>> = OnceLock::new();
    let socket = SOCKET.get_or_init(|| {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Path::new(JOURNAL).exists().then_some(socket)
    });
    let sent = socket.as_ref().is_some_and(|s| s.send_to(datagram(entry).as_bytes(), JOURNAL).is_ok());
    if !sent {
        let Entry { who, peer, project, method, path, status, took } = *entry;
        tracing::info!(target: "audit", who, peer, project, method, path, status, ms = took.as_millis(), "request");
    }
}

/// Fields of one line each: a line break would begin another field.
fn datagram(entry: &Entry<'_>) -> String {
    let clean = |value: &str| value.chars().map(|c| if c.is_control() { '?' } else { c }).take(MAX_VALUE).collect();
    let (status, took) = (entry.status.to_string(), entry.took.as_millis().to_string());
    let message = format!("{} {} {} -> {status}", entry.who, entry.method, entry.path);
    let fields: [(&str, String); 10] = [
        ("MESSAGE", clean(&message)),
        ("PRIORITY", "6".into()),
        ("SYSLOG_IDENTIFIER", "kraud-audit".into()),
        ("AUDIT_WHO", clean(entry.who)),
        ("AUDIT_PEER", clean(entry.peer)),
        ("AUDIT_PROJECT", clean(entry.project)),
        ("AUDIT_METHOD", clean(entry.method)),
        ("AUDIT_PATH", clean(entry.path)),
        ("AUDIT_STATUS", status),
        ("AUDIT_MS", took),
    ];
    fields.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_forge_a_field() {
        let entry = Entry {
            who: "x",
            peer: "unix",
            project: "",
            method: "GET",
            path: "/a\nAUDIT_WHO=root",
            status: 200,
            took: Duration::from_millis(3),
        };
        let text = datagram(&entry);
        assert_eq!(text.lines().filter(|l| l.starts_with("AUDIT_WHO=")).collect::<Vec<_>>(), ["AUDIT_WHO=x"]);
        assert!(text.contains("AUDIT_STATUS=200\nAUDIT_MS=3\n"), "{text}");
    }
}
