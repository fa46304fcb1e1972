//! A volume's page: its snapshots, and the way back to one.

use crate::pages::{Site, home_page, login_page, page};
use crate::view::{State, bytes};
use askama::Template;
use axum::Form;
use axum::extract::{Path, State as Shared};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use zone::Resource;
use zone::pod::{Mount, Phase};
use zone::volume::{Rollback, Snapshot, Volume, VolumeSpec};

/// How long a rollback may take until the page says that it is not done.
const DONE: Duration = Duration::from_secs(60);

#[derive(Template)]
#[template(path = "volume.html")]
struct VolumePage {
    hostname: String,
    name: String,
    state: State,
    used: String,
    users: Vec<String>,
    rows: Vec<SnapshotRow>,
    error: Option<String>,
}

struct SnapshotRow {
    name: String,
    taken: String,
    kind: &'static str,
    held: String,
}

/// `GET /volume/{name}`.
pub async fn show(Shared(site): Shared<Site>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::OK, None);
    }
    volume_page(&site, &name, StatusCode::OK, None)
}

fn volume_page(site: &Site, name: &str, status: StatusCode, error: Option<String>) -> Response {
    let Some(volume) = site.model.volumes.get(name) else {
        return home_page(site, StatusCode::NOT_FOUND, Some(format!("there is no volume {name}")));
    };
    let mut snapshots: Vec<Arc<Resource<Snapshot>>> = site.model.snapshots.all();
    snapshots.retain(|s| s.spec.volume.as_str() == name && s.status.ready);
    snapshots.sort_by_key(|s| std::cmp::Reverse((s.status.taken_ns, s.meta.name.clone())));
    let row = |s: &Arc<Resource<Snapshot>>| SnapshotRow {
        name: s.meta.name.split_once('@').map_or("", |(_, short)| short).to_owned(),
        taken: time(s.status.taken_ns),
        kind: if s.spec.automatic { "by the clock" } else { "kept" },
        held: bytes(s.status.used_bytes),
    };
    let content = VolumePage {
        hostname: crate::pages::hostname(site),
        name: name.to_owned(),
        state: State::ready(volume.status.ready, volume.status.error.as_ref()),
        used: bytes(volume.status.used_bytes),
        users: users(site, name),
        rows: snapshots.iter().map(row).collect(),
        error,
    };
    page(status, &content)
}

/// The containers that run and use the volume.
fn users(site: &Site, name: &str) -> Vec<String> {
    let runs = |phase| matches!(phase, Phase::Starting | Phase::Running | Phase::Stopping | Phase::Restarting);
    let pods = site.model.pods.all();
    let containers = pods.iter().filter(|p| runs(p.status.phase)).flat_map(|p| &p.spec.containers);
    let uses = |m: &Mount| matches!(m, Mount::Volume { volume, .. } if volume.as_str() == name);
    containers.filter(|c| c.mounts.iter().any(uses)).map(|c| c.name.clone()).collect()
}

/// The form of a rollback.
#[derive(Deserialize)]
pub struct Wish {
    snapshot: String,
}

/// `POST /volume/{name}/rollback`.
pub async fn rollback(
    Shared(site): Shared<Site>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Form(wish): Form<Wish>,
) -> Response {
    if !site.is_logged_in(&headers) {
        return login_page(&site, StatusCode::UNAUTHORIZED, None);
    }
    let users = users(&site, &name);
    if !users.is_empty() {
        let error = format!("stop the containers that use it first: {}", users.join(", "));
        return volume_page(&site, &name, StatusCode::CONFLICT, Some(error));
    }
    match go_back(&site, &name, wish.snapshot).await {
        Ok(()) => (StatusCode::SEE_OTHER, [(LOCATION, format!("/volume/{name}"))]).into_response(),
        Err(error) => volume_page(&site, &name, StatusCode::CONFLICT, Some(error)),
    }
}

async fn go_back(site: &Site, name: &str, snapshot: String) -> Result<(), String> {
    let mut request = 0;
    let ask = |spec: &mut VolumeSpec| {
        request = spec.rollback.as_ref().map_or(0, |r| r.request) + 1;
        spec.rollback = Some(Rollback { request, snapshot: snapshot.clone() });
        true
    };
    site.client.modify_spec::<Volume>(name, ask).await.map_err(|e| e.message)?;
    let mut changes = site.model.volumes.changes();
    let outcome = async {
        loop {
            changes.borrow_and_update();
            let done = site.model.volumes.get(name).and_then(|v| v.status.rolled_back.clone());
            if let Some(done) = done.filter(|d| d.request >= request) {
                return done.error.map_or(Ok(()), Err);
            }
            changes.changed().await.map_err(|_| "the state engine is away".to_owned())?;
        }
    };
    tokio::time::timeout(DONE, outcome).await.unwrap_or_else(|_| Err("the rollback is not done yet".to_owned()))
}

/// `2026-11-21 13:10:00 UTC`.
pub fn time(ns: u64) -> String {
    let (days, second) = ((ns / 1_000_000_000 / 86_400).cast_signed(), ns / 1_000_000_000 % 86_400);
    // Days since 0000-03-01, by H. Hinnant's "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_266_609, "2026-11-21 13:10:09 UTC"),
        ] {
            assert_eq!(time(seconds * 1_000_000_000), text);
        }
    }
}
