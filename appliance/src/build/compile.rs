//! What is compiled in the build tree: the ZFS modules for exactly the root's kernel, and the guests' kernel.
//!
//! The tree itself stays as it is: sources are unpacked in the entry under construction, which lies at `/mnt` inside.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Error, Result};
use super::host::{self, Host};
use super::key::Key;
use super::tools::chroot;
use super::trees::Tree;
use std::fs;
use std::path::{Path, PathBuf};

const ZFS: &str = r#"
version=$(basename /lib/modules/*)
cp -a /usr/src/zfs-dkms/usr/src/zfs-* /mnt/src
cd /mnt/src
./configure --with-config=kernel --with-linux="/usr/src/linux-headers-${version%-*}-common" --with-linux-obj="/usr/src/linux-headers-$version"
make -j"$(nproc)"
strip --strip-debug module/spl.ko module/zfs.ko
cp module/spl.ko module/zfs.ko /mnt/
rm -rf /mnt/src
"#;

const GUEST_KERNEL: &str = r#"
export KBUILD_BUILD_USER=kraud KBUILD_BUILD_HOST=kraudbox KBUILD_BUILD_TIMESTAMP=@0
mkdir /mnt/src
cd /mnt/src
tar xf /usr/src/linux-source-6.12.tar.xz --strip-components=1
make tinyconfig
./scripts/kconfig/merge_config.sh -m .config /mnt/fragment
make olddefconfig
cp .config /mnt/config
make -j"$(nproc)" vmlinux
cp vmlinux /mnt/vmlinux
cd /
rm -rf /mnt/src
"#;

/// The folder with `spl.ko` and `zfs.ko` for the kernel that both trees have.
///
/// # Errors
/// [`Error::KernelMismatch`], or the compiler's failure.
pub fn zfs_modules(
    cache: &Cache,
    host: Host,
    build: &Tree,
    root: &Tree,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let (headers, kernel) = (kernel_version(&build.path)?, kernel_version(&root.path)?);
    if headers != kernel {
        return Err(Error::KernelMismatch { root: kernel, headers });
    }
    let key = Key::new("zfs-modules", 1).text("kernel", &headers).text("script", ZFS).text("tree", &build.identity());
    cache.step(progress, "zfs-modules", key, |dir, progress| {
        host.may("zfs-modules", progress)?;
        host::run("zfs-modules", &cache.log("zfs-modules"), &mut chroot(host, &build.path, dir, ZFS))
    })
}

/// The folder with the guests' `vmlinux` and its `config`.
///
/// # Errors
/// The compiler's failure.
pub fn guest_kernel(
    cache: &Cache,
    host: Host,
    build: &Tree,
    recipes: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let fragment = host::read(&recipes.join("guest-kernel/config"))?;
    let version = |name: &str| build.packages.get(name).map(|package| package.version.clone()).unwrap_or_default();
    let source = version("linux-source-6.12");
    let compiler = version("gcc");
    let key = Key::new("guest-kernel", 1)
        .text("fragment", &fragment)
        .text("script", GUEST_KERNEL)
        .text("source", &source)
        .text("compiler", &compiler);
    cache.step(progress, "guest-kernel", key, |dir, progress| {
        host.may("guest-kernel", progress)?;
        fs::write(dir.join("fragment"), &fragment).at("write", dir)?;
        host::run("guest-kernel", &cache.log("guest-kernel"), &mut chroot(host, &build.path, dir, GUEST_KERNEL))?;
        let lost = lost(&fragment, &host::read(&dir.join("config"))?);
        if !lost.is_empty() {
            progress.note(&format!("guest-kernel/config: the kernel does not keep {}", lost.join(", ")));
        }
        Ok(())
    })
}

/// The only folder of `lib/modules`.
pub(crate) fn kernel_version(tree: &Path) -> Result<String> {
    let dir = tree.join("usr/lib/modules");
    let mut names: Vec<_> =
        fs::read_dir(&dir).at("read", &dir)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => Err(Error::Recipe { path: dir, what: "must hold exactly one kernel".into() }),
    }
}

/// Lines of the fragment that the final configuration does not have: an option that the kernel dropped or renamed.
fn lost(fragment: &str, config: &str) -> Vec<String> {
    let has = |line: &str| config.lines().any(|l| l == line);
    let is_off = |name: &str| !config.lines().any(|l| l.starts_with(&format!("{name}=")));
    fragment
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CONFIG_"))
        .filter(|line| match line.split_once('=') {
            Some((name, "n")) => !is_off(name),
            _ => !has(line),
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_the_kernel_dropped_are_named() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=y\n";
        assert_eq!(
            lost("CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=y\nCONFIG_D=n\n# CONFIG_X=y\n", config),
            ["CONFIG_C=y", "CONFIG_D=n"]
        );
    }
}
