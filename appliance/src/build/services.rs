//! The zone's services: compiled in the release profile, packed and signed by bali, one folder of `image-recipes/services` each.
//!
//! A folder holds a `Dockerfile`, a `context.list` that says what is put beside it (`cargo PACKAGE BINARY`, `guest-kernel`,
//! `guest-initramfs PACKAGE BINARY`), and a unit. A folder without a unit is an image that another service uses.

use super::Progress;
use super::cache::Cache;
use super::cpio::Cpio;
use super::error::{At, Error, Result};
use super::host;
use super::key::Key;
use super::programs::Programs;
use super::root::copy;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where each of the services' files lies in the root (relative), and where it is now.
#[derive(Debug, Default)]
pub struct Services {
    pub files: BTreeMap<String, PathBuf>,
    /// The program that is the initrd.
    pub init: PathBuf,
    /// Our packages that they are compiled from.
    pub packages: Vec<String>,
}

/// One line of a `context.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Cargo { package: String, binary: String },
    GuestKernel,
    GuestInitramfs { package: String, binary: String },
}

/// A service's folder.
struct Recipe {
    name: String,
    dir: PathBuf,
    parts: Vec<Part>,
}

/// Compiles, packs and signs all services.
///
/// # Errors
/// When a recipe is wrong, or cargo or bali fails.
pub fn make(
    cache: &Cache,
    workspace: &Path,
    recipes: &Path,
    guest_kernel: &Path,
    progress: &mut dyn Progress,
) -> Result<Services> {
    let recipes = read_all(&recipes.join("services"))?;
    let wanted = wanted(&recipes);
    let programs = Programs { step: "programs", workspace, folders: &["services", "web-ui"], wanted: &wanted };
    let release = programs.compile(cache, progress)?;
    let mut packages: Vec<_> = wanted.iter().map(|(package, _)| package.clone()).collect();
    packages.dedup();
    let mut services = Services { files: BTreeMap::new(), init: release.join("kraud-init"), packages };
    let bali = release.join("bali");
    let (key, public) = signing_key(cache, &bali, progress)?;
    services.files.insert("usr/bin/bali".into(), bali.clone());
    services.files.insert("usr/lib/kraud/kraud-disks".into(), release.join("kraud-disks"));
    services.files.insert("usr/bin/kraud-update".into(), release.join("kraud-update"));
    services.files.insert("usr/lib/kraud/keys/zone.pub".into(), public);
    for recipe in &recipes {
        let context = context(recipe, &release, guest_kernel)?;
        let mut id = Key::new("service", 1).file(&recipe.dir.join("Dockerfile"))?.file(&key)?.file(&bali)?;
        for (name, path) in &context.files {
            id = id.text("name", name).file(path)?;
        }
        let file = format!("{}.tar.gz", recipe.name);
        let step = format!("service-{}", recipe.name);
        let entry = cache.step(progress, &step, id, |dir, _| {
            let stage = tempfile::tempdir().at("make", std::env::temp_dir())?;
            copy(&recipe.dir.join("Dockerfile"), &stage.path().join("Dockerfile"))?;
            for (name, path) in &context.files {
                copy(path, &stage.path().join(name))?;
            }
            let mut command = Command::new(&bali);
            command.arg("build").arg(stage.path()).arg("-o").arg(dir.join(&file)).arg("--key").arg(&key);
            host::run(&step, &cache.log(&step), &mut command)
        })?;
        services.files.insert(format!("usr/lib/kraud/services/{file}"), entry.join(&file));
        for unit in units(&recipe.dir)? {
            let name = unit.file_name().unwrap_or_default().to_string_lossy().into_owned();
            services.files.insert(format!("usr/lib/systemd/system/{name}"), unit);
        }
    }
    Ok(services)
}

/// Package and binary of all that the recipes name, and of what lies in the root beside them.
fn wanted(recipes: &[Recipe]) -> Vec<(String, String)> {
    let beside = [("bali", "bali"), ("boot", "kraud-disks"), ("boot", "kraud-init"), ("boot", "kraud-update")];
    let mut wanted: Vec<_> = beside.iter().map(|(package, binary)| (package.to_string(), binary.to_string())).collect();
    for part in recipes.iter().flat_map(|r| &r.parts) {
        if let Part::Cargo { package, binary } | Part::GuestInitramfs { package, binary } = part {
            wanted.push((package.clone(), binary.clone()));
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// The key that this cache signs with, made once, and its public half.
fn signing_key(cache: &Cache, bali: &Path, progress: &mut dyn Progress) -> Result<(PathBuf, PathBuf)> {
    let _alone = cache.alone("keys", progress)?;
    let dir = cache.kept("keys")?;
    let (key, public) = (dir.join("zone"), dir.join("zone.pub"));
    if !key.exists() || !public.exists() {
        let _ = fs::remove_file(&key);
        let _ = fs::remove_file(&public);
        host::run("keygen", &cache.log("keygen"), Command::new(bali).args(["keygen", "-o"]).arg(&key))?;
    }
    if !public.exists() {
        return Err(Error::Recipe { path: public, what: "bali keygen did not write the public half".into() });
    }
    Ok((key, public))
}

/// What lies beside a Dockerfile when bali packs it.
struct Context {
    files: Vec<(String, PathBuf)>,
    /// Holds generated files until the image is packed.
    _generated: tempfile::TempDir,
}

fn context(recipe: &Recipe, release: &Path, guest_kernel: &Path) -> Result<Context> {
    let generated = tempfile::tempdir().at("make", std::env::temp_dir())?;
    let mut files = Vec::new();
    for part in &recipe.parts {
        match part {
            Part::Cargo { binary, .. } => files.push((binary.clone(), release.join(binary))),
            Part::GuestKernel => files.push(("vmlinux".into(), guest_kernel.join("vmlinux"))),
            Part::GuestInitramfs { binary, .. } => {
                let mut cpio = Cpio::default();
                for dir in ["dev", "proc", "sys", "run", "tmp"] {
                    cpio.dir(dir);
                }
                cpio.device("dev/console", 0o600, (5, 1));
                cpio.file("init", 0o755, &release.join(binary))?;
                let path = generated.path().join("initramfs.cpio");
                fs::write(&path, cpio.finish()).at("write", &path)?;
                files.push(("initramfs.cpio".into(), path));
            }
        }
    }
    Ok(Context { files, _generated: generated })
}

fn read_all(dir: &Path) -> Result<Vec<Recipe>> {
    let mut recipes = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)?.flatten().filter(|e| e.path().is_dir()) {
        let (name, dir) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        let list = dir.join("context.list");
        let wrong = |line: &str| Error::Recipe { path: list.clone(), what: format!("`{line}` is not understood") };
        let parts =
            host::read_list(&list)?.iter().map(|line| parse(line).ok_or_else(|| wrong(line))).collect::<Result<_>>()?;
        recipes.push(Recipe { name, dir, parts });
    }
    recipes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(recipes)
}

fn parse(line: &str) -> Option<Part> {
    match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["cargo", package, binary] => Some(Part::Cargo { package: (*package).into(), binary: (*binary).into() }),
        ["guest-initramfs", package, binary] => {
            Some(Part::GuestInitramfs { package: (*package).into(), binary: (*binary).into() })
        }
        ["guest-kernel"] => Some(Part::GuestKernel),
        _ => None,
    }
}

fn units(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_unit = |p: &PathBuf| {
        p.extension().is_some_and(|e| ["service", "socket", "path", "slice", "target"].iter().any(|k| e == *k))
    };
    let mut units: Vec<_> = fs::read_dir(dir).at("read", dir)?.flatten().map(|e| e.path()).filter(is_unit).collect();
    units.sort();
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_lines_are_understood_or_refused() {
        assert_eq!(
            parse("cargo kraud-macro kraud-macro"),
            Some(Part::Cargo { package: "kraud-macro".into(), binary: "kraud-macro".into() })
        );
        assert_eq!(parse("guest-kernel"), Some(Part::GuestKernel));
        assert_eq!(
            parse("guest-initramfs vdocker vdocker"),
            Some(Part::GuestInitramfs { package: "vdocker".into(), binary: "vdocker".into() })
        );
        assert_eq!(parse("cargo one"), None);
        assert_eq!(parse("curl http://x"), None);
    }
}
