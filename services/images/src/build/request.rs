//! What a client asks for: the parameters of `POST /build` (Docker Engine API), read and checked.

use crate::fail::{Result, invalid};
use crate::manifest::Platform;
use crate::query::Query;
use crate::reference::Reference;
use crate::registry::Credentials;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// A build.
#[derive(Debug, Default)]
pub struct Build {
    /// The references that the image gets.
    pub tags: Vec<Reference>,
    /// The Dockerfile's path in the context.
    pub dockerfile: String,
    /// `--build-arg`; none takes the client's environment, which is not here.
    pub args: BTreeMap<String, Option<String>>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// The last stage to build: name or number.
    pub target: Option<String>,
    /// No step is taken from the cache.
    pub no_cache: bool,
    /// Steps are taken from the cache only if one of these images is there; empty asks for none.
    pub cache_from: Vec<String>,
    /// Base images are pulled even when they are there.
    pub pull: bool,
    /// Only the image's id is told.
    pub quiet: bool,
    /// What the image is for.
    pub platform: Option<Platform>,
    /// HostConfig of the containers that steps run in.
    pub host: Value,
    credentials: HashMap<String, Value>,
}

impl Build {
    /// Reads the parameters and the header `X-Registry-Config`.
    ///
    /// # Errors
    /// `Invalid` for what is not there, with what to do instead.
    pub fn read(query: &Query, registry_config: Option<&str>) -> Result<Self> {
        if query.get("version").is_some_and(|v| v != "1") {
            return Err(invalid(
                "this engine builds without BuildKit: set DOCKER_BUILDKIT=0, or use `docker buildx create --driver docker-container`",
            ));
        }
        for (name, what) in [("squash", "--squash"), ("outputs", "--output"), ("remote", "a remote context")] {
            if query.get(name).is_some_and(|v| !matches!(v, "0" | "false" | "client-session")) {
                return Err(invalid(format!("{what} is not supported by this engine: send the context as an archive")));
            }
        }
        let flag = |name: &str| query.get(name).is_some_and(|v| matches!(v, "1" | "true" | "True" | "t"));
        Ok(Self {
            tags: query.all("t").iter().map(|t| Reference::parse(t)).collect::<Result<_>>()?,
            dockerfile: query.get("dockerfile").unwrap_or("Dockerfile").to_owned(),
            args: json_of(query, "buildargs")?,
            labels: json_of(query, "labels")?,
            target: query.get("target").map(str::to_owned),
            no_cache: flag("nocache"),
            cache_from: json_of(query, "cachefrom")?,
            pull: flag("pull"),
            quiet: flag("q"),
            platform: query.get("platform").map(Platform::parse).transpose()?,
            host: host_config(query)?,
            credentials: registry_config.map(credentials).transpose()?.unwrap_or_default(),
        })
    }

    /// Who we are to the registry of a reference.
    ///
    /// # Errors
    /// `Invalid` when the client sent what are no credentials.
    pub fn credentials_for(&self, reference: &Reference) -> Result<Credentials> {
        let keys: &[&str] = match reference.domain.as_str() {
            "docker.io" => &["docker.io", "https://index.docker.io/v1/", "index.docker.io"],
            domain => &[domain],
        };
        match keys.iter().find_map(|k| self.credentials.get(*k)) {
            Some(value) => Credentials::from_header(&URL_SAFE.encode(value.to_string())),
            None => Ok(Credentials::default()),
        }
    }
}

fn json_of<T: serde::de::DeserializeOwned + Default>(query: &Query, name: &str) -> Result<T> {
    let text = query.get(name).filter(|t| *t != "null");
    let read =
        |t: &str| serde_json::from_str(t).map_err(|e| invalid(format!("the parameter {name} is not valid: {e}")));
    text.map_or_else(|| Ok(T::default()), read)
}

fn host_config(query: &Query) -> Result<Value> {
    let mut host = json!({});
    if let Some(mode) = query.get("networkmode") {
        host["NetworkMode"] = json!(mode);
    }
    let hosts: Vec<String> = query.all("extrahosts").iter().flat_map(|h| h.split(',')).map(str::to_owned).collect();
    if !hosts.is_empty() {
        host["ExtraHosts"] = json!(hosts);
    }
    for (name, field) in [("memory", "Memory"), ("memswap", "MemorySwap"), ("shmsize", "ShmSize")] {
        if let Some(text) = query.get(name) {
            let number: i64 = text.parse().map_err(|_| invalid(format!("the parameter {name} is no number")))?;
            if number > 0 {
                host[field] = json!(number);
            }
        }
    }
    let ulimits: Value = json_of(query, "ulimits")?;
    if ulimits.is_array() {
        host["Ulimits"] = ulimits;
    }
    Ok(host)
}

fn credentials(header: &str) -> Result<HashMap<String, Value>> {
    let decoded = URL_SAFE
        .decode(header)
        .or_else(|_| URL_SAFE_NO_PAD.decode(header.trim_end_matches('=')))
        .or_else(|_| STANDARD.decode(header));
    let bytes = decoded.map_err(|_| invalid("the header X-Registry-Config is not base64"))?;
    if bytes.is_empty() || bytes == b"null" {
        return Ok(HashMap::new());
    }
    serde_json::from_slice(&bytes).map_err(|_| invalid("the header X-Registry-Config is not JSON in base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_what_is_not_there_is_refused_with_what_to_do() {
        let query = "t=a&t=b:2&buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D&labels=null&nocache=1&memory=0&extrahosts=a%3A1.2.3.4&networkmode=none";
        let config = URL_SAFE.encode(r#"{"r.example:5000":{"username":"me","password":"x"}}"#);
        let build = Build::read(&Query::parse(Some(query)), Some(&config)).unwrap();
        assert_eq!((build.tags.len(), build.no_cache, build.pull), (2, true, false));
        assert_eq!(build.args, BTreeMap::from([("A".to_owned(), Some("1".to_owned())), ("B".to_owned(), None)]));
        assert_eq!(build.host, json!({"NetworkMode": "none", "ExtraHosts": ["a:1.2.3.4"]}));
        let of = |name: &str| build.credentials_for(&Reference::parse(name).unwrap()).unwrap();
        assert_eq!((of("r.example:5000/x").username(), of("x").username()), ("me", ""));
        let refused = Build::read(&Query::parse(Some("version=2&session=x")), None).unwrap_err();
        assert!(refused.message.contains("DOCKER_BUILDKIT=0"));
        for query in ["squash=1", "remote=https://x/y.git", "buildargs=x", "t=UPPER"] {
            assert!(Build::read(&Query::parse(Some(query)), None).is_err(), "{query}");
        }
    }
}
