//! A container's last output, from the log file on the host: also of one that has ended. Guests write it: it is bounded,
//! and shown as text.

use crate::pages::{Site, home_page, login_page, page};
use askama::Template;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use std::collections::VecDeque;
use std::path::PathBuf;
use zone::log::LogReader;

/// Bytes of output that are shown.
const SHOWN: usize = 128 << 10;

#[derive(Template)]
#[template(path = "logs.html")]
struct LogsPage {
    hostname: String,
    name: String,
    text: String,
    cut: bool,
}

/// `GET /logs/{id}`.
pub async fn show(Shared(site): Shared<Site>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::OK, None);
    }
    let pods = site.model.pods.all();
    let found = pods.iter().find_map(|pod| {
        let container = pod.spec.containers.iter().find(|c| c.id.short() == id)?;
        Some((pod.meta.name.clone(), container.id.to_string(), container.name.clone()))
    });
    let Some((pod, container, name)) = found else {
        return home_page(&site, StatusCode::NOT_FOUND, Some(format!("there is no container {id}")));
    };
    let dir = site.logs.join(pod);
    let tail = tokio::task::spawn_blocking(move || tail([dir.join("log.0"), dir.join("log.1")], &container)).await;
    match tail.map_err(std::io::Error::other).and_then(|tail| tail) {
        Ok((bytes, cut)) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            page(StatusCode::OK, &LogsPage { hostname: crate::pages::hostname(&site), name, text, cut })
        }
        Err(error) => {
            home_page(&site, StatusCode::INTERNAL_SERVER_ERROR, Some(format!("cannot read the log: {error}")))
        }
    }
}

/// The end of what a container wrote; and whether there is more before it.
fn tail(files: [PathBuf; 2], container: &str) -> std::io::Result<(Vec<u8>, bool)> {
    let mut reader = LogReader::new(files);
    let mut bytes: VecDeque<u8> = VecDeque::new();
    let mut cut = false;
    loop {
        let records = reader.read()?;
        if records.is_empty() {
            return Ok((bytes.into(), cut));
        }
        for record in records.iter().filter(|r| r.container == container) {
            if let Some((_, piece)) = record.data.as_output() {
                bytes.extend(piece);
            }
        }
        if bytes.len() > SHOWN {
            cut = true;
            bytes.drain(..bytes.len() - SHOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zone::log::{Data, Record, Stream};

    #[test]
    fn the_end_of_one_containers_output_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("log.0"), dir.path().join("log.1")];
        let mut text = b"{\"file\":1}\n".to_vec();
        for number in 0..100 {
            let container = if number % 2 == 0 { "a" } else { "b" }.to_owned();
            let data = Data::output(Stream::Stdout, format!("{number:05} {}\n", "x".repeat(8000)).as_bytes());
            text.extend(Record { run: 1, number, time_ns: 1, container, data }.to_line());
        }
        std::fs::write(&files[0], text).unwrap();
        let (bytes, cut) = tail(files, "a").unwrap();
        let shown = String::from_utf8(bytes).unwrap();
        assert!(cut && shown.len() == SHOWN);
        assert!(shown.contains("00098 x") && !shown.contains("00099"));
    }
}
