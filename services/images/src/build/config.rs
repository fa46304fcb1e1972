//! What instructions do to an image's configuration: in a Dockerfile, and as `--change` of import and commit.

use super::files;
use super::parse::Instruction;
use super::words::{Values, expand, split};
use crate::fail::{Result, invalid};
use serde_json::{Map, Value, json};

/// The `config` of an image's configuration.
pub type Config = Map<String, Value>;

/// The instructions that only change the configuration.
pub const KNOWN: [&str; 12] = [
    "CMD",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "ONBUILD",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Applies one instruction; `values` are what its variables stand for.
///
/// # Errors
/// `Invalid` when it is none of [`KNOWN`], or is written wrong.
pub fn apply(config: &mut Config, instruction: &Instruction, values: &Values, escape: char) -> Result<()> {
    let i = instruction;
    let one = || expand(&i.rest, values, escape).map_err(|e| i.error(e.message));
    match i.name.as_str() {
        "CMD" => drop(config.insert("Cmd".into(), command(config, i))),
        "ENTRYPOINT" => drop(config.insert("Entrypoint".into(), command(config, i))),
        "ENV" => {
            for (name, value) in pairs(i, values, escape)? {
                set_env(config, &name, &value);
            }
        }
        "EXPOSE" => {
            for word in list(i, values, escape)? {
                extend(config, "ExposedPorts", &port(&word).map_err(|e| i.error(e))?, json!({}));
            }
        }
        "HEALTHCHECK" => drop(config.insert("Healthcheck".into(), health(config, i)?)),
        "LABEL" => {
            for (name, value) in pairs(i, values, escape)? {
                extend(config, "Labels", &name, json!(value));
            }
        }
        "ONBUILD" => {
            let word = i.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
            if matches!(word.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
                return Err(i.error(format!("{word} isn't allowed as an ONBUILD trigger")));
            }
            let triggers = config.entry("OnBuild").or_insert_with(|| json!([]));
            if !triggers.is_array() {
                *triggers = json!([]);
            }
            triggers.as_array_mut().map(|t| t.push(json!(i.rest))).unwrap_or_default();
        }
        "SHELL" => {
            let shell = i
                .json
                .as_ref()
                .filter(|s| !s.is_empty())
                .ok_or_else(|| i.error("it requires the arguments to be in JSON form"))?;
            config.insert("Shell".into(), json!(shell));
        }
        "STOPSIGNAL" => drop(config.insert("StopSignal".into(), json!(one()?))),
        "USER" => drop(config.insert("User".into(), json!(one()?))),
        "VOLUME" => {
            for path in list(i, values, escape)? {
                extend(config, "Volumes", &path, json!({}));
            }
        }
        "WORKDIR" => {
            let path = workdir(config, &one()?);
            config.insert("WorkingDir".into(), json!(path));
        }
        other => return Err(invalid(format!("{other:.50?} is not a valid change: use {}", KNOWN.join(", ")))),
    }
    Ok(())
}

/// A path as WORKDIR takes it: relative to the one before.
pub fn workdir(config: &Config, path: &str) -> String {
    let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{before}/{path}") };
    format!("/{}", files::clean(&path))
}

/// The shell that commands are given to.
pub fn shell(config: &Config) -> Vec<String> {
    let own = config.get("Shell").and_then(|s| serde_json::from_value(s.clone()).ok());
    own.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()])
}

/// A command as a list: JSON form as it is, else through the shell.
pub fn command(config: &Config, i: &Instruction) -> Value {
    match &i.json {
        Some(list) => json!(list),
        None if i.rest.is_empty() => Value::Null,
        None => json!([shell(config), vec![i.rest.clone()]].concat()),
    }
}

/// The environment's values.
pub fn env(config: &Config) -> Values {
    let list = config.get("Env").and_then(Value::as_array);
    let pairs = list.into_iter().flatten().filter_map(|e| e.as_str()?.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn set_env(config: &mut Config, name: &str, value: &str) {
    let mut list: Vec<String> =
        config.get("Env").and_then(|e| serde_json::from_value(e.clone()).ok()).unwrap_or_default();
    let line = format!("{name}={value}");
    match list.iter_mut().find(|e| e.split('=').next() == Some(name)) {
        Some(known) => *known = line,
        None => list.push(line),
    }
    config.insert("Env".into(), json!(list));
}

fn extend(config: &mut Config, field: &str, name: &str, value: Value) {
    let object = config.entry(field).or_insert_with(|| json!({}));
    if !object.is_object() {
        *object = json!({});
    }
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// `A=1 B="two words"`, or the old form `A the rest`.
///
/// # Errors
/// `Invalid` when a word is neither.
pub fn pairs(i: &Instruction, values: &Values, escape: char) -> Result<Vec<(String, String)>> {
    let ex = |text: &str| expand(text, values, escape).map_err(|e| i.error(e.message));
    let words = split(&i.rest, escape);
    let first = words.first().map(String::as_str).unwrap_or_default();
    if !first.contains('=') {
        let (name, value) =
            i.rest.split_once(char::is_whitespace).ok_or_else(|| i.error("it must have two arguments"))?;
        return Ok(vec![(ex(name)?, ex(value.trim())?)]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((ex(name)?, ex(value)?)),
        _ => Err(i.error(format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value"))),
    };
    words.iter().map(pair).collect()
}

/// Words, or a JSON list, with values.
///
/// # Errors
/// `Invalid` for a variable that is written wrong.
pub fn list(i: &Instruction, values: &Values, escape: char) -> Result<Vec<String>> {
    let words = i.json.clone().unwrap_or_else(|| split(&i.rest, escape));
    let expanded = words.iter().map(|w| expand(w, values, escape).map_err(|e| i.error(e.message)));
    Ok(expanded.collect::<Result<Vec<_>>>()?.into_iter().filter(|w| !w.is_empty()).collect())
}

fn port(text: &str) -> std::result::Result<String, String> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let good = numbers.split('-').all(|n| n.parse::<u16>().is_ok_and(|n| n > 0));
    let protocol = protocol.to_ascii_lowercase();
    match good && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        true => Ok(format!("{numbers}/{protocol}")),
        false => Err(format!("invalid containerPort: {text}")),
    }
}

fn health(config: &Config, i: &Instruction) -> Result<Value> {
    let (word, rest) = i.rest.split_once(char::is_whitespace).unwrap_or((&i.rest, ""));
    if word.eq_ignore_ascii_case("NONE") {
        return Ok(json!({"Test": ["NONE"]}));
    }
    if !word.eq_ignore_ascii_case("CMD") {
        return Err(i.error(format!("unknown type {word:?} (try CMD)")));
    }
    let rest = rest.trim();
    let test: Vec<String> = match serde_json::from_str::<Vec<String>>(rest) {
        Ok(list) => [vec!["CMD".to_owned()], list].concat(),
        Err(_) if config.contains_key("Shell") => {
            [vec!["CMD".to_owned()], shell(config), vec![rest.to_owned()]].concat()
        }
        Err(_) => vec!["CMD-SHELL".into(), rest.into()],
    };
    let mut health = json!({"Test": test});
    for (name, value) in &i.flags {
        let field = match name.as_str() {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => {
                health["Retries"] = json!(value.parse::<u32>().map_err(|_| i.error("--retries wants a number"))?);
                continue;
            }
            other => return Err(i.error(format!("unknown flag: {other}"))),
        };
        health[field] =
            json!(duration_ns(value).ok_or_else(|| i.error(format!("--{name} wants a duration, like 30s")))?);
    }
    Ok(health)
}

/// Go's durations, `1m30s`, in nanoseconds.
fn duration_ns(text: &str) -> Option<u64> {
    let (mut total, mut rest) = (0.0_f64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit_on) = rest.split_at(digits);
        let (unit, factor) =
            [("ms", 1e6), ("us", 1e3), ("µs", 1e3), ("ns", 1.0), ("h", 3600e9), ("m", 60e9), ("s", 1e9)]
                .into_iter()
                .find(|(unit, _)| unit_on.starts_with(unit))?;
        total += number.parse::<f64>().ok()? * factor;
        rest = &unit_on[unit.len()..];
    }
    (1.0..1e19).contains(&total).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::super::parse::read;
    use super::*;

    fn config(changes: &[&str]) -> Result<Value> {
        let mut c = Config::new();
        for change in changes {
            let values = env(&c);
            apply(&mut c, &read(1, change)?, &values, '\\')?;
        }
        Ok(Value::Object(c))
    }

    #[test]
    fn instructions_set_the_configuration() {
        let made = config(&[
            "CMD [\"a\",\"b\"]",
            "entrypoint echo hi",
            "ENV A=1 B=\"x y\" C=a\\ b",
            "ENV OLD the rest $A",
            "ENV A=2",
            "EXPOSE 80 53/udp $A",
            "LABEL k=v \"with space\"='q'",
            "USER 1000:$A",
            "WORKDIR /w",
            "WORKDIR sub/../dir",
            "VOLUME [\"/data\"]",
            "VOLUME /x /y",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=1m30s --retries=3 CMD curl x",
            "ONBUILD RUN x",
        ]);
        assert_eq!(
            made.unwrap(),
            json!({"Cmd": ["a", "b"], "Entrypoint": ["/bin/sh", "-c", "echo hi"],
                "Env": ["A=2", "B=x y", "C=a b", "OLD=the rest 1"],
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "2/tcp": {}}, "Labels": {"k": "v", "with space": "q"}, "User": "1000:2",
                "WorkingDir": "/w/dir", "Volumes": {"/data": {}, "/x": {}, "/y": {}}, "StopSignal": "SIGINT",
                "Healthcheck": {"Test": ["CMD-SHELL", "curl x"], "Interval": 90_000_000_000_u64, "Retries": 3}, "OnBuild": ["RUN x"]})
        );
        let shell = config(&["SHELL [\"/bin/bash\", \"-lc\"]", "CMD echo"]).unwrap();
        assert_eq!(shell["Cmd"], json!(["/bin/bash", "-lc", "echo"]));
    }

    #[test]
    fn what_is_written_wrong_is_refused() {
        for change in [
            "RUN x",
            "EXPOSE 70000",
            "EXPOSE a",
            "ENV A",
            "ENV A=1 B",
            "SHELL sh",
            "HEALTHCHECK x",
            "ONBUILD FROM a",
            "NO",
        ] {
            assert!(config(&[change]).is_err(), "{change}");
        }
    }
}
