//! What a registry has under a name, without pulling it (`GET /distribution/{name}/json`).

use super::pull::top;
use super::session::failure;
use super::transport::read;
use super::{Credentials, Registries};
use crate::fail::{MAX_CONFIG, Result, invalid, not_found};
use crate::manifest::{Config, Index, Manifest, OCI_MANIFEST, Platform, is_index};
use crate::reference::Reference;
use bytes::Bytes;
use hyper::{HeaderMap, Method};
use serde_json::{Value, json};

impl Registries {
    /// Docker's DistributionInspect.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Unavailable` as the registry says.
    pub async fn ask(&self, reference: &Reference, credentials: Credentials) -> Result<Value> {
        let mut first_error = None;
        for session in self.sessions(reference, &credentials)? {
            let (media_type, bytes, digest) = match top(&session, reference).await {
                Ok(found) => found,
                Err(error) => {
                    first_error.get_or_insert(error);
                    continue;
                }
            };
            let platforms: Vec<Platform> = if is_index(&media_type, &bytes) {
                let known = |p: &Platform| p.os != "unknown";
                Index::parse(&bytes)?.manifests.into_iter().filter_map(|d| d.platform).filter(known).collect()
            } else {
                let config = Manifest::parse(&bytes)?.config.digest()?;
                let uri = session.uri(&format!("blobs/{config}"))?;
                let response = session.call(Method::GET, uri, HeaderMap::new(), Bytes::new()).await?;
                if !response.status().is_success() {
                    return Err(failure("cannot read the image's configuration", response).await);
                }
                let bytes = read(response.into_body(), MAX_CONFIG).await?;
                if crate::digest::Digest::of(&bytes) != config {
                    return Err(invalid(format!("the registry sent another configuration than {config}")));
                }
                let (c, _) = Config::parse(&bytes)?;
                vec![Platform { architecture: c.architecture, os: c.os, variant: c.variant }]
            };
            let media_type = if media_type.is_empty() { OCI_MANIFEST.to_owned() } else { media_type };
            let descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
            return Ok(json!({"Descriptor": descriptor, "Platforms": platforms}));
        }
        Err(first_error.unwrap_or_else(|| not_found(format!("no registry has {}", reference.familiar()))))
    }
}
