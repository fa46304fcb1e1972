//! `kcradle logs`: what a bundle's containers have written so far, each stream to its own.
//!
//! Only reads; the guest may run meanwhile.

use crate::bundle;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::Path;
use zone::log::{Data, LogReader, Stream};

/// Copies the output in the log of the bundle in `dir` to `out` and `err`; why a container could not start goes to `err`, too.
///
/// # Errors
/// When there is no bundle, when it keeps no log, or when something cannot be read or written.
pub fn logs(dir: &Path, mut out: impl Write, mut err: impl Write) -> Result<()> {
    let (bundle, names) = bundle::load(dir)?;
    let log = bundle.log.with_context(|| format!("the bundle in {} keeps no log", dir.display()))?;
    let mut reader = LogReader::new(log.files.map(|file| names.path(&file)));
    loop {
        let records = reader.read().context("cannot read the log")?;
        if records.is_empty() {
            return out.flush().context("cannot write the output");
        }
        for record in records {
            let written = match (record.data.as_output(), &record.data) {
                (Some((Stream::Stdout, bytes)), _) => out.write_all(&bytes),
                (Some((Stream::Stderr, bytes)), _) => err.write_all(&bytes),
                (None, Data::Failed(error)) => writeln!(err, "kcradle: not started: {}", error.message),
                (None, _) => Ok(()),
            };
            written.context("cannot write the output")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_goes_to_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = r#"{"vcpus":1,"memory_mib":64,"kernel":"k","initramfs":"i","guest_spec":"s","agent":"a",
            "log":{"files":["log.0","log.1"],"max_bytes":4096}}"#;
        std::fs::write(dir.path().join("cradle.json"), bundle).unwrap();
        let record =
            |number, data| zone::log::Record { run: 1, number, time_ns: 0, container: "c".into(), data }.to_line();
        let lines = [
            b"{\"file\":1}\n".to_vec(),
            record(0, Data::Started { pid: 2 }),
            record(1, Data::output(Stream::Stdout, b"one\xff")),
            record(2, Data::output(Stream::Stderr, b"two\n")),
        ];
        std::fs::write(dir.path().join("log.0"), lines.concat()).unwrap();
        std::fs::write(dir.path().join("log.1"), "").unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        logs(dir.path(), &mut out, &mut err).unwrap();
        assert_eq!((&*out, &*err), (&b"one\xff"[..], &b"two\n"[..]));
    }
}
