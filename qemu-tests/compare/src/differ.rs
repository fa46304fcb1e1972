//! What two JSON values differ in, path by path.

use serde_json::Value;
use std::collections::BTreeSet;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where, as a JSON pointer.
    pub path: String,
    /// Docker Engine's, as JSON; nothing when it has none.
    pub engine: Option<String>,
    /// The zone's.
    pub ours: Option<String>,
}

/// Compares every key; with `shape`, only types, and of lists the first entry.
#[must_use]
pub fn differences(engine: &Value, ours: &Value, shape: bool) -> Vec<Difference> {
    let mut found = Vec::new();
    walk("", Some(engine), Some(ours), shape, &mut found);
    found
}

fn walk(path: &str, engine: Option<&Value>, ours: Option<&Value>, shape: bool, found: &mut Vec<Difference>) {
    match (engine, ours) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let step = key.replace('~', "~0").replace('/', "~1");
                walk(&format!("{path}/{step}"), a.get(key), b.get(key), shape, found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if shape => {
            if let (Some(a), Some(b)) = (a.first(), b.first()) {
                walk(&format!("{path}/0"), Some(a), Some(b), shape, found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                walk(&format!("{path}/{index}"), a.get(index), b.get(index), shape, found);
            }
        }
        (Some(a), Some(b)) if a == b || (shape && kind(a) == kind(b)) => {}
        (a, b) => found.push(Difference { path: path.to_owned(), engine: text(a), ours: text(b) }),
    }
}

fn text(value: Option<&Value>) -> Option<String> {
    value.map(|v| {
        let text = v.to_string();
        if text.chars().count() > 300 { format!("{}…", text.chars().take(300).collect::<String>()) } else { text }
    })
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_and_absent_and_empty_are_three_things() {
        let paths = |a, b, shape| differences(&a, &b, shape).into_iter().map(|d| d.path).collect::<Vec<_>>();
        assert_eq!(paths(json!({"a": null}), json!({}), false), ["/a"]);
        assert_eq!(paths(json!({"a": null}), json!({"a": []}), true), ["/a"]);
        assert_eq!(paths(json!({"a": 1}), json!({"a": 2}), true), [""; 0]);
        assert_eq!(paths(json!([1, 2]), json!([1]), false), ["/1"]);
        assert_eq!(paths(json!({"a/b": 1}), json!({"a/b": "1"}), false), ["/a~1b"]);
    }
}
