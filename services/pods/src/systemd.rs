//! systemd's manager over the bus: starts, stops and lists transient units, and tells when they end.
//!
//! Must not: decide anything, or know of pods. Names of units are the callers'.
//! Source: org.freedesktop.systemd1(5), systemd 257.

use futures_util::StreamExt as _;
use std::collections::HashMap;
use tokio::sync::mpsc;
use zbus::message::Type as MessageType;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, Variant};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PATH: &str = "/org/freedesktop/systemd1";
const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// A property of a transient unit: its name and value.
pub type Property = (&'static str, Variant<'static>);

/// What went wrong on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The bus or systemd could not be reached, or systemd refused.
    #[error("cannot {what}")]
    Call {
        /// What was tried, on what.
        what: String,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
}

impl BusError {
    /// systemd knows no such unit.
    #[must_use]
    pub fn no_such_unit(&self) -> bool {
        let Self::Call { source: zbus::Error::MethodError(name, ..), .. } = self else { return false };
        name.as_str() == "org.freedesktop.systemd1.NoSuchUnit"
    }
}

/// A unit has ended and is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitEnd {
    /// The unit's name.
    pub unit: String,
    /// systemd's `Result`: `success`, `exit-code`, `signal`, `oom-kill`…; `gone` if it never said.
    pub result: String,
}

/// systemd's manager. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Systemd {
    connection: Connection,
}

impl Systemd {
    /// Connects to the bus at `address`, or to the system's bus, and asks systemd for signals.
    ///
    /// # Errors
    /// When the bus or systemd does not answer.
    pub async fn connect(address: Option<&str>) -> Result<Self, BusError> {
        let builder = match address {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let failed = |source| BusError::Call { what: "connect to the system bus".into(), source };
        let connection = builder.build().await.map_err(failed)?;
        let systemd = Self { connection };
        systemd.call("ask systemd for signals", "Subscribe", &()).await?;
        Ok(systemd)
    }

    /// Starts a transient service; systemd has taken it over when this returns, its process may not run yet.
    ///
    /// # Errors
    /// When a unit of that name is still there, or systemd does not know a property.
    pub async fn start(&self, unit: &str, properties: Vec<Property>) -> Result<(), BusError> {
        let aux: Vec<(String, Vec<(String, Variant<'_>)>)> = Vec::new();
        self.call(&format!("start {unit}"), "StartTransientUnit", &(unit, "fail", properties, aux)).await?;
        Ok(())
    }

    /// Asks systemd to stop a unit. No error when it is not there.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn stop(&self, unit: &str) -> Result<(), BusError> {
        ignore_missing(self.call(&format!("stop {unit}"), "StopUnit", &(unit, "replace")).await)
    }

    /// Kills all processes of a unit with SIGKILL. No error when it is not there.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn kill(&self, unit: &str) -> Result<(), BusError> {
        ignore_missing(self.call(&format!("kill {unit}"), "KillUnit", &(unit, "all", 9i32)).await)
    }

    /// Changes properties of a unit that runs, until it ends. No error when it is not there.
    ///
    /// # Errors
    /// When systemd does not know a property, or cannot change it.
    pub async fn set(&self, unit: &str, properties: Vec<Property>) -> Result<(), BusError> {
        ignore_missing(self.call(&format!("limit {unit}"), "SetUnitProperties", &(unit, true, properties)).await)
    }

    /// The units whose names match one of the shell patterns and that have not ended.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn list(&self, patterns: &[&str]) -> Result<Vec<String>, BusError> {
        type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);
        let states: [&str; 0] = [];
        let reply = self.call("list units", "ListUnitsByPatterns", &(&states[..], patterns)).await?;
        let rows: Vec<Row> = reply
            .body()
            .deserialize()
            .map_err(|source| BusError::Call { what: "read the list of units".into(), source })?;
        Ok(rows.into_iter().filter(|row| row.3 != "inactive" && row.3 != "failed").map(|row| row.0).collect())
    }

    /// The state of the whole system: `running`, `degraded`, `stopping`…
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn system_state(&self) -> Result<String, BusError> {
        let failed = |source| BusError::Call { what: "ask for the system's state".into(), source };
        let reply = self
            .connection
            .call_method(Some(SERVICE), PATH, Some("org.freedesktop.DBus.Properties"), "Get", &(MANAGER, "SystemState"))
            .await
            .map_err(failed)?;
        let body = reply.body();
        let value: Variant<'_> = body.deserialize().map_err(failed)?;
        Ok(if let Variant::Str(state) = value { state.as_str().to_owned() } else { String::new() })
    }

    /// Whether systemd still has the unit.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn exists(&self, unit: &str) -> Result<bool, BusError> {
        match self.call(&format!("look for {unit}"), "GetUnit", &(unit,)).await {
            Ok(_) => Ok(true),
            Err(error) if error.no_such_unit() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tells of every unit that is gone from now on: its process has ended, and its name is free again.
    ///
    /// # Errors
    /// When the bus refuses the subscription.
    pub async fn ends(&self) -> Result<mpsc::Receiver<UnitEnd>, BusError> {
        let rules = [
            format!(
                "type='signal',sender='{SERVICE}',interface='org.freedesktop.DBus.Properties',path_namespace='{UNITS}'"
            ),
            format!("type='signal',sender='{SERVICE}',interface='{MANAGER}',member='UnitRemoved'"),
        ];
        // One stream for both: a unit's result must not be read after its end.
        let mut signals = MessageStream::from(&self.connection);
        for rule in rules {
            let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
            let added = self.connection.call_method(Some(bus), path, Some(bus), "AddMatch", &(rule,)).await;
            added.map_err(|source| BusError::Call { what: "subscribe to systemd's signals".into(), source })?;
        }
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut ends = Ends::default();
            while let Some(signal) = signals.next().await {
                let Ok(signal) = signal else { continue };
                if let Some(end) = ends.take(&signal)
                    && sender.send(end).await.is_err()
                {
                    return;
                }
            }
            tracing::error!("the bus has closed the connection");
        });
        Ok(receiver)
    }

    async fn call<B>(&self, what: &str, method: &str, body: &B) -> Result<Message, BusError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        self.connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), method, body)
            .await
            .map_err(|source| BusError::Call { what: what.to_owned(), source })
    }
}

fn ignore_missing(result: Result<Message, BusError>) -> Result<(), BusError> {
    match result {
        Err(error) if error.no_such_unit() => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Makes ends of units out of signals; a unit's result comes before its end.
#[derive(Debug, Default)]
struct Ends {
    results: HashMap<String, String>,
}

impl Ends {
    fn take(&mut self, signal: &Message) -> Option<UnitEnd> {
        if signal.message_type() != MessageType::Signal {
            return None;
        }
        let header = signal.header();
        match header.member()?.as_str() {
            "UnitRemoved" => {
                let (unit, _path): (String, OwnedObjectPath) = signal.body().deserialize().ok()?;
                self.end(unit)
            }
            "PropertiesChanged" => {
                let unit = unit_of(header.path()?.as_str())?;
                let body = signal.body();
                let (_, values, _): (String, HashMap<String, Variant<'_>>, Vec<String>) = body.deserialize().ok()?;
                self.changed(unit, &values);
                None
            }
            _ => None,
        }
    }

    fn changed(&mut self, unit: String, values: &HashMap<String, Variant<'_>>) {
        if let Some(Variant::Str(result)) = values.get("Result")
            && unit.starts_with("kraud-")
        {
            self.results.insert(unit, result.as_str().to_owned());
        }
    }

    fn end(&mut self, unit: String) -> Option<UnitEnd> {
        if !unit.starts_with("kraud-") {
            return None;
        }
        let result = self.results.remove(&unit).unwrap_or_else(|| "gone".into());
        Some(UnitEnd { unit, result })
    }
}

/// The unit's name in an object's path: `_2d` stands for `-`, `_2e` for `.` (sd_bus_path_encode(3)).
fn unit_of(path: &str) -> Option<String> {
    let mut bytes = path.strip_prefix(UNITS)?.strip_prefix('/')?.bytes();
    let mut name = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'_' {
            name.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_gives_back_the_unit_that_it_was_made_from() {
        assert_eq!(
            unit_of("/org/freedesktop/systemd1/unit/kraud_2dpod_2d0a_2eservice").as_deref(),
            Some("kraud-pod-0a.service")
        );
        assert_eq!(unit_of("/org/freedesktop/systemd1/unit/kraud_2"), None);
        assert_eq!(unit_of("/org/freedesktop/systemd1/job/7"), None);
    }

    #[test]
    fn a_units_end_carries_the_result_that_was_told_before() {
        let mut ends = Ends::default();
        let unit = || "kraud-pod-1.service".to_owned();
        ends.changed(unit(), &HashMap::from([("Result".to_owned(), Variant::from("success"))]));
        ends.changed(unit(), &HashMap::from([("Result".to_owned(), Variant::from("oom-kill"))]));
        ends.changed(unit(), &HashMap::from([("ActiveState".to_owned(), Variant::from("failed"))]));
        assert_eq!(ends.end(unit()), Some(UnitEnd { unit: unit(), result: "oom-kill".into() }));
        assert_eq!(ends.end(unit()), Some(UnitEnd { unit: unit(), result: "gone".into() }));
    }

    #[test]
    fn units_of_others_are_none_of_our_business() {
        let mut ends = Ends::default();
        ends.changed("ssh.service".into(), &HashMap::from([("Result".to_owned(), Variant::from("success"))]));
        assert!(ends.results.is_empty());
        assert_eq!(ends.end("ssh.service".into()), None);
    }
}
