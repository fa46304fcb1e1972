//! Takes out of an answer what must differ between two engines: ids, times, addresses, sizes.
//!
//! What is kept of them is that they are there and what they are: an id becomes `<id>`, a time that is not Docker's zero
//! time `<time>`.

use serde_json::{Map, Value};

/// Numbers that depend on when and where.
const NUMBERS: [&str; 9] =
    ["Created", "Pid", "time", "timeNano", "mtime", "MemTotal", "NCPU", "PublicPort", "execDuration"];
/// Numbers that may be zero here and not there.
const SIZES: [&str; 14] = [
    "Size",
    "SizeRw",
    "SizeRootFs",
    "LayersSize",
    "SpaceReclaimed",
    "VirtualSize",
    "NFd",
    "NGoroutines",
    "NEventsListener",
    "Images",
    "Containers",
    "ContainersRunning",
    "ContainersPaused",
    "ContainersStopped",
];
/// Lists whose order says nothing.
const SETS: [&str; 8] = ["Mounts", "Ports", "Volumes", "Aliases", "DNSNames", "RepoTags", "ExecIDs", "Networks"];
/// Addresses that the tables ask for stay as they are.
const ASKED: [&str; 8] = ["10.77.", "02:77:", "0.0.0.0", "127.0.", "fd77:", "203.0.113.", "1.2.3.", "::"];

/// Normalises a value in place; `known` are values with the names that they were kept under.
pub fn normalise(value: &mut Value, known: &[(String, String)]) {
    visit("", value, known);
}

fn visit(key: &str, value: &mut Value, known: &[(String, String)]) {
    match value {
        Value::String(text) => *text = string(text, known),
        Value::Number(number) if SIZES.contains(&key) && number.as_i64() != Some(-1) => *value = "<number>".into(),
        Value::Number(number) if NUMBERS.contains(&key) && number.as_f64() != Some(0.0) => {
            // A sign that says "not measured" is kept.
            *value = if number.as_i64() == Some(-1) { Value::from(-1) } else { "<number>".into() };
        }
        Value::Array(list) => {
            // A zone in use has images of its own.
            if key == "Images" && list.iter().any(is_ours) {
                list.retain(is_ours);
            }
            list.iter_mut().for_each(|one| visit(key, one, known));
            if SETS.contains(&key) {
                list.sort_by_key(std::string::ToString::to_string);
            }
        }
        Value::Object(map) => {
            let old = std::mem::take(map);
            *map = old
                .into_iter()
                .map(|(key, mut one)| {
                    visit(&key, &mut one, known);
                    (string(&key, known), one)
                })
                .collect::<Map<_, _>>();
        }
        _ => {}
    }
}

/// Whether it is the image that the tables use.
fn is_ours(image: &Value) -> bool {
    image["RepoTags"].as_array().is_some_and(|tags| tags.iter().any(|tag| tag == "compare:latest"))
}

/// Normalises one text.
#[must_use]
pub fn string(text: &str, known: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    for (name, value) in known {
        text = text.replace(value, &format!("{{{name}}}"));
        if is_hex(value, 64) {
            text = text.replace(&value[..12], &format!("{{{name}:12}}"));
        }
    }
    if is_time(&text) {
        return if text.starts_with("0001-01-01T00:00:00") { text } else { "<time>".into() };
    }
    if is_address(&text) && !ASKED.iter().any(|known| text.starts_with(known)) {
        return "<address>".into();
    }
    ids(&status(&text))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_time(text: &str) -> bool {
    let b = text.as_bytes();
    b.len() >= 20 && b[4] == b'-' && b[10] == b'T' && b[13] == b':' && b[..4].iter().all(u8::is_ascii_digit)
}

fn is_address(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let mac = address.len() == 17 && address.split(':').all(|part| is_hex(part, 2));
    mac || (address.parse::<std::net::IpAddr>().is_ok() && prefix.parse::<u8>().is_ok())
}

/// `Up 3 seconds` says the same as `Up 4 seconds`.
fn status(text: &str) -> String {
    if let Some(rest) = text.strip_prefix("Up ") {
        let note = rest.find(" (").map_or("", |at| &rest[at..]);
        return format!("Up <duration>{note}");
    }
    match text.split_once(") ") {
        Some((code, rest)) if code.starts_with("Exited (") && rest.ends_with(" ago") => {
            format!("{code}) <duration> ago")
        }
        _ => text.to_owned(),
    }
}

/// Runs of 64 hexadecimal digits become `<id>`.
fn ids(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run = String::new();
    for c in text.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_ascii_hexdigit() => run.push(c),
            other => {
                out += if run.len() == 64 { "<id>" } else { &run };
                run.clear();
                out.extend(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_must_differ_is_taken_out_and_nothing_else() {
        let id = "ab".repeat(32);
        let known = [("c1".to_owned(), id.clone())];
        let mut value = json!({
            "Id": id, "Other": "cd".repeat(32), "At": "2026-11-21T08:24:32.19Z", "Zero": "0001-01-01T00:00:00Z", "IP": "172.17.0.2",
            "Asked": "10.77.0.9", "Text": format!("container {} runs", &id[..12]), "Status": "Up 3 seconds (Paused)", "Pid": 7, "Code": 7,
        });
        normalise(&mut value, &known);
        let wanted = json!({
            "Id": "{c1}", "Other": "<id>", "At": "<time>", "Zero": "0001-01-01T00:00:00Z", "IP": "<address>", "Asked": "10.77.0.9",
            "Text": "container {c1:12} runs", "Status": "Up <duration> (Paused)", "Pid": "<number>", "Code": 7,
        });
        assert_eq!(value, wanted);
    }
}
