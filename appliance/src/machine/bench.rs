//! `cargo appliance bench`: runs the benchmark inside the zone and shows what it measures.

use super::door::Door;
use super::report::print;
use anyhow::{Result, bail};
use serde::Deserialize;

/// The benchmark in the development variant.
const PROGRAM: &str = "/usr/lib/kraud/bench";

/// One measurement, as the benchmark prints it.
#[derive(Debug, Deserialize)]
struct Row {
    bench: String,
    metric: String,
    unit: String,
    ours: f64,
    #[serde(default)]
    peer: Option<String>,
    #[serde(default)]
    peer_value: Option<f64>,
    #[serde(default)]
    ratio: Option<f64>,
}

/// Runs all benchmarks or one, and prints each line when it comes: as it is, or as a table's row.
///
/// # Errors
/// When the image has no benchmark, or one fails.
pub fn run(door: &Door, name: Option<&str>, arguments: &[String], json: bool) -> Result<()> {
    let mut argv = vec![PROGRAM];
    argv.extend(name);
    argv.push("--json");
    argv.extend(arguments.iter().map(String::as_str));
    if !json {
        print(&row("benchmark", "metric", "ours", "peer", "", "ratio"));
    }
    let code = door.lines(&argv, |line| {
        match serde_json::from_str::<Row>(line) {
            Ok(_) if json => print(line),
            Ok(measured) => print(&format_row(&measured)),
            // What else it says is for people.
            Err(_) => super::report::say(line),
        }
        Ok(())
    })?;
    if code != 0 {
        bail!("the benchmark ended with {code}");
    }
    Ok(())
}

fn row(bench: &str, metric: &str, ours: &str, peer_value: &str, peer: &str, ratio: &str) -> String {
    format!("{bench:<20} {metric:<32} {ours:>14} {peer_value:>14} {peer:<10} {ratio:>7}").trim_end().to_owned()
}

fn format_row(measured: &Row) -> String {
    let value = |number: f64| format!("{} {}", significant(number), measured.unit);
    row(
        &measured.bench,
        &measured.metric,
        &value(measured.ours),
        &measured.peer_value.map(value).unwrap_or_default(),
        measured.peer.as_deref().unwrap_or_default(),
        &measured.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
    )
}

/// Three digits are what a measurement is worth.
fn significant(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_a_row_with_or_without_a_peer() {
        let line = r#"{"bench":"start","metric":"run to first byte","unit":"ms","ours":812.4,"peer":"docker","peer_value":1900,"ratio":0.428}"#;
        let shown = format_row(&serde_json::from_str(line).unwrap());
        for part in ["start", "812 ms", "1900 ms", "docker", "0.43"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let alone = r#"{"bench":"idle","metric":"memory","unit":"MiB","ours":41.25}"#;
        assert!(format_row(&serde_json::from_str(alone).unwrap()).ends_with("41.2 MiB"));
    }
}
