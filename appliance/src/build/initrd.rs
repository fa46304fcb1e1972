//! The initrd: one program of ours and the modules that reach the disk.
//!
//! Small on purpose: firmware reads it, the kernel unpacks it, and both are slow under emulation.

use super::cache::Cache;
use super::compile::kernel_version;
use super::cpio::Cpio;
use super::error::{At, Error, Result};
use super::host;
use super::key::Key;
use super::root::Root;
use super::tools::Tools;
use super::{Flaw, Progress};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Places that `kraud-init` mounts on, and the folder of modules.
const DIRS: [&str; 6] = ["dev", "extension", "modules", "proc", "sys", "sysroot"];

/// The file `initrd` in the returned entry; `root` is the assembled root, whose modules are not compressed.
///
/// # Errors
/// When a module is missing.
pub fn make(
    cache: &Cache,
    tools: &Tools,
    root: &Root,
    init: &Path,
    recipes: &Path,
    flaw: Flaw,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let key = Key::new("initrd", 2)
        .file(init)?
        .text("root", &root.key)
        .text("flaw", if flaw == Flaw::Panic { "panic" } else { "" })
        .tree(&recipes.join("initrd"))?;
    let entry = cache.step(progress, "initrd", key, |dir, _| {
        let mut cpio = Cpio::default();
        for name in DIRS {
            cpio.dir(name);
        }
        cpio.device("dev/console", 0o600, (5, 1));
        match flaw {
            Flaw::Panic => cpio.data("init", 0o755, b"not a program\n"),
            _ => cpio.file("init", 0o755, init)?,
        }
        add_modules(&mut cpio, &root.path, &recipes.join("initrd/modules.list"))?;
        let plain = dir.join("initrd.cpio");
        fs::write(&plain, cpio.finish()).at("write", &plain)?;
        host::run(
            "initrd",
            &cache.log("initrd"),
            tools.command("zstd").args(["-q", "-15", "--rm", "-o"]).arg(dir.join("initrd")).arg(&plain),
        )
    })?;
    Ok(entry.join("initrd"))
}

/// Every group's modules with what they need, each once, and a list of them in the order of loading.
fn add_modules(cpio: &mut Cpio, root: &Path, list: &Path) -> Result<()> {
    let base_dir = root.join("usr/lib/modules").join(kernel_version(root)?);
    let dep = host::read(&base_dir.join("modules.dep"))?;
    let builtin = host::read(&base_dir.join("modules.builtin"))?;
    let mut added = BTreeSet::new();
    for line in host::read_list(list)? {
        let mut words = line.split_whitespace();
        let group = words.next().unwrap_or_default();
        let mut order: Vec<String> = Vec::new();
        for module in words {
            if is_in(&builtin, module) {
                continue;
            }
            let chain = chain(&dep, module).ok_or_else(|| Error::Recipe {
                path: list.into(),
                what: format!("the kernel has no module {module}"),
            })?;
            for file in chain {
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
        let names: Vec<_> = order.iter().map(|file| format!("{}\n", base(file))).collect();
        cpio.data(&format!("modules/{group}.list"), 0o644, names.concat().as_bytes());
        for file in order {
            if added.insert(file.clone()) {
                cpio.file(&format!("modules/{}", base(&file)), 0o644, &base_dir.join(&file))?;
            }
        }
    }
    Ok(())
}

/// A module's file after all that it needs, from `modules.dep` (which names the nearest need first).
fn chain(dep: &str, module: &str) -> Option<Vec<String>> {
    let (file, needs) = dep.lines().filter_map(|l| l.split_once(':')).find(|(file, _)| stem(file) == plain(module))?;
    let mut chain: Vec<_> = needs.split_whitespace().rev().map(str::to_owned).collect();
    chain.push(file.to_owned());
    Some(chain)
}

fn is_in(builtin: &str, module: &str) -> bool {
    builtin.lines().any(|file| stem(file) == plain(module))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn stem(path: &str) -> String {
    plain(base(path).split('.').next().unwrap_or_default())
}

/// Module names do not tell `-` from `_`.
fn plain(module: &str) -> String {
    module.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_everything_it_needs() {
        let dep =
            "k/md/dm-mod.ko:\nk/md/dm-bufio.ko: k/md/dm-mod.ko\nk/md/dm-verity.ko: k/md/dm-bufio.ko k/md/dm-mod.ko\n";
        assert_eq!(chain(dep, "dm_verity").unwrap(), ["k/md/dm-mod.ko", "k/md/dm-bufio.ko", "k/md/dm-verity.ko"]);
        assert_eq!(chain(dep, "nvme"), None);
    }
}
