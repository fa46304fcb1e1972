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

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The answer that it is in.
    pub answer: Answer,
    /// A JSON pointer; `*` stands for every key or entry.
    pub path: &'static str,
    /// The first version that has it.
    pub from: u32,
    /// The last one.
    pub until: u32,
    /// What it holds.
    pub value: Legacy,
}

const NEVER: u32 = u32::MAX;

const fn since(answer: Answer, path: &'static str, from: u32) -> Field {
    Field { answer, path, from, until: NEVER, value: Legacy::Own }
}

const fn fixed(answer: Answer, path: &'static str, until: u32, json: &'static str) -> Field {
    Field { answer, path, from: 0, until, value: Legacy::Fixed(json) }
}

const fn copied(answer: Answer, path: &'static str, until: u32, from: &'static str) -> Field {
    Field { answer, path, from: 0, until, value: Legacy::Copy(from) }
}

/// The configuration of the container that an image was made of: there is none.
const NO_CONTAINER_CONFIG: &str = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,
    "OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null}"#;

/// The table.
pub const FIELDS: &[Field] = &[
    since(Answer::Info, "/Runtimes/*/status", 44),
    since(Answer::Info, "/Containerd", 46),
    since(Answer::Info, "/FirewallBackend", 49),
    since(Answer::Info, "/DiscoveredDevices", 50),
    fixed(Answer::Info, "/ExecutionDriver", 24, "\"<not supported>\""),
    fixed(Answer::Info, "/RegistryConfig/AllowNondistributableArtifactsCIDRs", 48, "null"),
    fixed(Answer::Info, "/RegistryConfig/AllowNondistributableArtifactsHostnames", 48, "null"),
    copied(Answer::Info, "/ContainerdCommit/Expected", 48, "/ContainerdCommit/ID"),
    copied(Answer::Info, "/RuncCommit/Expected", 48, "/RuncCommit/ID"),
    copied(Answer::Info, "/InitCommit/Expected", 48, "/InitCommit/ID"),
    fixed(Answer::Info, "/BridgeNfIptables", 49, "false"),
    fixed(Answer::Info, "/BridgeNfIp6tables", 49, "false"),
    since(Answer::Container, "/NetworkSettings/Networks/*/GwPriority", 48),
    since(Answer::Container, "/ImageManifestDescriptor", 48),
    fixed(Answer::Container, "/NetworkSettings/Bridge", 51, "\"\""),
    fixed(Answer::Container, "/NetworkSettings/HairpinMode", 51, "false"),
    fixed(Answer::Container, "/NetworkSettings/LinkLocalIPv6Address", 51, "\"\""),
    fixed(Answer::Container, "/NetworkSettings/LinkLocalIPv6PrefixLen", 51, "0"),
    fixed(Answer::Container, "/NetworkSettings/SecondaryIPAddresses", 51, "null"),
    fixed(Answer::Container, "/NetworkSettings/SecondaryIPv6Addresses", 51, "null"),
    fixed(Answer::Container, "/Config/OnBuild", 51, "null"),
    since(Answer::ContainerSummary, "/NetworkSettings/Networks/*/GwPriority", 48),
    since(Answer::ContainerSummary, "/HostConfig/Annotations", 46),
    since(Answer::ContainerSummary, "/ImageManifestDescriptor", 48),
    copied(Answer::Image, "/VirtualSize", 43, "/Size"),
    fixed(Answer::Image, "/ContainerConfig", 44, NO_CONTAINER_CONFIG),
    fixed(Answer::Image, "/Config/Hostname", 49, "\"\""),
    fixed(Answer::Image, "/Config/Domainname", 49, "\"\""),
    fixed(Answer::Image, "/Config/AttachStdin", 49, "false"),
    fixed(Answer::Image, "/Config/AttachStdout", 49, "false"),
    fixed(Answer::Image, "/Config/AttachStderr", 49, "false"),
    fixed(Answer::Image, "/Config/Tty", 49, "false"),
    fixed(Answer::Image, "/Config/OpenStdin", 49, "false"),
    fixed(Answer::Image, "/Config/StdinOnce", 49, "false"),
    fixed(Answer::Image, "/Config/Image", 49, "\"\""),
    copied(Answer::ImageSummary, "/VirtualSize", 43, "/Size"),
    since(Answer::Network, "/EnableIPv4", 48),
    copied(Answer::DiskUsage, "/Images/*/VirtualSize", 43, "/Size"),
];

/// Gives an answer the shape of `version`.
pub fn fit(answer: Answer, version: ApiVersion, value: &mut Value) {
    for field in FIELDS.iter().filter(|f| f.answer == answer) {
        let present = (field.from..=field.until).contains(&version.0);
        let steps: Vec<&str> = field.path.split('/').skip(1).collect();
        visit(value, &steps, &mut |place, key, whole| match (present, field.value) {
            (false, _) => {
                place.remove(key);
            }
            (true, Legacy::Own) => {}
            (true, Legacy::Fixed(text)) => {
                place.entry(key).or_insert_with(|| serde_json::from_str(text).unwrap_or_default());
            }
            (true, Legacy::Copy(from)) => {
                // Below a list the pointer is the entry's.
                let key_of = from.rsplit('/').next().unwrap_or(from);
                let copy = place.get(key_of).filter(|_| field.path.contains('*')).or_else(|| whole.pointer(from));
                let copy = copy.cloned().unwrap_or(json!(""));
                place.entry(key).or_insert(copy);
            }
        });
    }
}

type Change<'a> = dyn FnMut(&mut serde_json::Map<String, Value>, &str, &Value) + 'a;

fn visit(value: &mut Value, steps: &[&str], change: &mut Change<'_>) {
    // Copies are small: pointers that are copied from name single values.
    let whole = if steps.len() <= 2 { value.clone() } else { Value::Null };
    walk(value, steps, &whole, change);
}

fn walk(value: &mut Value, steps: &[&str], whole: &Value, change: &mut Change<'_>) {
    match (steps, value) {
        ([key], Value::Object(map)) => change(map, key, whole),
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
            assert!(field.from <= field.until && field.path.starts_with('/'), "{field:?}");
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
