//! Where COPY and ADD take from: the context, another stage, an image, the web, documents in the Dockerfile.

use super::Work;
use super::config;
use super::copy::{self, Options};
use super::files::{Tree, clean};
use super::parse::Instruction;
use super::stage::Stage;
use super::words::{Values, expand, expand_document, split};
use crate::fail::{MAX_LAYER, Result, blocking};
use std::sync::Arc;

/// The longest /etc/passwd that is read.
const MAX_PASSWD: u64 = 4 << 20;

impl Work<'_> {
    pub(super) async fn copy_step(&mut self, stage: &mut Stage, number: usize, i: &Instruction) -> Result<()> {
        let values = stage.values();
        let mut words = self.words(i, &values)?;
        let target = words.pop().filter(|_| !words.is_empty() || !i.heredocs.is_empty());
        let target = target.ok_or_else(|| i.error("it requires at least two arguments"))?;
        let slash = target.ends_with('/') || target == "." || target.ends_with("/.");
        let target = format!("{}{}", config::workdir(&stage.config, &target), if slash { "/" } else { "" });
        let base = stage.tree(&self.builder.context).await?;
        let options = self.options(i, &base, &values).await?;
        words.retain(|w| !w.starts_with("<<"));
        let (from, source) = self.source(stage, number, i).await?;
        let mut plan = copy::Plan::new(&base);
        let mut kept = Vec::new();
        for document in &i.heredocs {
            let text = if document.expand { expand_document(&document.body, &values)? } else { document.body.clone() };
            plan.place_bytes(&document.name, text.into_bytes(), 0, &target, &options)
                .map_err(|e| i.error(e.message))?;
        }
        if i.name == "ADD" {
            let mut plain = Vec::new();
            for word in std::mem::take(&mut words) {
                if word.starts_with("http://") || word.starts_with("https://") {
                    let bytes = self.builder.registries.fetch(&word, MAX_DOWNLOAD).await?;
                    check_sum(i, &bytes)?;
                    let name = word.split(['?', '#']).next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
                    if name.is_empty() && target.ends_with('/') {
                        return Err(i.error(format!("cannot determine filename for source {word:.300}")));
                    }
                    let mode = options.mode.or(Some(0o600));
                    plan.place_bytes(name, bytes, 0, &target, &Options { mode, ..options.clone() })
                        .map_err(|e| i.error(e.message))?;
                } else if word.starts_with("git@") || word.ends_with(".git") {
                    return Err(i.error("adding a git repository needs BuildKit: clone it in a RUN"));
                } else if let Some(aside) = self.archive_in(&from, &word).await? {
                    plan.place_folder(&aside.0, "", &target, &Options { owner: None, ..options.clone() })
                        .map_err(|e| i.error(e.message))?;
                    kept.push(aside);
                } else {
                    plain.push(word);
                }
            }
            words = plain;
        }
        plan.place(&from, &words, &target, &options).map_err(|e| i.error(e.message))?;
        let archives: String = kept.iter().map(|(_, hash, _)| hash.as_str()).collect();
        self.copied(stage, i, plan, &format!("{source} {archives}")).await
    }

    fn words(&self, i: &Instruction, values: &Values) -> Result<Vec<String>> {
        let words = i.json.clone().unwrap_or_else(|| split(&i.rest, self.escape));
        words.iter().map(|w| expand(w, values, self.escape).map_err(|e| i.error(e.message))).collect()
    }

    async fn options(&self, i: &Instruction, base: &Arc<Tree>, values: &Values) -> Result<Options> {
        let mut options = Options { owner: Some((0, 0)), mode: None };
        for (name, value) in &i.flags {
            let value = expand(value, values, self.escape).map_err(|e| i.error(e.message))?;
            match name.as_str() {
                "chown" => {
                    let base = base.clone();
                    let owner = blocking(move || owner(&base, &value)).await;
                    options.owner = Some(owner.map_err(|e| i.error(e.message))?);
                }
                "chmod" => {
                    let mode = u32::from_str_radix(&value, 8).ok().filter(|m| *m <= 0o7777);
                    options.mode =
                        Some(mode.ok_or_else(|| {
                            i.error(format!("invalid chmod parameter: {value:.50}, it must be octal"))
                        })?);
                }
                "from" if i.name == "COPY" => {}
                "checksum" if i.name == "ADD" => {}
                // A layer of its own is what a step gives anyway.
                "link" => {}
                other => return Err(i.error(format!("--{other} is not supported by this engine"))),
            }
        }
        Ok(options)
    }

    /// The tree that is copied from, and what stands for its contents where they have no hash.
    async fn source(&mut self, stage: &Stage, number: usize, i: &Instruction) -> Result<(Arc<Tree>, String)> {
        let Some(name) = i.flag("from") else { return Ok((self.files.clone(), String::new())) };
        let name = expand(name, &stage.values(), self.escape).map_err(|e| i.error(e.message))?;
        let context = &self.builder.context;
        if let Some(from) = self.plan.stage_before(&name, number).and_then(|n| self.done.get_mut(&n)) {
            let key = from.key.to_string();
            return Ok((from.tree(context).await?, key));
        }
        let id = self.image(&name, None).await?;
        let mut image = Stage::image(context, &id)?;
        Ok((image.tree(context).await?, id.to_string()))
    }

    /// The files of an archive in the context, if the source is one; the archive lives as long as the answer.
    async fn archive_in(
        &self,
        from: &Arc<Tree>,
        word: &str,
    ) -> Result<Option<(Tree, String, tempfile::NamedTempFile)>> {
        let (from, word, store) = (from.clone(), word.to_owned(), self.builder.context.store.clone());
        blocking(move || {
            let path = from.resolve(&clean(&word))?;
            let Some(node) = from.get(&path).filter(|n| matches!(n.kind, super::files::Kind::File(_))) else {
                return Ok(None);
            };
            let hash = node.hash.clone().unwrap_or_default();
            let (archive, index) = (from.archives[node.at.0].clone(), node.at.1);
            let mut aside = store.temp()?;
            super::files::each(&archive, |at, _, entry| {
                if at == index {
                    crate::digest::copy_hashed(entry, &mut aside, MAX_LAYER)
                        .map_err(crate::fail::io("cannot read an archive"))?;
                }
                Ok(())
            })?;
            if !copy::is_archive(aside.path()) {
                return Ok(None);
            }
            let mut tree = Tree::default();
            tree.add(aside.path(), true)?;
            Ok(Some((tree, hash, aside)))
        })
        .await
    }
}

/// The longest file that ADD fetches; it is held in memory.
const MAX_DOWNLOAD: u64 = 256 << 20;

fn check_sum(i: &Instruction, bytes: &[u8]) -> Result<()> {
    let found = crate::digest::Digest::of(bytes).to_string();
    match i.flag("checksum") {
        Some(wanted) if wanted != found => Err(i.error(format!("digest mismatch {found}: {wanted:.100}"))),
        _ => Ok(()),
    }
}

/// `--chown=USER[:GROUP]`, names or numbers; a group that is left out is the user's number, as Docker has it.
fn owner(base: &Tree, text: &str) -> Result<(u64, u64)> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let group = if group.is_empty() { user } else { group };
    let find = |file: &str, name: &str| -> Result<u64> {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let text = base.read(file, MAX_PASSWD).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().map(|l| l.split(':').collect::<Vec<_>>());
        let found = lines.find(|f| f.first() == Some(&name)).and_then(|f| f.get(2)?.parse().ok());
        found.ok_or_else(|| crate::fail::invalid(format!("unable to find {name:.100} in the image's {file}")))
    };
    Ok((find("/etc/passwd", user)?, find("/etc/group", group)?))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::archive;
    use super::*;

    #[test]
    fn owners_are_names_of_the_image_or_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        let files = [("etc/passwd", "root:x:0:0\napp:x:1000:1001::/:/bin/sh\n"), ("etc/group", "app:x:50:\n")];
        tree.add(&archive(dir.path(), "1", &files), false).unwrap();
        for (text, expected) in [("app", (1000, 50)), ("app:7", (1000, 7)), ("5", (5, 5)), ("0:app", (0, 50))] {
            assert_eq!(owner(&tree, text).unwrap(), expected, "{text}");
        }
        assert!(owner(&tree, "nobody").is_err());
    }
}
