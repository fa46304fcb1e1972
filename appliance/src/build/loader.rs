//! `services/loader` as a PE file: the first program of the image that the firmware starts.
//!
//! There is no toolchain for UEFI here: the compiler makes an object for the host, whose code has no absolute address and calls nothing
//! outside, and the linker of the build tree writes it as PE.

use super::Progress;
use super::cache::Cache;
use super::error::{At, Result};
use super::host;
use super::key::Key;
use super::programs::TARGET;
use super::tools::Tools;
use super::trees::Tree;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How it is compiled: in one piece, and without memory below the stack's end, which the firmware's interrupts use.
const RUSTC: &str = "--edition 2024 --crate-type lib --crate-name loader -C opt-level=s -C panic=abort -C no-redzone=yes -C relocation-model=pic -C codegen-units=1";
/// Firmware takes a program to any address only when it has relocations: there is one that does nothing.
const LAYOUT: &str = "SECTIONS {
  .text __image_base__ + 0x1000 : { *(.text .text.*) }
  .rodata ALIGN(0x1000) : { *(.rodata .rodata.*) }
  .reloc ALIGN(0x1000) : { LONG(0x1000) LONG(12) LONG(0) }
  /DISCARD/ : { *(*) }
}
";
const LD: &str = "-m i386pep --subsystem 10 -e efi_main --image-base 0 --section-alignment 4096 --file-alignment 512 --no-insert-timestamp -s";

/// The file `loader.efi` in the cache, not signed.
///
/// # Errors
/// When a source cannot be read, or the compiler or the linker fails.
pub(super) fn make(cache: &Cache, workspace: &Path, build: &Tree, progress: &mut dyn Progress) -> Result<PathBuf> {
    let (step, log) = ("loader", cache.log("loader"));
    let source = workspace.join("services/loader/src");
    let rustc = || {
        let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.current_dir(workspace);
        command
    };
    let compiler = host::output(step, &log, rustc().arg("-vV"))?;
    let key = Key::new(step, 1)
        .text("compiler", &compiler)
        .text("flags", RUSTC)
        .text("layout", LAYOUT)
        .text("ld", LD)
        .text("tree", &build.identity())
        .tree(&source)?;
    let entry = cache.step(progress, step, key, |dir, _| {
        let (object, layout) = (dir.join("loader.o"), dir.join("layout"));
        let mut compile = rustc();
        compile.args(RUSTC.split(' ')).args(["--target", TARGET]).arg(source.join("lib.rs"));
        compile.arg(format!("--remap-path-prefix={}=/loader", source.display()));
        host::run(step, &log, compile.arg(format!("--emit=obj={}", object.display())))?;
        fs::write(&layout, LAYOUT).at("write", &layout)?;
        let mut link = Tools::new(build.path.clone()).command("ld");
        link.args(LD.split(' ')).arg("-T").arg(&layout).arg("-o").arg(dir.join("loader.efi")).arg(&object);
        host::run(step, &log, &mut link)
    })?;
    Ok(entry.join("loader.efi"))
}
