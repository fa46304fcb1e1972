//! The JSON documents of images (OCI image specification; Docker's v2 schema 2), as far as they are needed here.
//!
//! Documents are kept as the bytes they came in; these types only read them.

use crate::digest::Digest;
use crate::fail::{MAX_LAYERS, Result, invalid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI's manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's list of manifests.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Layers that can be unpacked; how they are compressed is seen in their first bytes.
const LAYERS: [&str; 7] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.container.image.rootfs.diff+x-gtar",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
];

/// Points to content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:HEX`.
    pub digest: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Which machines it is for (in an index).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Anything.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor of content that is known.
    #[must_use]
    pub fn new(media_type: &str, digest: &Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest: digest.to_string(),
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The digest, checked.
    ///
    /// # Errors
    /// `Invalid` when it is malformed.
    pub fn digest(&self) -> Result<Digest> {
        Digest::parse(&self.digest)
    }
}

/// Which machines an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`, …
    #[serde(default)]
    pub os: String,
    /// `v7`, …; empty when there is one kind only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        Self { architecture: "amd64".into(), os: "linux".into(), variant: String::new() }
    }

    /// Reads `OS[/ARCHITECTURE[/VARIANT]]`, or an architecture alone, in the words that people use.
    ///
    /// # Errors
    /// `Invalid` for an operating system that no image here can have.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.trim().split('/').map(str::to_ascii_lowercase);
        let first = parts.next().unwrap_or_default();
        let (os, architecture) = match (first.as_str(), parts.next()) {
            ("linux", Some(architecture)) => (first, architecture),
            ("linux", None) => (first, "amd64".to_owned()),
            (_, None) if !first.is_empty() => ("linux".to_owned(), first),
            _ => return Err(invalid(format!("the platform {text:.50?} is not supported: only linux images run here"))),
        };
        let variant = parts.next().unwrap_or_default();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64".to_owned(), String::new()),
            ("aarch64" | "arm64", "" | "v8" | "8") => ("arm64".to_owned(), String::new()),
            ("i386" | "i486" | "i586" | "i686", _) => ("386".to_owned(), String::new()),
            ("armhf", _) | ("arm", "7" | "") => ("arm".to_owned(), "v7".to_owned()),
            _ => (architecture, variant),
        };
        Ok(Self { architecture, os, variant })
    }

    /// Whether what is for `other` is what was asked for.
    #[must_use]
    pub fn takes(&self, other: &Self) -> bool {
        let variant = |p: &Self| match (p.architecture.as_str(), p.variant.as_str()) {
            ("arm64", "v8") | ("amd64", "v1") => String::new(),
            ("arm", "") => "v7".to_owned(),
            (_, v) => v.to_owned(),
        };
        let same = self.os == other.os && self.architecture == other.architecture;
        same && (self.variant.is_empty() && self.architecture != "arm" || variant(self) == variant(other))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// An image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What kind of manifest it is.
    #[serde(default)]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// `Invalid` when it is no image's manifest, or names malformed digests.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = parse(bytes, "manifest")?;
        if manifest.schema_version != 2 {
            return Err(invalid(format!(
                "a manifest of schema version {} is not supported, only 2",
                manifest.schema_version
            )));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(invalid(format!(
                "the image has {} layers, at most {MAX_LAYERS} are possible",
                manifest.layers.len()
            )));
        }
        let config = manifest.config.media_type.as_str();
        if !matches!(config, "" | OCI_CONFIG | DOCKER_CONFIG | "application/octet-stream") {
            return Err(invalid(format!(
                "this is no image but an artifact of the type {config:.100?}, which cannot run"
            )));
        }
        if let Some(layer) = manifest.layers.iter().find(|l| !l.media_type.is_empty() && !is_layer(&l.media_type)) {
            let what = &layer.media_type;
            let foreign = what.contains("foreign") || what.contains("nondistributable");
            return Err(invalid(match foreign {
                true => format!(
                    "the image has a foreign layer ({what:.100}), which its registry does not have: not supported"
                ),
                false => {
                    format!("the image has a layer of the type {what:.100?}: tar, tar+gzip and tar+zstd are supported")
                }
            }));
        }
        manifest.config.digest()?;
        manifest.layers.iter().try_for_each(|l| l.digest().map(|_| ()))?;
        Ok(manifest)
    }
}

/// A list of manifests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What kind of list it is.
    #[serde(default)]
    pub media_type: String,
    /// The manifests.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads a list of manifests.
    ///
    /// # Errors
    /// `Invalid` when it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        parse(bytes, "index")
    }

    /// The manifest for a platform.
    #[must_use]
    pub fn for_platform(&self, platform: &Platform) -> Option<&Descriptor> {
        self.manifests.iter().find(|d| d.platform.as_ref().is_some_and(|p| platform.takes(p)))
    }
}

/// An image's configuration, the part that is needed to build its disk.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// For which operating system.
    #[serde(default)]
    pub os: String,
    /// For which processors.
    #[serde(default)]
    pub architecture: String,
    /// For which kind of them.
    #[serde(default)]
    pub variant: String,
    /// The layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The layers by the hashes of their uncompressed archives.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RootFs {
    /// Lowest first.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

impl Config {
    /// Reads a configuration; returns it and the layers' ids.
    ///
    /// # Errors
    /// `Invalid` when it is none, or is not for Linux.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Vec<Digest>)> {
        let config: Self = parse(bytes, "image configuration")?;
        if !config.os.is_empty() && config.os != "linux" {
            return Err(invalid(format!("the image is for {:.50?}; only linux images run here", config.os)));
        }
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(invalid(format!(
                "the image has {} layers, at most {MAX_LAYERS} are possible",
                config.rootfs.diff_ids.len()
            )));
        }
        let ids = config.rootfs.diff_ids.iter().map(|d| Digest::parse(d)).collect::<Result<Vec<_>>>()?;
        Ok((config, ids))
    }
}

/// Whether a document with this media type (or, without one, with these fields) is a list of manifests.
#[must_use]
pub fn is_index(media_type: &str, bytes: &[u8]) -> bool {
    match media_type {
        OCI_INDEX | DOCKER_LIST => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        _ => serde_json::from_slice::<serde_json::Value>(bytes).is_ok_and(|v| v.get("manifests").is_some()),
    }
}

fn is_layer(media_type: &str) -> bool {
    LAYERS.contains(&media_type) || media_type == "application/octet-stream"
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| invalid(format!("the {what} is not valid: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_people_write_them_and_chosen_from_an_index() {
        for (text, full) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux", "linux/amd64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), full, "{text}");
        }
        assert!(Platform::parse("windows/amd64").is_err());
        assert!(Platform::parse("").is_err());
        let entry = |os: &str, architecture: &str, variant: &str| {
            let mut d =
                Descriptor::new(OCI_MANIFEST, &Digest::of(format!("{os}{architecture}{variant}").as_bytes()), 1);
            d.platform = Some(Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() });
            d
        };
        let manifests = vec![
            entry("unknown", "unknown", ""),
            entry("linux", "arm", "v6"),
            entry("linux", "arm", "v7"),
            entry("linux", "arm64", "v8"),
            entry("linux", "amd64", ""),
        ];
        let index = Index { schema_version: 2, media_type: OCI_INDEX.into(), manifests };
        let chosen = |text: &str| {
            let found = index.for_platform(&Platform::parse(text).unwrap())?;
            found.platform.as_ref().map(ToString::to_string)
        };
        assert_eq!(chosen("linux/arm").as_deref(), Some("linux/arm/v7"));
        assert_eq!(chosen("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(chosen("linux/arm64").as_deref(), Some("linux/arm64/v8"));
        assert_eq!(chosen("linux/riscv64"), None);
        assert_eq!(index.for_platform(&Platform::here()), index.manifests.last());
    }

    #[test]
    fn artifacts_foreign_layers_and_old_schemas_are_refused_by_name() {
        let digest = Digest::of(b"x");
        let manifest = |config: &str, layer: &str| {
            let json = serde_json::json!({"schemaVersion": 2,
                "config": {"mediaType": config, "digest": digest.to_string(), "size": 1},
                "layers": [{"mediaType": layer, "digest": digest.to_string(), "size": 1}]});
            Manifest::parse(json.to_string().as_bytes()).map_err(|e| e.message)
        };
        assert!(manifest(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd").is_ok());
        assert!(manifest(DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip").is_ok());
        let helm =
            manifest("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip");
        assert!(helm.unwrap_err().contains("no image but an artifact"));
        let foreign = manifest(DOCKER_CONFIG, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        assert!(foreign.unwrap_err().contains("foreign layer"));
        let sealed = manifest(OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        assert!(sealed.unwrap_err().contains("tar+gzip+encrypted"));
        assert!(Manifest::parse(br#"{"schemaVersion":1,"config":{"digest":"x"}}"#).is_err());
    }
}
