//! The zone's services as systemd sees them, written as the resource `service`.
//!
//! States are told by systemd; memory is looked at every ten seconds, and a change of less than a megabyte is none.

use crate::resources::Writer;
use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zbus::message::Type as MessageType;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, OwnedVariant, Variant};
use zone::service::{Service, ServiceStatus};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PATH: &str = "/org/freedesktop/systemd1";
const UNITS: &str = "/org/freedesktop/systemd1/unit";
const MEMORY_EVERY: Duration = Duration::from_secs(10);
const MEMORY_STEP: u64 = 1 << 20;

/// Follows the services for ever.
///
/// # Errors
/// When the bus is gone, or systemd does not answer.
pub async fn run(bus: Option<&str>, images: PathBuf, writer: Writer) -> Result<()> {
    let builder = bus.map_or_else(zbus::connection::Builder::system, zbus::connection::Builder::address);
    let connection = builder.build().await.context("cannot connect to the system bus")?;
    let manager = Manager { connection, images, writer, ids: BTreeMap::new() };
    manager.follow().await
}

struct Manager {
    connection: Connection,
    images: PathBuf,
    writer: Writer,
    /// Ids of signed images, by what their files were when they were read.
    ids: BTreeMap<PathBuf, (Option<std::time::SystemTime>, String)>,
}

impl Manager {
    async fn follow(mut self) -> Result<()> {
        self.manager_call("Subscribe", &()).await.context("cannot ask systemd for signals")?;
        let rule = MatchRule::builder()
            .msg_type(MessageType::Signal)
            .sender(SYSTEMD)
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .path_namespace(UNITS)
            .build()
            .context("cannot subscribe to systemd's signals")?;
        let mut signals = MessageStream::for_match_rule(rule, &self.connection, None)
            .await
            .context("cannot subscribe to systemd's signals")?;
        let mut memory = tokio::time::interval(MEMORY_EVERY);
        memory.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = memory.tick() => self.look_at_all().await?,
                signal = signals.next() => {
                    let signal = signal.context("the bus has closed the connection")?.context("a signal is broken")?;
                    let path = signal.header().path().map(|p| p.as_str().to_owned());
                    // `kraud_2d…_2eservice` is how a path spells a unit's name; pods' units are too many, and others' business.
                    if let Some(path) = path.filter(|p| is_service(p)) {
                        self.look_at_path(&path).await;
                    }
                }
            }
        }
    }

    async fn manager_call<B>(&self, method: &str, body: &B) -> zbus::Result<zbus::Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.connection.call_method(Some(SYSTEMD), PATH, Some(MANAGER), method, body).await
    }

    async fn look_at_all(&mut self) -> Result<()> {
        type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
        let states: [&str; 0] = [];
        let reply = self.manager_call("ListUnitsByPatterns", &(&states[..], &["kraud-*.service"][..])).await;
        let rows: Vec<Row> =
            reply.context("cannot list units")?.body().deserialize().context("cannot read the list of units")?;
        let mut names = Vec::new();
        for row in rows {
            if is_service(row.6.as_str()) && row.2 == "loaded" {
                self.look_at_path(row.6.as_str()).await;
                names.push(row.0.trim_end_matches(".service").to_owned());
            }
        }
        self.writer.keep_only::<Service>(&names).await;
        Ok(())
    }

    async fn look_at_path(&mut self, path: &str) {
        match self.read(path).await {
            Ok((name, status)) => {
                let small = |old: &ServiceStatus, new: &ServiceStatus| {
                    let near = old.memory_bytes.abs_diff(new.memory_bytes) < MEMORY_STEP;
                    near && ServiceStatus { memory_bytes: new.memory_bytes, ..old.clone() } == *new
                };
                self.writer.put::<Service>(&name, &status, small).await;
            }
            Err(error) => tracing::debug!(path, error = format!("{error:#}"), "cannot look at a unit"),
        }
    }

    async fn read(&mut self, path: &str) -> Result<(String, ServiceStatus)> {
        let all = self.properties(path, "").await?;
        let name = text(&all, "Id").trim_end_matches(".service").to_owned();
        let image = self.images.join(format!("{}.tar.gz", name.trim_start_matches("kraud-")));
        let memory = number(&all, "MemoryCurrent");
        let status = ServiceStatus {
            active: text(&all, "ActiveState"),
            sub: text(&all, "SubState"),
            since_ns: number(&all, "StateChangeTimestamp").saturating_mul(1000),
            image_id: self.image_id(&image),
            restarts: u32::try_from(number(&all, "NRestarts")).unwrap_or(0),
            // systemd says "not known" by the highest number.
            memory_bytes: if memory == u64::MAX { 0 } else { memory },
        };
        Ok((name, status))
    }

    /// All properties of an object; of all its interfaces when `interface` is empty (sd-bus answers so).
    async fn properties(&self, path: &str, interface: &str) -> Result<HashMap<String, OwnedVariant>> {
        let properties = Some("org.freedesktop.DBus.Properties");
        let reply = self.connection.call_method(Some(SYSTEMD), path, properties, "GetAll", &(interface,)).await?;
        Ok(reply.body().deserialize()?)
    }

    fn image_id(&mut self, image: &Path) -> String {
        let changed = std::fs::metadata(image).and_then(|m| m.modified()).ok();
        if let Some((then, id)) = self.ids.get(image)
            && *then == changed
        {
            return id.clone();
        }
        let id = if changed.is_some() {
            bali::image::id(&bali::source::Source::Path(image.to_owned())).unwrap_or_default()
        } else {
            String::new()
        };
        self.ids.insert(image.to_owned(), (changed, id.clone()));
        id
    }
}

fn is_service(path: &str) -> bool {
    let Some(name) = path.strip_prefix(UNITS).and_then(|p| p.strip_prefix("/kraud_2d")) else { return false };
    name.ends_with("_2eservice") && !name.starts_with("pod_2d") && !name.starts_with("fs_2d")
}

fn text(all: &HashMap<String, OwnedVariant>, name: &str) -> String {
    match all.get(name).map(|v| &**v) {
        Some(Variant::Str(value)) => value.as_str().to_owned(),
        _ => String::new(),
    }
}

fn number(all: &HashMap<String, OwnedVariant>, name: &str) -> u64 {
    match all.get(name).map(|v| &**v) {
        Some(Variant::U64(value)) => *value,
        Some(Variant::U32(value)) => u64::from(*value),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_from_pods_and_from_the_rest() {
        let of = |name: &str| is_service(&format!("{UNITS}/{name}"));
        assert!(of("kraud_2dpods_2eservice") && of("kraud_2ddocker_2dapi_2eservice"));
        assert!(!of("kraud_2dpod_2d4f5c_2eservice") && !of("kraud_2dfs_2d4f5c_2d0_2eservice"));
        assert!(!of("ssh_2eservice") && !of("kraud_2dpods_2eslice"));
    }
}
