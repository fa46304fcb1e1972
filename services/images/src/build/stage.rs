//! An image under construction: its configuration, layers, history, and the key of everything that went into it.

use super::cache::{Layer, Record};
use super::config::Config;
use super::files::Tree;
use super::words::Values;
use crate::digest::Digest;
use crate::fail::{MAX_LAYERS, Result, blocking, internal, invalid};
use crate::ingest::{Context, Staged, made_manifest};
use crate::manifest::{self, OCI_MANIFEST};
use crate::reference::Reference;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The time, RFC 3339.
pub fn now() -> String {
    let now = i64::try_from(zone::time::now_ns() / 1000).unwrap_or(0);
    jiff::Timestamp::from_microsecond(now).unwrap_or_default().to_string()
}

/// A stage between two steps.
#[derive(Clone, Debug)]
pub struct Stage {
    /// `architecture`, `os` and what else stands beside `config` in the base's configuration.
    document: Map<String, Value>,
    /// The `config` of the image's configuration.
    pub config: Config,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
    history: Vec<Value>,
    created: String,
    /// What went into it.
    pub key: Digest,
    /// The image in the store that is the same: the base's, as long as there was no step.
    pub image: Option<Digest>,
    /// Build arguments that are declared, with their values.
    pub args: Values,
    /// The Dockerfile has set a command since its FROM.
    pub command_set: bool,
    tree: Option<Arc<Tree>>,
}

impl Stage {
    /// `FROM scratch`.
    pub fn scratch(architecture: &str) -> Self {
        let document = json!({"architecture": architecture, "os": "linux"});
        Self {
            document: document.as_object().cloned().unwrap_or_default(),
            config: Config::new(),
            layers: Vec::new(),
            history: Vec::new(),
            created: String::new(),
            key: Digest::of(format!("scratch {architecture}").as_bytes()),
            image: None,
            args: Values::new(),
            command_set: false,
            tree: None,
        }
    }

    /// `FROM` an image of the store.
    ///
    /// # Errors
    /// `NotFound` when the store does not have it.
    pub fn image(context: &Context, id: &Digest) -> Result<Self> {
        let bytes = context.store.read_blob(id)?;
        let (_, diff_ids) = manifest::Config::parse(&bytes)?;
        let (_, _, manifest) = context.store.manifest(id)?;
        let mut document: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|e| internal(format!("the configuration of {id} is not valid: {e}")))?;
        let config = document.remove("config").and_then(|c| c.as_object().cloned()).unwrap_or_default();
        let history = document.remove("history").and_then(|h| h.as_array().cloned()).unwrap_or_default();
        document.remove("rootfs");
        let created = document.remove("created").and_then(|c| c.as_str().map(str::to_owned)).unwrap_or_default();
        let layers = manifest.layers.into_iter().zip(diff_ids);
        Ok(Self {
            document,
            config,
            layers: layers.map(|(blob, id)| Layer { blob, diff_id: id.to_string() }).collect(),
            history,
            created,
            key: id.clone(),
            image: Some(id.clone()),
            args: Values::new(),
            command_set: false,
            tree: None,
        })
    }

    /// The same as the beginning of another stage.
    pub fn fresh(&self) -> Self {
        Self { args: Values::new(), command_set: false, ..self.clone() }
    }

    /// What variables stand for: the environment, and arguments that it does not hide.
    pub fn values(&self) -> Values {
        let mut values = self.args.clone();
        values.extend(super::config::env(&self.config));
        values
    }

    /// The key of a step on top of what is here.
    pub fn step_key(&self, text: &str) -> Digest {
        Digest::of(format!("{}\n{text}", self.key).as_bytes())
    }

    /// A step is done; `text` goes into the history.
    ///
    /// # Errors
    /// `Invalid` when there are too many layers.
    pub fn done(&mut self, key: &Digest, text: &str, record: &Record) -> Result<()> {
        let mut entry = json!({"created": record.created, "created_by": text});
        match &record.layer {
            None => entry["empty_layer"] = json!(true),
            Some(layer) => self.layers.push(layer.clone()),
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(invalid(format!("the image has more than {MAX_LAYERS} layers")));
        }
        self.history.push(entry);
        self.created.clone_from(&record.created);
        // The same step may give another layer when it runs again; what comes after is built on that one.
        self.key = Digest::of(format!("{key}{:?}", record.layer.as_ref().map(|l| &l.diff_id)).as_bytes());
        self.image = None;
        if record.layer.is_some() {
            self.tree = None;
        }
        Ok(())
    }

    /// A container's changes are the next layer.
    ///
    /// # Errors
    /// `Invalid` when there are too many layers.
    pub fn committed(&mut self, digest: &Digest, size: u64, comment: &str) -> Result<()> {
        let command = self.config.get("Cmd").and_then(|c| serde_json::from_value::<Vec<String>>(c.clone()).ok());
        let record = Record { created: now(), layer: Some(Layer::plain(digest, size)) };
        self.done(&self.key.clone(), &command.unwrap_or_default().join(" "), &record)?;
        if let Some(last) = self.history.last_mut().filter(|_| !comment.is_empty()) {
            last["comment"] = json!(comment);
        }
        Ok(())
    }

    /// Says who made it.
    pub fn set_author(&mut self, author: &str) {
        self.document.insert("author".into(), json!(author));
    }

    /// The files, read from the layers at the first call.
    ///
    /// # Errors
    /// `Invalid` when a layer is damaged.
    pub async fn tree(&mut self, context: &Context) -> Result<Arc<Tree>> {
        if let Some(tree) = &self.tree {
            return Ok(tree.clone());
        }
        let blobs: Vec<_> =
            self.layers.iter().map(|l| l.blob.digest().map(|d| context.store.blob(&d))).collect::<Result<_>>()?;
        let tree = blocking(move || {
            let mut tree = Tree::default();
            blobs.iter().try_for_each(|b| tree.add(b, false))?;
            Ok(Arc::new(tree))
        })
        .await?;
        self.tree = Some(tree.clone());
        Ok(tree)
    }

    /// The image's configuration.
    pub fn document(&self) -> Vec<u8> {
        let mut document = self.document.clone();
        let ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        document.insert("config".into(), Value::Object(self.config.clone()));
        if !self.created.is_empty() {
            document.insert("created".into(), json!(self.created));
        }
        document.insert("history".into(), json!(self.history));
        document.insert("rootfs".into(), json!({"type": "layers", "diff_ids": ids}));
        Value::Object(document).to_string().into_bytes()
    }

    /// Makes it an image of the zone; its id.
    ///
    /// # Errors
    /// As [`Context::finish`].
    pub async fn finish(&self, context: &Context, tags: Vec<Reference>) -> Result<Digest> {
        if let (Some(image), true) = (&self.image, tags.is_empty()) {
            return Ok(image.clone());
        }
        let config = match &self.image {
            Some(image) => context.store.read_blob(image)?,
            None => self.document(),
        };
        let manifest = match &self.image {
            Some(image) => {
                let (descriptor, bytes, _) = context.store.manifest(image)?;
                (descriptor.media_type, bytes)
            }
            None => {
                let layers = self.layers.iter().map(|l| l.blob.clone()).collect();
                (OCI_MANIFEST.to_owned(), made_manifest(&config, layers)?)
            }
        };
        context.finish(Staged { config, manifest, tags, repo_digest: None }, None).await
    }
}
