//! Makes an image of blobs that are in the store: builds the layers and the merged metadata, then writes the resource.
//!
//! Invariant: the resource is written last. What is in the store without a resource is removed by [`crate::collect`].

use crate::archive::{Archive, Candidate};
use crate::compress;
use crate::digest::Digest;
use crate::fail::{MAX_ARCHIVE, MAX_LAYER, Result, blocking, invalid, io};
use crate::layer::{self, LayerInfo};
use crate::manifest::{Config, Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::mkfs::Mkfs;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::Store;
use std::path::Path;
use std::sync::Arc;
use zone::bundle::Extent;
use zone::client::{Client, Operation};
use zone::image::{Image, ImageSpec, ImageStatus, Layer};
use zone::{ErrorKind, ImageId, LayerId, Resource};

/// An image whose blobs are in the store.
#[derive(Debug)]
pub struct Staged {
    /// The configuration.
    pub config: Vec<u8>,
    /// The manifest's media type and bytes.
    pub manifest: (String, Vec<u8>),
    /// The references that it gets.
    pub tags: Vec<Reference>,
    /// `REPOSITORY@DIGEST`, when it came from a registry.
    pub repo_digest: Option<String>,
}

/// What all requests need.
#[derive(Clone, Debug)]
pub struct Context {
    /// The files.
    pub store: Arc<Store>,
    /// The maker of file systems.
    pub mkfs: Mkfs,
    /// The state engine.
    pub zone: Client,
}

impl Context {
    /// Copies an archive's images into the store as blobs.
    ///
    /// # Errors
    /// `Invalid` when the archive is not what it should be; `NoSpace`.
    pub async fn stage_archive(&self, spool: &Path) -> Result<Vec<Staged>> {
        let (store, spool) = (self.store.clone(), spool.to_owned());
        blocking(move || {
            let file = std::fs::File::open(&spool).map_err(io("cannot open an archive"))?;
            let (compression, reader) = compress::reader(file).map_err(io("cannot read the archive"))?;
            let mut plain = None;
            if compression != compress::Compression::None {
                let mut temp = store.temp()?;
                crate::digest::copy_hashed(reader, &mut temp, MAX_ARCHIVE).map_err(io("cannot unpack the archive"))?;
                plain = Some(temp);
            }
            let archive = Archive::open(plain.as_ref().map_or(spool.as_path(), |p| p.path()))?;
            archive.images()?.into_iter().map(|c| stage(&store, &archive, c)).collect()
        })
        .await
    }

    /// Finishes an image: layers, merged metadata, resource. Returns its id.
    ///
    /// # Errors
    /// `Invalid` when its layers are not what its configuration says.
    pub async fn finish(&self, staged: Staged, progress: Option<&Progress>) -> Result<Digest> {
        let Staged { config, manifest: (media_type, manifest_bytes), tags, repo_digest } = staged;
        let image = self.store.put_blob(&config)?;
        let digest = self.store.put_blob(&manifest_bytes)?;
        let status = self.build(&image, &config, &Manifest::parse(&manifest_bytes)?, progress).await?;
        let descriptor = Descriptor::new(&media_type, &digest, manifest_bytes.len() as u64);
        self.store.put_record(&image, &descriptor)?;
        self.publish(&image, &tags, repo_digest.as_deref(), &status).await?;
        tracing::info!(%image, tags = ?tags.iter().map(ToString::to_string).collect::<Vec<_>>(), "stored an image");
        Ok(image)
    }

    /// Builds what is missing of an image's disk from its blobs.
    ///
    /// # Errors
    /// As [`Context::finish`].
    pub async fn build(
        &self,
        image: &Digest,
        config: &[u8],
        manifest: &Manifest,
        progress: Option<&Progress>,
    ) -> Result<ImageStatus> {
        let (_, diff_ids) = Config::parse(config)?;
        check_count(image, manifest, &diff_ids)?;
        let mut layers = Vec::new();
        for (diff_id, descriptor) in diff_ids.iter().zip(&manifest.layers) {
            layers.push((diff_id.clone(), self.unpack(&descriptor.digest()?, diff_id, progress).await?));
        }
        self.merge(image, &layers).await?;
        self.status(image, config, &layers)
    }

    /// Builds a layer's file system from its blob, unless it is there.
    ///
    /// # Errors
    /// As [`layer::ensure`].
    pub async fn unpack(&self, blob: &Digest, diff_id: &Digest, progress: Option<&Progress>) -> Result<LayerInfo> {
        let info = match layer::find(&self.store, diff_id) {
            Some(info) => info,
            None => {
                tell(progress, blob, "Extracting").await;
                layer::ensure(&self.store, &self.mkfs, self.store.blob(blob), diff_id).await?
            }
        };
        tell(progress, blob, "Pull complete").await;
        Ok(info)
    }

    async fn merge(&self, image: &Digest, layers: &[(Digest, LayerInfo)]) -> Result<()> {
        let _one_at_a_time = self.store.build.lock().await;
        let path = self.store.merged(image);
        if path.exists() {
            return Ok(());
        }
        let temp = self.store.temp()?;
        if layers.is_empty() {
            let empty = self.store.temp()?;
            empty.as_file().set_len(10_240).map_err(io("cannot make an empty archive"))?;
            self.mkfs.layer(empty.path(), temp.path(), image).await?;
        } else {
            let files: Vec<_> = layers.iter().map(|(id, _)| self.store.layer(id)).collect();
            self.mkfs.merge(&files, temp.path(), image).await?;
            let root = layers.iter().rev().find_map(|(_, info)| info.root).unwrap_or_default();
            root.patch(temp.path())?;
        }
        let store = self.store.clone();
        blocking(move || store.keep(temp, &path)).await
    }

    fn status(&self, image: &Digest, config: &[u8], layers: &[(Digest, LayerInfo)]) -> Result<ImageStatus> {
        let merged = self.store.merged(image);
        let merged_len = merged.metadata().map_err(io("cannot read the size of merged metadata"))?.len();
        let pieces =
            layers.iter().map(|(id, info)| Extent { path: self.store.layer(id), offset: 0, len: info.erofs_size });
        Ok(ImageStatus {
            ready: true,
            config: serde_json::from_slice(config)
                .map_err(|e| invalid(format!("the image configuration is not valid: {e}")))?,
            layers: layers.iter().map(|(id, info)| Layer { id: LayerId(id.to_string()), size: info.size }).collect(),
            size: layers.iter().map(|(_, info)| info.size).sum(),
            disk: std::iter::once(Extent { path: merged, offset: 0, len: merged_len }).chain(pieces).collect(),
        })
    }

    /// Writes the image's resource; its tags leave other images in the same transaction.
    async fn publish(
        &self,
        image: &Digest,
        tags: &[Reference],
        repo_digest: Option<&str>,
        status: &ImageStatus,
    ) -> Result<()> {
        let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
        loop {
            let images = self.zone.list::<Image>().await?.items;
            let operations = publish_operations(&images, &image.to_string(), &tags, repo_digest, status)?;
            let result = match operations.is_empty() {
                true => Ok(()),
                false => self.zone.transact(operations).await.map(|_| ()),
            };
            match result {
                Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        let read = self.zone.get::<Image>(&image.to_string()).await?;
        if !read.status.ready || read.status.disk != status.disk {
            self.zone
                .modify_status::<Image>(&image.to_string(), |s| {
                    s.clone_from(status);
                    true
                })
                .await?;
        }
        Ok(())
    }
}

/// A manifest and a configuration that belong together name as many layers.
///
/// # Errors
/// `Invalid` when they do not.
pub fn check_count(image: &Digest, manifest: &Manifest, diff_ids: &[Digest]) -> Result<()> {
    let (a, b) = (manifest.layers.len(), diff_ids.len());
    match a == b {
        true => Ok(()),
        false => Err(invalid(format!("the manifest of image {image} has {a} layers, its configuration {b}"))),
    }
}

async fn tell(progress: Option<&Progress>, blob: &Digest, text: &str) {
    if let Some(progress) = progress {
        progress.status(blob.short(), text).await;
    }
}

fn publish_operations(
    images: &[Resource<Image>],
    image: &str,
    tags: &[String],
    repo_digest: Option<&str>,
    status: &ImageStatus,
) -> Result<Vec<Operation>> {
    let mut operations = Vec::new();
    for other in images.iter().filter(|i| i.meta.name != image && i.spec.tags.iter().any(|t| tags.contains(t))) {
        let mut spec = other.spec.clone();
        spec.tags.retain(|t| !tags.contains(t));
        operations.push(Operation::update_spec(other, &spec)?);
    }
    let existing = images.iter().find(|i| i.meta.name == image);
    let mut spec = existing.map_or_else(ImageSpec::default, |e| e.spec.clone());
    spec.tags.extend(tags.iter().cloned());
    spec.repo_digests.extend(repo_digest.map(str::to_owned));
    for list in [&mut spec.tags, &mut spec.repo_digests] {
        list.sort();
        list.dedup();
    }
    match existing {
        None => operations.push(Operation::create::<Image>(&ImageId::new(image).0, &spec, Some(status))?),
        Some(existing) if existing.spec != spec => operations.push(Operation::update_spec(existing, &spec)?),
        Some(_) => {}
    }
    Ok(operations)
}

/// Copies one image's blobs into the store; makes a manifest when the archive has none.
fn stage(store: &Store, archive: &Archive, candidate: Candidate) -> Result<Staged> {
    let Candidate { config, manifest, layers, tags } = candidate;
    let mut descriptors = Vec::new();
    for (name, expected) in &layers {
        let (digest, size) = match expected {
            Some(digest) if store.blob(digest).exists() => {
                (digest.clone(), store.blob(digest).metadata().map_err(io("cannot read a blob's size"))?.len())
            }
            _ => store.put_blob_from(archive.reader(name)?, MAX_LAYER, expected.as_ref())?,
        };
        let file = std::fs::File::open(store.blob(&digest)).map_err(io("cannot open a blob"))?;
        let (compression, _) = compress::reader(file).map_err(io("cannot read a layer"))?;
        descriptors.push(Descriptor::new(compression.layer_media_type(), &digest, size));
    }
    let manifest = match manifest {
        Some(manifest) => manifest,
        None => (OCI_MANIFEST.to_owned(), made_manifest(&config, descriptors)?),
    };
    Ok(Staged { config, manifest, tags, repo_digest: None })
}

/// A manifest for an image that came without one; the same image always gets the same.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub fn made_manifest(config: &[u8], layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let config = Descriptor::new(OCI_CONFIG, &Digest::of(config), config.len() as u64);
    let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST.into(), config, layers };
    serde_json::to_vec(&manifest).map_err(|e| crate::fail::internal(format!("cannot encode a manifest: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_moves_from_another_image_in_the_same_transaction() {
        let old: Resource<Image> = serde_json::from_value(serde_json::json!({
            "meta": {"kind": "image", "name": "sha256:old", "revision": 7, "generation": 1, "created_ns": 0},
            "spec": {"tags": ["a", "b"]}, "status": {"ready": true}
        }))
        .unwrap();
        let operations =
            publish_operations(&[old], "sha256:new", &["a".into()], Some("r@d"), &ImageStatus::default()).unwrap();
        let json = serde_json::to_value(&operations).unwrap();
        assert_eq!(json[0]["op"], "update_spec");
        assert_eq!(json[0]["spec"]["tags"], serde_json::json!(["b"]));
        assert_eq!(json[1]["op"], "create");
        assert_eq!(json[1]["spec"], serde_json::json!({"tags": ["a"], "repo_digests": ["r@d"]}));
    }
}
