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

    /// The manifest for this machine, linux/amd64.
    #[must_use]
    pub fn for_this_machine(&self) -> Option<&Descriptor> {
        let fits = |p: &Platform| p.os == "linux" && p.architecture == "amd64";
        self.manifests.iter().find(|d| d.platform.as_ref().is_some_and(fits))
    }
}

/// An image's configuration, the part that is needed to build its disk.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// For which operating system.
    #[serde(default)]
    pub os: String,
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

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| invalid(format!("the {what} is not valid: {e}")))
}
