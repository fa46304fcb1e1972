//! An image, as the content store has it.
//!
//! `images` creates the resource after it has stored everything that it names, and removes files that no resource
//! names any more. Tags are wanted state: docker-api writes them (`docker tag`, `docker rmi`).

use crate::bundle::Extent;
use crate::ids::LayerId;
use crate::resource::Kind;
use serde::{Deserialize, Serialize};

/// The resource kind `image`, named by [`crate::ImageId`].
#[derive(Clone, Debug)]
pub struct Image;

impl Kind for Image {
    const NAME: &'static str = "image";
    type Spec = ImageSpec;
    type Status = ImageStatus;
}

/// What users say of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Full references, `docker.io/library/busybox:latest`; a reference is in at most one image. Sorted.
    pub tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`, known after a pull or push.
    #[serde(default)]
    pub repo_digests: Vec<String>,
}

/// What an image is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageStatus {
    /// All layers are there and mountable.
    pub ready: bool,
    /// The configuration, exactly as the image has it (OCI image specification, "image configuration").
    #[serde(default)]
    pub config: serde_json::Value,
    /// The layers, lowest first.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// Bytes on disk of everything, uncompressed archives counted.
    #[serde(default)]
    pub size: u64,
    /// The image as one flat read-only disk: merged metadata first, then each layer's EROFS file. The guest mounts
    /// it as one EROFS.
    #[serde(default)]
    pub disk: Vec<Extent>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The hash of the uncompressed archive.
    pub id: LayerId,
    /// Bytes of the uncompressed archive.
    pub size: u64,
}
