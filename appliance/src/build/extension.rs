//! The development extension: what developers and tests want in a booted image and users must not have.
//!
//! A partition of its own (erofs, dm-verity), laid over `/usr` by the initrd. Its hash is in the command line of the development
//! image's UKI beside the root's: who trusts the UKI trusts both, and the root itself trusts no extension at all. It holds the packages
//! of `packages/dev.list` without what the root has already, the exec door, and the units of `image-recipes/dev`.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Result};
use super::host::{self, Host};
use super::key::Key;
use super::programs::Programs;
use super::root::copy;
use super::tools::Tools;
use super::trees::{Tree, Trees};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// `$1` dev tree, `$2` root's package tree, `$3` staged files, `$4` the extension's content.
const COLLECT: &str = r#"
set -eu
dev=$1 base=$2 stage=$3 out=$4
mkdir -p "$out"
cp -a --reflink=auto "$dev/usr" "$out/usr"
cd "$out"
rm -rf usr/include usr/local usr/games usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/bash-completion usr/share/zsh
rm -rf usr/share/bug usr/share/lintian usr/share/perl usr/lib/python3* usr/share/applications usr/share/icons usr/src
find usr ! -type d | sort > "$stage/have"
(cd "$base" && find usr ! -type d | sort) > "$stage/base"
comm -12 "$stage/have" "$stage/base" | tr '\n' '\0' | xargs -0 -r rm -f
rm -rf usr/lib/systemd/system usr/lib/systemd/user usr/lib/sysusers.d usr/lib/tmpfiles.d usr/lib/udev
chmod -R u=rwX,go=rX "$stage/tree"
cp -R --preserve=mode,links --no-preserve=ownership "$stage/tree/." .
find usr -depth -type d -empty -delete
find . -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
"#;

/// The folder that becomes the extension's partition, and the key of what is in it.
pub struct Extension {
    pub content: PathBuf,
    pub key: String,
}

/// Collects the extension.
///
/// # Errors
/// When a tree, the door or the content cannot be made.
pub fn make(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    trees: &Trees<'_>,
    inputs: &Inputs<'_>,
    progress: &mut dyn Progress,
) -> Result<Extension> {
    let recipes = trees.recipes.join("dev");
    let programs = Programs {
        step: "dev-programs",
        workspace: inputs.workspace,
        folders: &["appliance/door", "qemu-tests", "services"],
        wanted: &["door", "bench", "compare"].map(|name| (name.to_owned(), name.to_owned())),
    }
    .compile(cache, progress)?;
    let own = ["door", "bench", "compare"].map(|name| programs.join(name));
    let mut key = Key::new("extension", 2)
        .text("script", COLLECT)
        .text("dev", &inputs.dev.identity())
        .text("root", &inputs.root.identity())
        .tree(&recipes)?;
    for program in &own {
        key = key.file(program)?;
    }
    let hex = key.clone().hex();
    let entry = cache.step(progress, "extension", key, |dir, progress| {
        host.may("extension", progress)?;
        let stage = tempfile::tempdir().at("make", std::env::temp_dir())?;
        self::stage(&stage.path().join("tree"), &recipes, &own)?;
        let mut collect = tools.privileged(host, "sh");
        collect
            .args(["-c", COLLECT, "collect"])
            .arg(&inputs.dev.path)
            .arg(&inputs.root.path)
            .arg(stage.path())
            .arg(dir.join("content"));
        host::run("extension", &cache.log("extension"), &mut collect)
    })?;
    Ok(Extension { content: entry.join("content"), key: hex })
}

/// What the extension is made from besides its recipe.
pub struct Inputs<'a> {
    pub workspace: &'a Path,
    pub dev: &'a Tree,
    pub root: &'a Tree,
}

/// Our own files, laid out as in the extension; `[Install]` is what `systemctl enable` would make of it.
fn stage(tree: &Path, recipes: &Path, programs: &[PathBuf]) -> Result<()> {
    for program in programs {
        copy(program, &tree.join("usr/lib/kraud").join(program.file_name().unwrap_or_default()))?;
    }
    let system = tree.join("usr/lib/systemd/system");
    for entry in fs::read_dir(recipes).at("read", recipes)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.extension().is_none_or(|e| e != "service") {
            continue;
        }
        copy(&path, &system.join(&name))?;
        for target in host::read(&path)?.lines().filter_map(|line| line.strip_prefix("WantedBy=")) {
            let wants = system.join(format!("{target}.wants"));
            fs::create_dir_all(&wants).at("make", &wants)?;
            symlink(Path::new("..").join(&name), wants.join(&name)).at("make", &wants)?;
        }
    }
    Ok(())
}
