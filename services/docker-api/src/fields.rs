//! Which field of which answer exists in which version of the API: one table, read by the serializers and by the tests.
//!
//! Answers are made as the newest version has them; [`fit`] takes away what an older one does not have and adds what a
//! newer one has given up. Sources: the API's version history, and Docker Engine's answers.

use crate::version::ApiVersion;
use serde_json::{Value, json};

/// An answer with fields that depend on the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `GET /info`.
    Info,
    /// `GET /containers/{id}/json`.
    Container,
    /// An entry of `GET /containers/json`.
    ContainerSummary,
    /// `GET /images/{name}/json`.
    Image,
    /// An entry of `GET /images/json`.
    ImageSummary,
    /// `GET /networks/{id}`, and an entry of `GET /networks`.
    Network,
    /// `GET /system/df`.
    DiskUsage,
}

/// What an added field holds.
#[derive(Clone, Copy, Debug)]
pub enum Legacy {
    /// The answer has it anyway: it is only taken away outside its versions.
    Own,
    /// JSON that never changes.
    Fixed(&'static str),
    /// What stands at this other pointer.
    Copy(&'static str),
}

/// Fields of one object that came and went together.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    /// The answers that they are in.
    pub answers: &'static [Answer],
    /// The object: a JSON pointer; `*` stands for every key or entry.
    pub of: &'static str,
    /// Their names.
    pub names: &'static [&'static str],
    /// The first version that has them.
    pub from: u32,
    /// The last one.
    pub until: u32,
    /// What they hold.
    pub value: Legacy,
}

const NEVER: u32 = u32::MAX;

const fn since(answers: &'static [Answer], of: &'static str, names: &'static [&'static str], from: u32) -> Fields {
    Fields { answers, of, names, from, until: NEVER, value: Legacy::Own }
}

const fn until(
    answers: &'static [Answer],
    of: &'static str,
    names: &'static [&'static str],
    until: u32,
    value: Legacy,
) -> Fields {
    Fields { answers, of, names, from: 0, until, value }
}

/// The configuration of the container that an image was made of: there is none.
const NO_CONTAINER_CONFIG: &str = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,
    "OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null}"#;
const NULL: Legacy = Legacy::Fixed("null");
const FALSE: Legacy = Legacy::Fixed("false");
const EMPTY: Legacy = Legacy::Fixed("\"\"");
const CONTAINERS: &[Answer] = &[Answer::Container, Answer::ContainerSummary];

/// The table.
pub const FIELDS: &[Fields] = &[
    since(&[Answer::Info], "/Runtimes/*", &["status"], 44),
    since(&[Answer::Info], "", &["Containerd"], 46),
    since(&[Answer::Info], "", &["FirewallBackend"], 49),
    since(&[Answer::Info], "", &["DiscoveredDevices"], 50),
    until(&[Answer::Info], "", &["ExecutionDriver"], 24, Legacy::Fixed("\"<not supported>\"")),
    until(
        &[Answer::Info],
        "/RegistryConfig",
        &["AllowNondistributableArtifactsCIDRs", "AllowNondistributableArtifactsHostnames"],
        48,
        NULL,
    ),
    until(&[Answer::Info], "/ContainerdCommit", &["Expected"], 48, Legacy::Copy("/ContainerdCommit/ID")),
    until(&[Answer::Info], "/RuncCommit", &["Expected"], 48, Legacy::Copy("/RuncCommit/ID")),
    until(&[Answer::Info], "/InitCommit", &["Expected"], 48, Legacy::Copy("/InitCommit/ID")),
    until(&[Answer::Info], "", &["BridgeNfIptables", "BridgeNfIp6tables"], 49, FALSE),
    since(CONTAINERS, "/NetworkSettings/Networks/*", &["GwPriority"], 48),
    since(CONTAINERS, "", &["ImageManifestDescriptor"], 48),
    since(&[Answer::ContainerSummary], "/HostConfig", &["Annotations"], 46),
    until(&[Answer::Container], "/NetworkSettings", &["Bridge", "LinkLocalIPv6Address"], 51, EMPTY),
    until(&[Answer::Container], "/NetworkSettings", &["HairpinMode"], 51, FALSE),
    until(&[Answer::Container], "/NetworkSettings", &["LinkLocalIPv6PrefixLen"], 51, Legacy::Fixed("0")),
    until(&[Answer::Container], "/NetworkSettings", &["SecondaryIPAddresses", "SecondaryIPv6Addresses"], 51, NULL),
    until(&[Answer::Container], "/Config", &["OnBuild"], 51, NULL),
    until(&[Answer::Image, Answer::ImageSummary], "", &["VirtualSize"], 43, Legacy::Copy("/Size")),
    until(&[Answer::DiskUsage], "/Images/*", &["VirtualSize"], 43, Legacy::Copy("/Size")),
    until(&[Answer::Image], "", &["ContainerConfig"], 44, Legacy::Fixed(NO_CONTAINER_CONFIG)),
    until(&[Answer::Image], "/Config", &["Hostname", "Domainname", "Image"], 49, EMPTY),
    until(
        &[Answer::Image],
        "/Config",
        &["AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"],
        49,
        FALSE,
    ),
    since(&[Answer::Network], "", &["EnableIPv4"], 48),
];

/// Gives an answer the shape of `version`.
pub fn fit(answer: Answer, version: ApiVersion, value: &mut Value) {
    for fields in FIELDS.iter().filter(|f| f.answers.contains(&answer)) {
        let present = (fields.from..=fields.until).contains(&version.0);
        let steps: Vec<&str> = fields.of.split('/').skip(1).collect();
        visit(value, &steps, &mut |place, whole| {
            for name in fields.names {
                match (present, fields.value) {
                    (false, _) => {
                        place.remove(*name);
                    }
                    (true, Legacy::Own) => {}
                    (true, Legacy::Fixed(text)) => {
                        place.entry(*name).or_insert_with(|| serde_json::from_str(text).unwrap_or_default());
                    }
                    (true, Legacy::Copy(from)) => {
                        // Below a list the pointer is the entry's.
                        let key_of = from.rsplit('/').next().unwrap_or(from);
                        let copy =
                            place.get(key_of).filter(|_| fields.of.contains('*')).or_else(|| whole.pointer(from));
                        let copy = copy.cloned().unwrap_or(json!(""));
                        place.entry(*name).or_insert(copy);
                    }
                }
            }
        });
    }
}

type Change<'a> = dyn FnMut(&mut serde_json::Map<String, Value>, &Value) + 'a;

fn visit(value: &mut Value, steps: &[&str], change: &mut Change<'_>) {
    // Copies are small: pointers that are copied from name single values.
    let whole = if steps.len() <= 1 { value.clone() } else { Value::Null };
    walk(value, steps, &whole, change);
}

fn walk(value: &mut Value, steps: &[&str], whole: &Value, change: &mut Change<'_>) {
    match (steps, value) {
        ([], Value::Object(map)) => change(map, whole),
        (["*", rest @ ..], Value::Object(map)) => map.values_mut().for_each(|v| walk(v, rest, whole, change)),
        (["*", rest @ ..], Value::Array(list)) => list.iter_mut().for_each(|v| walk(v, rest, whole, change)),
        ([key, rest @ ..], Value::Object(map)) => {
            if let Some(next) = map.get_mut(*key) {
                walk(next, rest, whole, change);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_comes_and_goes_with_its_versions() {
        for field in FIELDS {
            assert!(field.from <= field.until && (field.of.is_empty() || field.of.starts_with('/')), "{field:?}");
        }
        let mut old = json!({"Size": 5, "Config": {"Cmd": null}});
        fit(Answer::Image, ApiVersion(40), &mut old);
        assert_eq!(
            (&old["VirtualSize"], &old["Config"]["Tty"], &old["ContainerConfig"]["Cmd"]),
            (&json!(5), &json!(false), &Value::Null)
        );
        let mut new = json!({"Size": 5, "Config": {"Cmd": null}});
        fit(Answer::Image, ApiVersion(51), &mut new);
        assert_eq!(new, json!({"Size": 5, "Config": {"Cmd": null}}));
        let mut df = json!({"Images": [{"Size": 1}, {"Size": 2}]});
        fit(Answer::DiskUsage, ApiVersion(41), &mut df);
        assert_eq!(df["Images"][1]["VirtualSize"], 2);
        let mut networks = json!({"NetworkSettings": {"Networks": {"a": {"GwPriority": 0}}}});
        fit(Answer::ContainerSummary, ApiVersion(47), &mut networks);
        assert_eq!(networks["NetworkSettings"]["Networks"]["a"], json!({}));
    }
}
