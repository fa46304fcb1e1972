//! `GET /containers/{id}/logs`: what a container wrote, line by line, from its log files.

use super::follow::{Baseline, Follower};
use crate::App;
use crate::errors::{Failure, Result};
use crate::filters::{Params, stream_time};
use crate::names::log_time;
use crate::streams::{self, Framing};
use crate::version::ApiVersion;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use zone::log::{Data, Record, Stream};

/// The longest line that is put together; longer ones come in parts.
const MAX_LINE: usize = 64 * 1024;
/// About how much is sent at once.
const BATCH: usize = 64 * 1024;
const FOREVER: Duration = Duration::from_secs(86_400);
/// The most lines that `tail` keeps.
const MAX_TAIL: usize = 1_000_000;

/// A line with its newline, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    time_ns: u64,
    stream: Stream,
    bytes: Vec<u8>,
}

/// Puts pieces of output together to lines, per stream.
#[derive(Debug, Default)]
struct Lines {
    partial: [Option<Line>; 2],
}

impl Lines {
    fn push(&mut self, record: &Record, out: &mut Vec<Line>) {
        let Some((stream, bytes)) = record.data.as_output() else {
            if !matches!(record.data, Data::Health(_)) {
                self.flush(out);
            }
            return;
        };
        let slot = &mut self.partial[usize::from(stream == Stream::Stderr)];
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let line = slot.get_or_insert_with(|| Line { time_ns: record.time_ns, stream, bytes: Vec::new() });
            line.bytes.extend_from_slice(part);
            if part.ends_with(b"\n") || line.bytes.len() >= MAX_LINE {
                out.extend(slot.take());
            }
        }
    }

    /// A run's end ends its last line too.
    fn flush(&mut self, out: &mut Vec<Line>) {
        out.extend(self.partial.iter_mut().filter_map(Option::take));
    }
}

struct Wanted {
    stdout: bool,
    stderr: bool,
    since: Option<u64>,
    until: Option<u64>,
    tail: Option<usize>,
    follow: bool,
    prefix: Prefix,
    framing: Framing,
}

struct Prefix {
    timestamps: bool,
    details: Option<String>,
}

impl Wanted {
    fn takes(&self, line: &Line) -> bool {
        let stream = match line.stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        stream && self.since.is_none_or(|s| line.time_ns >= s) && self.until.is_none_or(|u| line.time_ns <= u)
    }

    fn encode(&self, line: &Line, out: &mut BytesMut) {
        let time = if self.prefix.timestamps { log_time(line.time_ns) + " " } else { String::new() };
        let details = self.prefix.details.as_deref().map(|d| format!("{d} ")).unwrap_or_default();
        self.framing.put(out, line.stream, &[time.as_bytes(), details.as_bytes(), &line.bytes]);
    }
}

/// `GET /containers/{id}/logs`.
///
/// # Errors
/// 400 for wrong parameters.
pub async fn logs(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    version: ApiVersion,
    params: Params,
) -> Result<Response> {
    let container = app.store.world().container(&id)?;
    if container.spec().docker["HostConfig"]["LogConfig"]["Type"] == "none" {
        return Err(Failure::internal("configured logging driver does not support reading"));
    }
    let time = |name: &str| params.get(name).filter(|v| *v != "0").map(stream_time).transpose();
    let wanted = Wanted {
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        since: time("since")?,
        until: time("until")?,
        tail: tail(params.get("tail"))?,
        follow: params.flag("follow"),
        prefix: Prefix { timestamps: params.flag("timestamps"), details: params.flag("details").then(String::new) },
        framing: Framing::of(container.spec().tty),
    };
    if !(wanted.stdout || wanted.stderr) {
        return Err(Failure::invalid("Bad parameters: you must choose at least one stream"));
    }
    let baseline = Baseline::of(&container);
    let ended = !container.is_active() && container.pod.status.phase != zone::pod::Phase::Pending;
    let follower = Follower::new(container.id().clone(), app.log_files(&container), false, app.store.subscribe())
        .await
        .map_err(|e| Failure::internal(format!("cannot read the log of {}: {e}", container.id())))?;
    let content_type = wanted.framing.content_type(version);
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(64);
    tokio::spawn(async move {
        if let Err(error) = send(follower, baseline, &wanted, ended, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(streams::streaming(content_type, Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver))))
}

/// `all`, nothing, or a number; others count as all, as Docker has it.
fn tail(text: Option<&str>) -> Result<Option<usize>> {
    Ok(text.and_then(|t| t.parse::<usize>().ok()).map(|n| n.min(MAX_TAIL)))
}

async fn send(
    mut follower: Follower,
    baseline: Baseline,
    wanted: &Wanted,
    ended: bool,
    sender: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut kept: VecDeque<Line> = VecDeque::new();
    let mut past = true;
    loop {
        let over = ended || follower.container().is_none_or(|(now, gone)| gone || baseline.is_past(&now));
        let records = follower.read().await?;
        let none = records.is_empty();
        let mut fresh = Vec::new();
        records.iter().for_each(|r| lines.push(r, &mut fresh));
        if none && (over || !wanted.follow) {
            lines.flush(&mut fresh);
        }
        fresh.retain(|line| wanted.takes(line));
        if let Some(limit) = wanted.tail.filter(|_| past) {
            kept.extend(fresh.drain(..));
            let surplus = kept.len().saturating_sub(limit);
            kept.drain(..surplus);
            if none {
                fresh.extend(kept.drain(..));
            }
        }
        // Lines go together: each send is a chunk of the answer, and costs as much as many lines.
        let mut out = BytesMut::new();
        for (index, line) in fresh.iter().enumerate() {
            wanted.encode(line, &mut out);
            let full = out.len() >= BATCH || index + 1 == fresh.len();
            if full && sender.send(Ok(out.split().freeze())).await.is_err() {
                return Ok(());
            }
        }
        if none {
            past = false;
            if over || !wanted.follow || wanted.until.is_some_and(|u| zone::time::now_ns() > u) {
                return Ok(());
            }
            let left = wanted.until.map(|until| until.saturating_sub(zone::time::now_ns()));
            tokio::select! {
                () = follower.changed() => {}
                () = sender.closed() => return Ok(()),
                // Once more after that: what was written until then may be there only now.
                () = tokio::time::sleep(left.map_or(FOREVER, Duration::from_nanos)), if left.is_some() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u64, data: Data) -> Record {
        Record { run: 1, number, time_ns: number, container: "c".into(), data }
    }

    #[test]
    fn pieces_become_lines_per_stream() {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for (n, data) in [
            Data::Out("a\nb".into()),
            Data::Err("error\n".into()),
            Data::Out("c\nrest".into()),
            Data::Exited { code: 0, oom_killed: false },
        ]
        .into_iter()
        .enumerate()
        {
            lines.push(&record(n as u64, data), &mut out);
        }
        let text: Vec<_> = out.iter().map(|l| (l.time_ns, String::from_utf8_lossy(&l.bytes).into_owned())).collect();
        let expected = [(0, "a\n"), (1, "error\n"), (0, "bc\n"), (2, "rest")];
        assert_eq!(text, expected.map(|(t, s)| (t, s.to_owned())));
    }
}
