//! `docker build`: Dockerfiles to images, step by step, with a cache.
//!
//! ```text
//! parse ── plan ── mod (one stage after the other) ──┬─ config   instructions that only change the configuration
//!                        stage, cache                ├─ copy     COPY, ADD, WORKDIR: archives to a layer, on headers alone
//!                                                    └─ run      RUN: a container of this zone, so a microVM
//! ```
//! Must not: run or unpack anything of a stranger's here.
//!
//! Invariants: a step's key covers all that its outcome depends on; the same key gives the same layer and time, so a build
//! that is wholly cached gives the same image.

mod cache;
pub mod config;
mod copy;
mod docker;
pub mod files;
pub mod parse;
pub mod plan;
mod request;
mod run;
mod sources;
mod stage;
pub mod words;

pub use cache::{files as cached_files, prune};
pub use config::{Config, apply, env};
pub use docker::Docker;
pub use request::Build;
pub use stage::Stage;

use crate::digest::Digest;
use crate::fail::{Result, blocking, invalid};
use crate::ingest::Context;
use crate::lookup;
use crate::manifest::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::Registries;
use cache::{Layer, Record};
use files::Tree;
use parse::Instruction;
use plan::Plan;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use words::expand;
use zone::image::Image;

/// The longest Dockerfile.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// Arguments that need no ARG.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What a build needs.
#[derive(Clone, Debug)]
pub struct Builder {
    /// The content store.
    pub context: Context,
    /// Where base images come from.
    pub registries: Registries,
    /// Where steps run.
    pub docker: Docker,
}

impl Builder {
    /// Builds the image that the context at `archive` describes.
    ///
    /// # Errors
    /// Why a step cannot be done.
    pub async fn build(&self, mut build: Build, archive: &Path, progress: &Progress) -> Result<()> {
        build.no_cache |= !self.has_one_of(&build.cache_from).await?;
        let path = archive.to_owned();
        let files = blocking(move || {
            let mut tree = Tree::default();
            tree.add(&path, true).map_err(|e| invalid(format!("cannot read the build context: {}", e.message)))?;
            Ok(Arc::new(tree))
        })
        .await?;
        let (tree, name) = (files.clone(), build.dockerfile.clone());
        let text = blocking(move || {
            tree.read(&name, MAX_DOCKERFILE)
                .map_err(|_| invalid(format!("Cannot locate specified Dockerfile: {name:.300}")))
        })
        .await?;
        let file = parse::parse(&String::from_utf8_lossy(&text))?;
        let platform = build.platform.clone().unwrap_or_else(Platform::here);
        let plan = Plan::new(&file, &build.args, &platform.to_string())?;
        let needed = plan.needed(build.target.as_deref())?;
        let steps = needed.iter().map(|n| plan.stages[*n].steps.len() + 1).sum::<usize>()
            + usize::from(!build.labels.is_empty());
        let work = Work {
            builder: self,
            build: &build,
            plan: &plan,
            files,
            escape: file.escape,
            platform,
            progress,
            steps,
            step: 0,
            done: BTreeMap::new(),
            temporary: Temporary { context: self.context.clone(), images: BTreeSet::new() },
        };
        work.run(&needed).await
    }
}

impl Builder {
    /// Whether one of these images is here, or none is asked for.
    async fn has_one_of(&self, names: &[String]) -> Result<bool> {
        if names.is_empty() {
            return Ok(true);
        }
        let images = self.context.zone.list::<Image>().await?.items;
        Ok(names.iter().any(|name| crate::lookup::find(&images, name).is_ok()))
    }
}

/// A build under way.
struct Work<'a> {
    builder: &'a Builder,
    build: &'a Build,
    plan: &'a Plan,
    files: Arc<Tree>,
    escape: char,
    platform: Platform,
    progress: &'a Progress,
    steps: usize,
    step: usize,
    done: BTreeMap<usize, Stage>,
    temporary: Temporary,
}

/// Images that were only made for a step's container; they go with it.
struct Temporary {
    context: Context,
    images: BTreeSet<Digest>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let (context, images) = (self.context.clone(), std::mem::take(&mut self.images));
        tokio::spawn(async move {
            for id in images {
                // One that got a name meanwhile is somebody's.
                if let Ok(image) = context.zone.get::<Image>(&id.to_string()).await
                    && image.spec.tags.is_empty()
                {
                    let _ = context.zone.delete::<Image>(&id.to_string()).await;
                }
            }
        });
    }
}

impl Work<'_> {
    async fn run(mut self, needed: &[usize]) -> Result<()> {
        for number in needed {
            let stage = self.stage(*number).await?;
            self.done.insert(*number, stage);
        }
        let Some(mut last) = needed.last().and_then(|n| self.done.remove(n)) else {
            return Err(invalid("the Dockerfile has no stage"));
        };
        if !self.build.labels.is_empty() {
            let words: Vec<String> = self
                .build
                .labels
                .iter()
                .map(|(k, v)| format!("{}={}", json!(k), json!(v).to_string().replace('$', "\\$")))
                .collect();
            let label = parse::read(0, &format!("LABEL {}", words.join(" ")))?;
            self.announce(&label).await;
            self.configure(&mut last, &label).await?;
        }
        let image = last.finish(&self.builder.context, self.build.tags.clone()).await?;
        self.temporary.images.remove(&image);
        let unused: Vec<&String> = self
            .build
            .args
            .keys()
            .filter(|a| !self.plan.declared.contains(*a) && !PREDEFINED.contains(&a.as_str()))
            .collect();
        if !unused.is_empty() {
            self.tell(format!("[Warning] One or more build-args {unused:?} were not consumed\n")).await;
        }
        self.progress.send(&json!({"aux": {"ID": image.to_string()}})).await;
        if self.build.quiet {
            self.progress.stream(format!("{image}\n")).await;
            return Ok(());
        }
        self.tell(format!("Successfully built {}\n", image.short())).await;
        for tag in &self.build.tags {
            self.tell(format!("Successfully tagged {}\n", tag.familiar())).await;
        }
        Ok(())
    }

    async fn tell(&self, text: impl AsRef<str>) {
        if !self.build.quiet {
            self.progress.stream(text).await;
        }
    }

    async fn announce(&mut self, i: &Instruction) {
        self.step += 1;
        self.tell(format!("Step {}/{} : {}\n", self.step, self.steps, i.text())).await;
    }

    async fn stage(&mut self, number: usize) -> Result<Stage> {
        let definition = self.plan.stages[number].clone();
        self.announce(&definition.from).await;
        let mut stage = match self.plan.base_stage(number).and_then(|n| self.done.get(&n)) {
            Some(base) => base.fresh(),
            None if definition.base == "scratch" => Stage::scratch(&self.platform.architecture),
            None => {
                let platform = definition.platform.as_deref().map(Platform::parse).transpose()?;
                let id = self.image(&definition.base, platform.as_ref()).await?;
                Stage::image(&self.builder.context, &id)?
            }
        };
        self.tell(format!(" ---> {}\n", stage.image.as_ref().unwrap_or(&stage.key).short())).await;
        let triggers = plan::triggers(&stage.config.remove("OnBuild").unwrap_or_default())?;
        if !triggers.is_empty() {
            self.steps += triggers.len();
            self.tell(format!("# Executing {} build trigger(s)\n", triggers.len())).await;
        }
        for i in triggers.iter().chain(&definition.steps) {
            self.announce(i).await;
            self.take(&mut stage, number, i).await?;
        }
        Ok(stage)
    }

    async fn take(&mut self, stage: &mut Stage, number: usize, i: &Instruction) -> Result<()> {
        match i.name.as_str() {
            "ARG" => self.declare(stage, i).await,
            "RUN" => self.run_step(stage, i).await,
            "COPY" | "ADD" => self.copy_step(stage, number, i).await,
            "WORKDIR" => self.workdir_step(stage, i).await,
            "MAINTAINER" => {
                stage.set_author(&i.rest);
                self.without_layer(stage, i, &i.rest).await
            }
            name if config::KNOWN.contains(&name) => self.configure(stage, i).await,
            other => {
                Err(invalid(format!("dockerfile parse error on line {}: unknown instruction: {other:.50}", i.line)))
            }
        }
    }

    /// A step that only changes the configuration.
    async fn configure(&mut self, stage: &mut Stage, i: &Instruction) -> Result<()> {
        let values = stage.values();
        apply(&mut stage.config, i, &values, self.escape)?;
        match i.name.as_str() {
            "CMD" => stage.command_set = true,
            // A command of the base image does not fit a new entry point.
            "ENTRYPOINT" if !stage.command_set => drop(stage.config.remove("Cmd")),
            _ => {}
        }
        let config = Value::Object(stage.config.clone()).to_string();
        self.without_layer(stage, i, &config).await
    }

    async fn without_layer(&mut self, stage: &mut Stage, i: &Instruction, what: &str) -> Result<()> {
        let key = stage.step_key(&format!("{} {what}", i.name));
        let record = match self.cached(&key).await {
            Some(record) => record,
            None => self.keep(&key, None)?,
        };
        self.end(stage, &key, &format!("/bin/sh -c #(nop)  {}", i.text()), &record).await
    }

    async fn declare(&mut self, stage: &mut Stage, i: &Instruction) -> Result<()> {
        let values = stage.values();
        for (name, default) in plan::arguments(i) {
            let default =
                default.map(|d| expand(&d, &values, self.escape)).transpose().map_err(|e| i.error(e.message))?;
            let given = self.build.args.get(&name).cloned().flatten();
            if let Some(value) = given.or(default).or_else(|| self.plan.globals.get(&name).cloned()) {
                stage.args.insert(name, value);
            }
        }
        self.without_layer(stage, i, &i.rest).await
    }

    async fn workdir_step(&mut self, stage: &mut Stage, i: &Instruction) -> Result<()> {
        let values = stage.values();
        apply(&mut stage.config, i, &values, self.escape)?;
        let path = stage.config.get("WorkingDir").and_then(Value::as_str).unwrap_or("/").to_owned();
        let tree = stage.tree(&self.builder.context).await?;
        let mut plan = copy::Plan::new(&tree);
        match plan.folder(&path)? {
            true => self.copied(stage, i, plan, "").await,
            false => self.without_layer(stage, i, &path).await,
        }
    }

    /// Makes a planned layer, unless it is known.
    async fn copied(&mut self, stage: &mut Stage, i: &Instruction, plan: copy::Plan<'_>, source: &str) -> Result<()> {
        let what = plan.key(source);
        let key = stage.step_key(&format!("{} {what}", i.name));
        let record = match self.cached(&key).await {
            Some(record) => record,
            None => {
                let (digest, size) = plan.write(&self.builder.context.store).await?;
                self.keep(&key, Some(Layer::plain(&digest, size)))?
            }
        };
        self.end(stage, &key, &format!("/bin/sh -c #(nop) {}", i.text()), &record).await
    }

    async fn cached(&self, key: &Digest) -> Option<Record> {
        let found = if self.build.no_cache { None } else { cache::get(&self.builder.context.store, key) };
        if found.is_some() {
            self.tell(" ---> Using cache\n").await;
        }
        found
    }

    fn keep(&self, key: &Digest, layer: Option<Layer>) -> Result<Record> {
        let record = Record { created: stage::now(), layer };
        cache::put(&self.builder.context.store, key, &record)?;
        Ok(record)
    }

    async fn end(&mut self, stage: &mut Stage, key: &Digest, text: &str, record: &Record) -> Result<()> {
        stage.done(key, text, record)?;
        self.tell(format!(" ---> {}\n", Digest::of(&stage.document()).short())).await;
        Ok(())
    }

    /// An image by its name: one that is here, else pulled.
    async fn image(&self, name: &str, platform: Option<&Platform>) -> Result<Digest> {
        let context = &self.builder.context;
        let find = async || {
            let images = context.zone.list::<Image>().await?.items;
            lookup::find(&images, name).and_then(lookup::id)
        };
        if !self.build.pull
            && let Ok(id) = find().await
        {
            return Ok(id);
        }
        let reference = Reference::parse(name)?;
        let credentials = self.build.credentials_for(&reference)?;
        let platform = platform.or(self.build.platform.as_ref());
        match self.builder.registries.pull(context, &reference, platform, credentials, self.progress).await {
            Ok(()) => find().await,
            // An image that was made here is in no registry.
            Err(error) if error.kind == zone::ErrorKind::NotFound || error.kind == zone::ErrorKind::Unavailable => {
                find().await.map_err(|_| error)
            }
            Err(error) => Err(error),
        }
    }
}
