//! Templates: a guest that was booted beforehand, up to where it asks for its spec, and goes on from there in each start.
//!
//! ```text
//!  DIR/mem     the guest's memory, sparse, at its own addresses: the kernel's code is mapped, the same pages for all guests;
//!              the rest, which guests write to, is copied into large pages: a fault for each small one costs more
//!  DIR/state   the machine's registers, and which parts of `mem` have content
//! ```
//! Written by [`make`], by the version of this program that reads it, and trusted: who can write there decides what guests run.
//! Must not: hold anything of a container. What was random in it is random no more ([`zone::template`] brings a new seed).

mod mailbox;
pub mod make;
mod state;

use crate::memory::{self, Mem};
use anyhow::{Context, Result, bail, ensure};
use mailbox::Search;
pub use state::MachineState;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};
use zone::bundle::Bundle;
use zone::template::{MAX_SPEC, PAGE, PAGES, SLOTS};

const MEMORY: &str = "mem";
const STATE: &str = "state";
/// Changes with what is in the file.
const MAGIC: [u8; 8] = *b"kraudtp1";
const MAX_PIECES: u32 = 1 << 20;

/// An opened template.
pub struct Template {
    memory: File,
    bytes: u64,
    pieces: Vec<Piece>,
    mailbox: Vec<u64>,
    state: MachineState,
}

/// A part of the memory that has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    len: u64,
    /// The kernel's code and constants: mapped, not copied.
    code: bool,
}

/// Whether a guest of this bundle can go on from a template at all.
#[must_use]
pub fn fits(bundle: &Bundle, devices: usize, spec: &[u8]) -> bool {
    let plain = bundle.vcpus == 1 && bundle.console.is_none() && bundle.cmdline.is_empty();
    plain && devices < SLOTS && spec.len() <= MAX_SPEC
}

impl Template {
    /// Opens the template in `dir`.
    ///
    /// # Errors
    /// When it is none, or of another version of this program.
    pub fn open(dir: &Path) -> Result<Self> {
        let what = || format!("cannot use the template in {}", dir.display());
        let memory = File::open(dir.join(MEMORY)).with_context(what)?;
        let mut file = BufReader::with_capacity(64 << 10, File::open(dir.join(STATE)).with_context(what)?);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).with_context(what)?;
        ensure!(magic == MAGIC, "the template in {} is of another version", dir.display());
        let mut words = || -> Result<u64> {
            let mut word = [0; 8];
            file.read_exact(&mut word).with_context(what)?;
            Ok(u64::from_le_bytes(word))
        };
        let bytes = words()?;
        let count = words()?;
        ensure!(count <= u64::from(MAX_PIECES), "the template in {} is damaged", dir.display());
        let pieces = (0..count)
            .map(|_| Ok(Piece { start: words()?, len: words()?, code: words()? != 0 }))
            .collect::<Result<_>>()?;
        let mailbox = (0..PAGES).map(|_| words()).collect::<Result<_>>()?;
        let state = MachineState::read(&mut file).with_context(what)?;
        Ok(Self { memory, bytes, pieces, mailbox, state })
    }

    /// The guest's memory, with the template's content.
    ///
    /// # Errors
    /// When the template has another size, or the host has no room.
    pub fn memory(&self, bytes: u64, shared: bool) -> Result<Mem> {
        if bytes != self.bytes {
            bail!("the template has {} MiB of memory, the guest shall have {}", self.bytes >> 20, bytes >> 20);
        }
        let mem = memory::create(bytes, shared)?;
        for piece in &self.pieces {
            if shared || !piece.code {
                let mut content = self.file_at(piece)?;
                mem.read_exact_volatile_from(GuestAddress(piece.start), &mut content, piece.len as usize)
                    .context("cannot read the template's memory")?;
            } else {
                memory::map_file(&mem, &self.memory, GuestAddress(piece.start), piece.len as usize)
                    .context("cannot map the template's memory")?;
            }
        }
        Ok(mem)
    }

    fn file_at(&self, piece: &Piece) -> Result<File> {
        use std::io::Seek as _;
        let mut file = self.memory.try_clone().context("cannot read the template's memory")?;
        file.seek(std::io::SeekFrom::Start(piece.start)).context("cannot read the template's memory")?;
        Ok(file)
    }

    /// The guest's memory, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells the guest what it is.
    ///
    /// # Errors
    /// When the spec is too long, or the host gives no random bytes.
    pub fn tell(&self, mem: &Mem, spec: Vec<u8>, devices: usize) -> Result<()> {
        mailbox::fill(mem, &self.mailbox, spec, devices)
    }

    /// The parts that are mapped: start and length.
    pub fn mapped(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.iter().filter(|piece| piece.code).map(|piece| (piece.start, piece.len))
    }

    /// What the machine was like.
    #[must_use]
    pub fn state(&self) -> &MachineState {
        &self.state
    }
}

/// Writes a template of a machine that stands still.
fn save(dir: &Path, mem: &Mem, bytes: u64, code: &Range<u64>, state: &MachineState) -> Result<()> {
    let create = |name: &str| File::create(dir.join(name)).with_context(|| format!("cannot make {name}"));
    let memory = create(MEMORY)?;
    let mut search = Search::default();
    let pieces = save_memory(mem, &memory, code, &mut search).context("cannot write the memory")?;
    let mut words = vec![bytes, pieces.len() as u64];
    words.extend(pieces.iter().flat_map(|piece| [piece.start, piece.len, u64::from(piece.code)]));
    words.extend(search.end()?);
    let mut text = MAGIC.to_vec();
    text.extend(words.into_iter().flat_map(u64::to_le_bytes));
    state.write(&mut text);
    let mut file = create(STATE)?;
    file.write_all(&text).context("cannot write the state")
}

/// Empty pages between others are written too, up to so many: a mapping costs more than they do.
const MAX_HOLE: usize = 16;

fn save_memory(mem: &Mem, file: &File, code: &Range<u64>, search: &mut Search) -> std::io::Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut page = [0u8; PAGE];
    for region in mem.iter() {
        use vm_memory::GuestMemoryRegion as _;
        let start = region.start_addr().0;
        for at in (start..start + region.len()).step_by(PAGE) {
            mem.read_slice(&mut page, GuestAddress(at)).map_err(std::io::Error::other)?;
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            search.look(at, &page);
            file.write_all_at(&page, at)?;
            let is_code = code.contains(&at);
            match pieces.last_mut().filter(|last| last.code == is_code) {
                Some(last) if at - (last.start + last.len) <= (MAX_HOLE * PAGE) as u64 && last.start >= start => {
                    last.len = at + PAGE as u64 - last.start;
                }
                _ => pieces.push(Piece { start: at, len: PAGE as u64, code: is_code }),
            }
        }
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_with_content_comes_back_and_what_is_written_later_stays_private() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = 32 << 20;
        let mem = memory::create(bytes, false).unwrap();
        for at in [0x1000u64, 0x2000, 0x2_0000, 0x80_0000, (32 << 20) - 8] {
            mem.write_obj(at, GuestAddress(at)).unwrap();
        }
        for page in 0..PAGES {
            mem.write_slice(&zone::template::mark(page as u32), GuestAddress((0x100_0000 + page * PAGE) as u64))
                .unwrap();
        }
        save(dir.path(), &mem, bytes, &(0x2000..0x3000), &MachineState::default()).unwrap();
        for shared in [false, true] {
            let template = Template::open(dir.path()).unwrap();
            assert_eq!(template.pieces.iter().filter(|p| p.code).count(), 1);
            assert_eq!(template.pieces.len(), 6);
            let copy = template.memory(bytes, shared).unwrap();
            for at in [0x1000u64, 0x2000, 0x2_0000, 0x80_0000, (32 << 20) - 8] {
                assert_eq!(copy.read_obj::<u64>(GuestAddress(at)).unwrap(), at);
                copy.write_obj(1u64, GuestAddress(at)).unwrap();
            }
            assert_eq!(copy.read_obj::<u64>(GuestAddress(0x40_0000)).unwrap(), 0);
        }
        let again = Template::open(dir.path()).unwrap().memory(bytes, false).unwrap();
        assert_eq!(again.read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 0x2000);
        assert!(Template::open(dir.path()).unwrap().memory(bytes * 2, false).is_err());
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Template::open(dir.path()).is_err());
        std::fs::write(dir.path().join(MEMORY), "").unwrap();
        std::fs::write(dir.path().join(STATE), "kraudtp0").unwrap();
        let error = Template::open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("another version"));
    }
}
