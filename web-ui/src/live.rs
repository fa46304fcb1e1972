//! The live part of the page: each table is rendered here, and sent again over one event stream when it changes.

use crate::view::{Model, PodRow, Row, Summary};
use askama::Template;
use axum::response::sse::Event;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Changes within this time are sent together.
const GATHER: Duration = Duration::from_millis(100);

#[derive(Template)]
#[template(path = "summary.html")]
struct SummaryPart {
    s: Summary,
}

#[derive(Template)]
#[template(path = "pods.html")]
struct PodsPart {
    rows: Vec<PodRow>,
}

#[derive(Template)]
#[template(path = "rows.html")]
struct RowsPart {
    rows: Vec<Row>,
    columns: usize,
    empty: &'static str,
    links: bool,
}

/// A part of the page that is sent on its own.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Summary,
    Pods,
    Images,
    Volumes,
    Networks,
    Services,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 6] = [Self::Summary, Self::Pods, Self::Images, Self::Volumes, Self::Networks, Self::Services];

    /// Its name: the id of the element, and the name of the event.
    pub fn name(self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Pods => "pods",
            Self::Images => "images",
            Self::Volumes => "volumes",
            Self::Networks => "networks",
            Self::Services => "services",
        }
    }

    /// Its HTML now.
    pub fn render(self, model: &Model) -> String {
        let rows =
            |rows, columns, empty| RowsPart { rows, columns, empty, links: matches!(self, Self::Volumes) }.render();
        let html = match self {
            Self::Summary => SummaryPart { s: model.summary() }.render(),
            Self::Pods => PodsPart { rows: model.pod_rows() }.render(),
            Self::Images => rows(model.image_rows(), 5, "docker load -i image.tar"),
            Self::Volumes => rows(model.volume_rows(), 6, "docker volume create data"),
            Self::Networks => rows(model.network_rows(), 6, "docker network create n1"),
            Self::Services => rows(model.service_rows(), 5, "systemctl status 'kraud-*'"),
        };
        html.unwrap_or_else(|error| {
            tracing::error!(%error, part = self.name(), "cannot render");
            String::new()
        })
    }
}

/// Every part now, then each part whenever it looks different. Ends when the client goes away.
pub fn stream(model: Model) -> impl Stream<Item = Result<Event, Infallible>> {
    let (events, stream) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut shown: [String; Part::ALL.len()] = Default::default();
        let mut changes = Changes::of(&model);
        loop {
            for (index, part) in Part::ALL.into_iter().enumerate() {
                let html = part.render(&model);
                if html != shown[index] {
                    let event = Event::default().event(part.name()).data(&html);
                    shown[index] = html;
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                () = changes.next() => tokio::time::sleep(GATHER).await,
                () = events.closed() => return,
            }
        }
    });
    ReceiverStream::new(stream)
}

struct Changes([watch::Receiver<u64>; 8]);

impl Changes {
    fn of(model: &Model) -> Self {
        Self([
            model.pods.changes(),
            model.endpoints.changes(),
            model.images.changes(),
            model.volumes.changes(),
            model.snapshots.changes(),
            model.networks.changes(),
            model.services.changes(),
            model.nodes.changes(),
        ])
    }

    async fn next(&mut self) {
        let waits = self.0.iter_mut().map(|c| Box::pin(c.changed()));
        let _ = futures_util::future::select_all(waits).await;
    }
}
