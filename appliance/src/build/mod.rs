//! Makes the bootable image from `image-recipes/` and the workspace's services.
//!
//! Owns the order of the steps and what a caller gets back. Every step lies in a content-addressed cache ([`cache`]); nothing is
//! written next to the sources but what the caller asks for. Nothing here starts a virtual machine.

pub mod cache;
pub mod compile;
pub mod cpio;
pub mod debs;
pub mod disk;
mod efi_variable;
pub mod error;
mod esp;
pub mod extension;
pub mod host;
pub mod initrd;
pub mod key;
mod loader;
pub mod lock;
pub mod mirror;
mod pe;
mod programs;
pub mod release;
pub mod resolve;
pub mod root;
mod sbom;
pub mod secure_boot;
pub mod services;
pub mod size;
pub mod tools;
pub mod trees;
mod unsigned;
pub mod verify;

pub use error::{Error, Result};
pub use tools::Tools;

use cache::Cache;
use error::At;
use host::Host;
use lock::Lock;
use mirror::Sources;
use std::path::PathBuf;
use std::time::Duration;
use trees::{Tree, Trees};

/// Which of the two images of a version is made. Both have the same root, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// What users get: no way in but the zone's own interfaces.
    #[default]
    Release,
    /// The release plus one system extension: the exec door and a Docker Engine to compare with.
    Development,
}

/// What to build, and from where.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The workspace's root.
    pub workspace: PathBuf,
    /// Take nothing from the cache but downloaded packages and keys: every step is made again, in a cache of its own.
    pub cold: bool,
    pub variant: Variant,
    /// Debian mirror; `None` for that of the machine's own apt sources.
    pub mirror: Option<String>,
    /// Fail unless every package is exactly that of `image-recipes/packages.lock`.
    pub locked: bool,
    /// Archives of Debian as it was, for what the mirror no longer has.
    pub snapshots: Vec<String>,
    /// The version that the machine is told to be of; `None` for that of the workspace.
    pub version: Option<String>,
    /// For tests of updates: what is wrong with the image.
    pub flaw: Flaw,
}

/// What can be wrong with an image that is made for a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flaw {
    #[default]
    None,
    /// The initrd's first program is none: the kernel panics.
    Panic,
    /// The root's hash tree is of another root: the initrd finds no root.
    Verity,
    /// The Docker API's signed image is cut: the service never starts.
    Service,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Built,
    Cached,
}

/// Who is told what the builder does.
pub trait Progress {
    /// A step begins.
    fn started(&mut self, step: &str);
    /// The step that began last has ended well.
    fn finished(&mut self, step: &str, outcome: Outcome, took: Duration);
    /// Something that the reader should know: a package that moved, a command that runs as root.
    fn note(&mut self, text: &str);
    /// Runs something that talks to the user by itself, as sudo asking for a password.
    fn aside(&mut self, talk: &mut dyn FnMut()) {
        talk();
    }
}

/// Tells nobody.
struct Quiet;

impl Progress for Quiet {
    fn started(&mut self, _: &str) {}
    fn finished(&mut self, _: &str, _: Outcome, _: Duration) {}
    fn note(&mut self, _: &str) {}
}

/// What a build left behind. All paths are absolute and stay valid until `cache gc`.
#[derive(Clone, Debug)]
pub struct Built {
    /// The raw disk image. Never boot it directly: use it as the base of a qcow2 overlay.
    pub image: PathBuf,
    /// Of the image, in hex.
    pub sha256: String,
    /// The image's length in bytes; the file is sparse.
    pub size: u64,
    /// UEFI firmware code, for a read-only pflash drive.
    pub ovmf_code: PathBuf,
    /// UEFI variables, to be copied for each machine.
    pub ovmf_vars: PathBuf,
    /// QEMU (`qemu-system-x86_64`, `qemu-img`), swtpm and the docker CLI with compose and buildx (`docker`) are in here.
    pub tools: Tools,
    /// The assembled root before compression, for [`size::report`].
    pub root: PathBuf,
    /// How many packages are not as the lock says.
    pub moved: usize,
    /// What an update of this image consists of.
    pub update: release::Update,
}

/// Builds the image, or finds it in the cache.
///
/// # Errors
/// Names the step, what is wrong and what to do.
pub fn build(options: &BuildOptions, progress: &mut dyn Progress) -> Result<Built> {
    let host = Host::detect()?;
    if options.cold {
        host.remove(&cold_cache()?)?;
    }
    let cache = open(options, host, progress)?;
    let recipes = options.workspace.join("image-recipes");
    let sources = Sources::detect(options.mirror.as_deref(), &options.snapshots)?;
    let lock = Lock::read(&recipes.join("packages.lock"))?;
    let strict = options.locked;
    let trees = Trees { cache: &cache, host, recipes: &recipes, sources: &sources, lock: &lock, strict };
    let tools_tree = trees.make("tools", progress)?;
    let build_tree = trees.make("build", progress)?;
    let root_tree = trees.make("root", progress)?;
    let mut moved = 0;
    for (name, tree) in [("tools", &tools_tree), ("build", &build_tree), ("root", &root_tree)] {
        moved += tell_moved(&lock, name, tree, progress);
    }

    let version = options.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let tools = Tools::new(tools_tree.path.clone());
    let keys = secure_boot::Keys::get(&cache, &tools, progress)?;
    let zfs = compile::zfs_modules(&cache, host, &build_tree, &root_tree, progress)?;
    let zfs = keys.modules(&cache, &build_tree, &zfs, progress)?;
    let guest_kernel = compile::guest_kernel(&cache, host, &build_tree, &recipes, progress)?;
    let services = services::make(&cache, &options.workspace, &recipes, &guest_kernel, progress)?;
    // The version is the kernel image's: a root without changes is the same root in every version.
    let listed = sbom::Inputs {
        workspace: &options.workspace,
        version: env!("CARGO_PKG_VERSION"),
        root: &root_tree.packages,
        build: &build_tree.packages,
        packages: &services.packages,
    };
    let parts = root::Parts {
        tree: &root_tree,
        sbom: &sbom::text(&cache, &listed)?,
        zfs: &zfs,
        services: &services,
        recipes: &recipes,
        version: env!("CARGO_PKG_VERSION"),
        locked: moved == 0,
        flaw: options.flaw,
    };
    let root = root::assemble(&cache, host, &tools, &parts, progress)?;
    let initrd = initrd::make(&cache, &tools, &root, &services.init, &recipes, options.flaw, progress)?;
    let mut moved_in_dev = 0;
    let extension = match options.variant {
        Variant::Release => None,
        Variant::Development => {
            let dev = trees.make("dev", progress)?;
            moved_in_dev = tell_moved(&lock, "dev", &dev, progress);
            let inputs = extension::Inputs { workspace: &options.workspace, dev: &dev, root: &root_tree };
            Some(extension::make(&cache, host, &tools, &trees, &inputs, progress)?)
        }
    };
    let loader = loader::make(&cache, &options.workspace, &build_tree, progress)?;
    let parts = disk::Parts {
        root: &root,
        loader: &loader,
        keys: &keys,
        initrd: &initrd,
        root_tree: &root_tree,
        tools_tree: &tools_tree,
        recipes: &recipes,
        version,
        extension: extension.as_ref(),
    };
    let slot = disk::slot(&cache, host, &tools, &parts, progress)?;
    let kernel = disk::kernel(&cache, host, &tools, &parts, &slot, options.flaw, progress)?;
    let disk = disk::make(&cache, host, &tools, &parts, &slot, &kernel, progress)?;
    let update = release::Update { version: version.to_owned(), slot, kernel };
    if options.version.is_none() && options.flaw == Flaw::None {
        cache.keep_for(&options.workspace, &format!("{:?}", options.variant))?;
    }
    Ok(Built {
        image: disk.image,
        sha256: disk.sha256,
        size: disk.size,
        ovmf_code: tools.tree().join("usr/share/OVMF/OVMF_CODE_4M.fd"),
        ovmf_vars: tools.tree().join("usr/share/OVMF/OVMF_VARS_4M.fd"),
        tools,
        root: root.path,
        moved: moved + moved_in_dev,
        update,
    })
}

/// Builds the services alone, as they would lie in the image's root.
///
/// # Errors
/// As [`build`].
pub fn services_only(options: &BuildOptions, progress: &mut dyn Progress) -> Result<services::Services> {
    let host = Host::detect()?;
    let cache = open(options, host, progress)?;
    let recipes = options.workspace.join("image-recipes");
    let sources = Sources::detect(options.mirror.as_deref(), &options.snapshots)?;
    let lock = Lock::read(&recipes.join("packages.lock"))?;
    let strict = options.locked;
    let trees = Trees { cache: &cache, host, recipes: &recipes, sources: &sources, lock: &lock, strict };
    let build_tree = trees.make("build", progress)?;
    let guest_kernel = compile::guest_kernel(&cache, host, &build_tree, &recipes, progress)?;
    services::make(&cache, &options.workspace, &recipes, &guest_kernel, progress)
}

/// Where everything is made again; nothing there outlives what it was made for.
fn cold_cache() -> Result<PathBuf> {
    Ok(cache::default_root()?.join("cold"))
}

/// The cache that the options want.
fn open(options: &BuildOptions, host: Host, progress: &mut dyn Progress) -> Result<Cache> {
    let root = cache::default_root()?;
    if !options.cold {
        return Cache::open(root, host, progress);
    }
    let cold = cold_cache()?;
    let cache = Cache::open(cold.clone(), host, progress)?.with_programs();
    for kept in [trees::DEBS, "keys"] {
        let (from, to) = (root.join(kept), cold.join(kept));
        std::fs::create_dir_all(&from).at("make", &from)?;
        match std::os::unix::fs::symlink(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).at("make", to),
            _ => {}
        }
    }
    Ok(cache)
}

/// Says which packages of a tree are not as locked; returns how many.
fn tell_moved(lock: &Lock, name: &str, tree: &Tree, progress: &mut dyn Progress) -> usize {
    const SHOWN: usize = 8;
    let moved = lock::moved(name, &lock.tree(name), &tree.packages);
    if !moved.is_empty() {
        let more = moved.len().saturating_sub(SHOWN);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        let shown = moved.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        progress.note(&format!("the image is not locked: {shown}{rest}; `cargo appliance lock` accepts them"));
    }
    moved.len()
}

/// Writes `image-recipes/packages.lock` from what the mirror's indexes have now. Returns what changed.
///
/// # Errors
/// As [`build`].
pub fn refresh_lock(options: &BuildOptions, progress: &mut dyn Progress) -> Result<Vec<String>> {
    let host = Host::detect()?;
    let cache = open(options, host, progress)?;
    let recipes = options.workspace.join("image-recipes");
    let sources = Sources::detect(options.mirror.as_deref(), &options.snapshots)?;
    let path = recipes.join("packages.lock");
    let (old, none) = (Lock::read(&path)?, lock::Packages::new());
    let trees = Trees { cache: &cache, host, recipes: &recipes, sources: &sources, lock: &old, strict: false };
    let (mut new, mut changed) = (Lock::default(), Vec::new());
    let began = std::time::Instant::now();
    progress.started("indexes");
    let apt = trees.apt()?;
    progress.finished("indexes", Outcome::Built, began.elapsed());
    for name in trees::NAMES {
        let packages = trees.resolve(&apt, name, &none)?;
        changed.extend(lock::moved(name, &old.tree(name), &packages));
        new.set(name, packages);
    }
    let temp = path.with_extension("lock.new");
    std::fs::write(&temp, new.text()).at("write", &temp)?;
    std::fs::rename(&temp, &path).at("write", &path)?;
    Ok(changed)
}

/// Removes what no checkout's last build needs and no build has used for `age` from the cache.
///
/// # Errors
/// When a build runs, or something cannot be removed.
pub fn collect_cache(cache: Option<&std::path::Path>, age: Duration) -> Result<cache::Collected> {
    let root = cache.map_or_else(cache::default_root, |path| Ok(path.to_owned()))?;
    Cache::open(root, Host::detect()?, &mut Quiet)?.collect(age)
}
