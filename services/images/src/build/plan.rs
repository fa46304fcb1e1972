//! Which stages a Dockerfile has, and which of them a target needs.

use super::parse::{Dockerfile, Instruction, read};
use super::words::{Values, expand};
use crate::fail::{Result, invalid};
use std::collections::{BTreeMap, BTreeSet};

/// A stage: a FROM and what follows up to the next.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Its name, `AS name`, in lower case.
    pub name: Option<String>,
    /// The image or stage that it begins with.
    pub base: String,
    /// `--platform`.
    pub platform: Option<String>,
    /// The FROM.
    pub from: Instruction,
    /// What follows.
    pub steps: Vec<Instruction>,
}

/// Stages in order, and what is said before the first.
#[derive(Debug)]
pub struct Plan {
    /// The stages.
    pub stages: Vec<Definition>,
    /// Arguments before the first FROM.
    pub globals: Values,
    /// Every argument that is declared somewhere.
    pub declared: BTreeSet<String>,
}

impl Plan {
    /// Takes a Dockerfile apart; `given` are the client's arguments.
    ///
    /// # Errors
    /// `Invalid` when something but ARG stands before the first FROM.
    pub fn new(file: &Dockerfile, given: &BTreeMap<String, Option<String>>, platform: &str) -> Result<Self> {
        let mut globals = platform_values(platform);
        let (mut stages, mut declared): (Vec<Definition>, _) = (Vec::new(), BTreeSet::new());
        for i in &file.instructions {
            if i.name == "ARG" {
                for (name, _) in arguments(i) {
                    declared.insert(name);
                }
            }
            match (i.name.as_str(), stages.last_mut()) {
                ("FROM", _) => stages.push(definition(i, &globals, file.escape)?),
                (_, Some(stage)) => stage.steps.push(i.clone()),
                ("ARG", None) => {
                    for (name, default) in arguments(i) {
                        let default = default.map(|d| expand(&d, &globals, file.escape)).transpose()?;
                        let value = given.get(&name).cloned().flatten().or(default);
                        globals.extend(value.map(|v| (name, v)));
                    }
                }
                _ => return Err(i.error("no build stage in current context: FROM must come first")),
            }
        }
        if stages.is_empty() {
            return Err(invalid("the Dockerfile has no FROM"));
        }
        Ok(Self { stages, globals, declared })
    }

    /// The number of a stage by its name or number.
    pub fn stage(&self, name: &str) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let named = self.stages.iter().rposition(|s| s.name.as_deref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|n| *n < self.stages.len()))
    }

    /// The stage that is named before stage `before`.
    pub fn stage_before(&self, name: &str, before: usize) -> Option<usize> {
        let lower = name.to_ascii_lowercase();
        let named = self.stages[..before].iter().rposition(|s| s.name.as_deref() == Some(&lower));
        named.or_else(|| name.parse().ok().filter(|n| *n < before))
    }

    /// The stages that a target needs, in order, itself last.
    ///
    /// # Errors
    /// `Invalid` when there is no such stage.
    pub fn needed(&self, target: Option<&str>) -> Result<Vec<usize>> {
        let last = match target {
            Some(name) => self
                .stage(name)
                .ok_or_else(|| invalid(format!("failed to reach build target {name:.100} in Dockerfile")))?,
            None => self.stages.len() - 1,
        };
        let (mut needed, mut todo) = (BTreeSet::new(), vec![last]);
        while let Some(number) = todo.pop() {
            if !needed.insert(number) {
                continue;
            }
            let stage = &self.stages[number];
            let copied = stage.steps.iter().filter_map(|s| s.flag("from"));
            // A base is a stage by its name only: numbers are for COPY.
            todo.extend(self.base_stage(number));
            todo.extend(copied.filter_map(|name| self.stage_before(name, number)));
        }
        Ok(needed.into_iter().collect())
    }

    /// The stage that a stage begins with.
    pub fn base_stage(&self, number: usize) -> Option<usize> {
        let base = self.stages[number].base.to_ascii_lowercase();
        self.stages[..number].iter().rposition(|s| s.name.as_deref() == Some(&base))
    }
}

fn definition(i: &Instruction, globals: &Values, escape: char) -> Result<Definition> {
    let words: Vec<&str> = i.rest.split_whitespace().collect();
    let (base, name) = match words.as_slice() {
        [base] => (*base, None),
        [base, r#as, name] if r#as.eq_ignore_ascii_case("as") => (*base, Some(name.to_ascii_lowercase())),
        _ => return Err(i.error("it requires either one argument, or three: FROM <source> [AS <name>]")),
    };
    let base = expand(base, globals, escape).map_err(|e| i.error(e.message))?;
    if base.is_empty() {
        return Err(i.error("base name is empty: an argument in it has no value"));
    }
    let platform = i.flag("platform").map(|p| expand(p, globals, escape)).transpose()?.filter(|p| !p.is_empty());
    Ok(Definition { name, base, platform, from: i.clone(), steps: Vec::new() })
}

/// The names that an ARG declares, with their defaults as they are written.
pub fn arguments(i: &Instruction) -> Vec<(String, Option<String>)> {
    let words = super::words::split(&i.rest, '\\');
    words
        .iter()
        .map(|w| w.split_once('=').map_or((w.clone(), None), |(k, v)| (k.to_owned(), Some(v.to_owned()))))
        .collect()
}

/// `TARGETPLATFORM` and the others that are always there.
fn platform_values(platform: &str) -> Values {
    let mut parts = platform.split('/');
    let (os, architecture, variant) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let target = [("PLATFORM", platform), ("OS", os), ("ARCH", architecture), ("VARIANT", variant)];
    let build = [("PLATFORM", "linux/amd64"), ("OS", "linux"), ("ARCH", "amd64"), ("VARIANT", "")];
    let named = |prefix: &str, list: [(&str, &str); 4]| list.map(|(k, v)| (format!("{prefix}{k}"), v.to_owned()));
    named("TARGET", target).into_iter().chain(named("BUILD", build)).collect()
}

/// The steps that a base image's ONBUILD adds.
///
/// # Errors
/// `Invalid` when one cannot be read.
pub fn triggers(list: &serde_json::Value) -> Result<Vec<Instruction>> {
    list.as_array().into_iter().flatten().filter_map(|t| t.as_str()).map(|t| read(0, t)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    const FILE: &str = "ARG BASE=busybox\nARG TAG=1\nFROM ${BASE}:$TAG AS Build\nARG X=1\nRUN a\nFROM scratch AS unused\nRUN b\n\
        FROM scratch\nCOPY --from=build /a /\nCOPY --from=other/image /b /\nFROM build AS debug\nRUN c\n";

    #[test]
    fn only_the_stages_that_a_target_needs_are_built() {
        let given = BTreeMap::from([("TAG".to_owned(), Some("2".to_owned()))]);
        let plan = Plan::new(&parse(FILE).unwrap(), &given, "linux/amd64").unwrap();
        assert_eq!(plan.stages[0].base, "busybox:2");
        assert_eq!(plan.needed(None).unwrap(), [0, 3]);
        assert_eq!(plan.needed(Some("2")).unwrap(), [0, 2]);
        assert_eq!(plan.needed(Some("BUILD")).unwrap(), [0]);
        assert!(plan.needed(Some("none")).is_err());
        assert!(plan.declared.contains("X"));
        assert_eq!(plan.globals["TARGETARCH"], "amd64");
    }

    #[test]
    fn a_dockerfile_begins_with_from() {
        for text in ["RUN a", "ARG A", "FROM a b", "FROM $NONE"] {
            assert!(Plan::new(&parse(text).unwrap(), &BTreeMap::new(), "linux/amd64").is_err(), "{text}");
        }
    }
}
