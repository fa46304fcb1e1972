//! The development extension: what developers and tests want in a booted image and users must not have.
//!
//! A system extension (erofs, dm-verity, signature) that systemd merges into `/usr`. It holds the packages of `packages/dev.list`
//! without what the root has already, the exec door, and the units of `image-recipes/dev`. The root trusts the certificate of
//! the cache that built it and nothing else, and takes no unsigned extension.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Result};
use super::host::{self, Host};
use super::key::Key;
use super::root::{copy, write};
use super::services::cargo_build;
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
cp -R --preserve=mode,links --no-preserve=ownership "$stage/tree/." .
find usr -depth -type d -empty -delete
find . -newermt "@$SOURCE_DATE_EPOCH" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
"#;

/// The key pair that this cache signs extensions with.
pub struct Signer {
    pub key: PathBuf,
    pub cert: PathBuf,
}

impl Signer {
    /// Finds the pair, or makes it once.
    ///
    /// # Errors
    /// openssl's failure.
    pub fn open(cache: &Cache, tools: &Tools, progress: &mut dyn Progress) -> Result<Self> {
        let _alone = cache.alone("keys", progress)?;
        let dir = cache.kept("keys")?;
        let signer = Self { key: dir.join("extension.key"), cert: dir.join("extension.crt") };
        if !signer.key.exists() || !signer.cert.exists() {
            let mut command = tools.command("openssl");
            command.args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "3650",
                "-subj",
                "/CN=kraudbox development extensions",
            ]);
            command.arg("-keyout").arg(&signer.key).arg("-out").arg(&signer.cert);
            host::run("keygen", &cache.log("keygen"), &mut command)?;
        }
        Ok(signer)
    }
}

/// The extension's disk image.
///
/// # Errors
/// When a tree, the door or the image cannot be made.
pub fn make(
    cache: &Cache,
    host: Host,
    tools: &Tools,
    trees: &Trees<'_>,
    signer: &Signer,
    inputs: &Inputs<'_>,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let recipes = trees.recipes.join("dev");
    let programs = cargo_build(cache, inputs.workspace, &["door", "bench", "compare"], progress)?;
    let own = ["door", "bench", "compare"].map(|name| programs.join(name));
    let mut key = Key::new("extension", 1)
        .text("script", COLLECT)
        .text("dev", &inputs.dev.identity())
        .text("root", &inputs.root.identity())
        .text("version", inputs.version)
        .file(&signer.cert)?
        .tree(&recipes)?;
    for program in &own {
        key = key.file(program)?;
    }
    let uuid_seed = super::disk::uuid(&key.clone().hex());
    let entry = cache.step(progress, "extension", key, |dir, _| {
        let log = cache.log("extension");
        let stage = tempfile::tempdir().at("make", std::env::temp_dir())?;
        self::stage(&stage.path().join("tree"), &recipes, &own, inputs.version)?;
        let content = dir.join("content");
        let mut collect = tools.privileged(host, "sh");
        collect
            .args(["-c", COLLECT, "collect"])
            .arg(&inputs.dev.path)
            .arg(&inputs.root.path)
            .arg(stage.path())
            .arg(&content);
        host::run("extension", &log, &mut collect)?;
        let definitions = stage.path().join("repart.d");
        for entry in fs::read_dir(recipes.join("repart.d")).at("read", &recipes)?.flatten() {
            let text = host::read(&entry.path())?.replace("@CONTENT@", &content.to_string_lossy());
            write(&definitions.join(entry.file_name()), &text)?;
        }
        let mut repart = tools.privileged(host, "systemd-repart");
        repart.args([
            "--offline=yes",
            "--dry-run=no",
            "--sector-size=512",
            "--architecture=x86-64",
            "--empty=create",
            "--size=auto",
        ]);
        repart.arg(format!("--definitions={}", definitions.display())).arg(format!("--seed={uuid_seed}"));
        repart
            .arg(format!("--private-key={}", signer.key.display()))
            .arg(format!("--certificate={}", signer.cert.display()));
        host::run("extension", &log, repart.arg(dir.join("kraud-dev.raw")))?;
        host.remove(&content)
    })?;
    Ok(entry.join("kraud-dev.raw"))
}

/// What the extension is made from besides its recipe.
pub struct Inputs<'a> {
    pub workspace: &'a Path,
    pub dev: &'a Tree,
    pub root: &'a Tree,
    pub version: &'a str,
}

/// Our own files, laid out as in the extension. Units are upheld: the extension is merged after the boot's jobs are queued.
fn stage(tree: &Path, recipes: &Path, programs: &[PathBuf], version: &str) -> Result<()> {
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
        for target in host::read(&path)?.lines().filter_map(|line| line.strip_prefix("UpheldBy=")) {
            let upholds = system.join(format!("{target}.upholds"));
            fs::create_dir_all(&upholds).at("make", &upholds)?;
            symlink(Path::new("..").join(&name), upholds.join(&name)).at("make", &upholds)?;
        }
    }
    let release = format!("ID=kraudbox\nVERSION_ID={version}\nEXTENSION_RELOAD_MANAGER=1\n");
    write(&tree.join("usr/lib/extension-release.d/extension-release.kraud-dev"), &release)
}
