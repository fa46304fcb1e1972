//! QEMU's machine protocol: one JSON object a line over its unix socket.
//!
//! Only what a zone needs: a command and its answer, in turn. Events are skipped; the process's own end is the event that counts.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// QEMU answers at once, unless the machine is very busy.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// A connection past its greeting.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    ///
    /// # Errors
    /// When the socket is not there or does not speak the protocol.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        if qmp.line()?.get("QMP").is_none() {
            bail!("{} is not QEMU's control socket", socket.display());
        }
        qmp.command("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = Vec::new();
        (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line).context("QEMU does not answer")?;
        if line.is_empty() {
            bail!("QEMU has closed its control socket");
        }
        serde_json::from_slice(&line).context("QEMU's answer is not JSON")
    }

    /// Runs a command and gives its `return` value.
    ///
    /// # Errors
    /// QEMU's own description, or that it does not answer.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let mut request = serde_json::to_vec(&json!({ "execute": name, "arguments": arguments }))?;
        request.push(b'\n');
        self.reader.get_mut().write_all(&request).with_context(|| format!("cannot send {name} to QEMU"))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "QEMU refuses {name}: {}",
                    error.get("desc").and_then(Value::as_str).unwrap_or("without a reason")
                );
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Runs a line of the human monitor and gives what it prints.
    ///
    /// # Errors
    /// As [`Qmp::command`]; what the line itself says against it is in the text.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.command("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Answers each line that it reads with the next of `answers`.
    fn serve(listener: UnixListener, answers: &'static [&'static str]) -> std::thread::JoinHandle<Vec<String>> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{\"version\":{}}}\n{\"event\":\"X\"}\n").unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut seen = Vec::new();
            for answer in answers {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                seen.push(line);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            seen
        })
    }

    #[test]
    fn events_are_skipped_and_errors_are_told() {
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("qmp");
        let answers: &[&str] = &[
            "{\"return\":{}}\n",
            "{\"event\":\"SHUTDOWN\"}\n{\"return\":\"\\r\\n\"}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"}}\n",
        ];
        let server = serve(UnixListener::bind(&socket).unwrap(), answers);
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert_eq!(qmp.human("hostfwd_add uplink tcp:127.0.0.1:80-:80").unwrap(), "");
        let error = qmp.command("nothing", &json!({})).unwrap_err();
        assert!(error.to_string().contains("no such thing"));
        assert!(server.join().unwrap()[1].contains("human-monitor-command"));
    }
}
