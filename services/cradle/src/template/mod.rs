//! Templates: a guest that was booted beforehand, up to where it asks for its spec, and goes on from there in each start.
//!
//! ```text
//!  DIR/mem     the guest's memory, sparse, at its own addresses: the kernel's code is mapped, the same pages for all guests;
//!              the rest, which guests write to, is copied into large pages: a fault for each small one costs more
//!  DIR/state   the machine's registers, and which parts of `mem` have content
//! ```
//! Written by [`make`], by the very program that reads it, and trusted: who can write there decides what guests run. `state` gets
//! its first word last, so that a template is whole or none; it names what it was made of, and does not fit anything else.
//! Must not: hold anything of a container. What was random in it is random no more ([`zone::template`] brings a new seed).

mod identity;
mod mailbox;
pub mod make;
mod state;

use crate::bundle::Names;
use crate::memory::{self, Mem};
use anyhow::{Context, Result, bail, ensure};
pub use identity::Identity;
use mailbox::Search;
pub use state::MachineState;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};
use zone::bundle::Bundle;
use zone::template::{MAX_SPEC, PAGE, PAGES, SLOTS};

const MEMORY: &str = "mem";
const STATE: &str = "state";
/// Changes with what is in the file.
const MAGIC: [u8; 8] = *b"kraudtp2";
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
    /// Opens the template in `dir`, or the one that was passed.
    ///
    /// # Errors
    /// When it is none, not whole, or was made of anything but what `wanted` says.
    pub fn open(names: &Names, dir: &Path, wanted: &Identity) -> Result<Self> {
        Self::read(names.open_in(dir, MEMORY, false)?, names.open_in(dir, STATE, false)?, wanted)
    }

    /// Reads a template's two files.
    ///
    /// # Errors
    /// As [`Template::open`].
    pub fn read(memory: File, state: File, wanted: &Identity) -> Result<Self> {
        let what = || "cannot read the template's state";
        let mut file = BufReader::with_capacity(64 << 10, state);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).with_context(what)?;
        ensure!(magic == MAGIC, "it is not whole, or of another version");
        if let Some(part) = Identity::read(&mut file).with_context(what)?.difference(wanted) {
            bail!("it was made for another {part}");
        }
        let mut words = || -> Result<u64> {
            let mut word = [0; 8];
            file.read_exact(&mut word).with_context(what)?;
            Ok(u64::from_le_bytes(word))
        };
        let bytes = words()?;
        let count = words()?;
        ensure!(count <= u64::from(MAX_PIECES), "its state is damaged");
        let pieces: Vec<Piece> = (0..count)
            .map(|_| Ok(Piece { start: words()?, len: words()?, code: words()? != 0 }))
            .collect::<Result<_>>()?;
        let end = pieces.iter().map(|piece| piece.start.saturating_add(piece.len)).max().unwrap_or_default();
        ensure!(memory.metadata().with_context(what)?.len() >= end, "its memory is cut off");
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

/// The files of a template that is being made.
struct Draft {
    memory: File,
    state: File,
}

impl Draft {
    /// In `dir`, or those that were passed; what was in them is gone.
    fn create(names: &Names, dir: &Path) -> Result<Self> {
        let draft = Self { memory: names.open_in(dir, MEMORY, true)?, state: names.open_in(dir, STATE, true)? };
        // The state first: without it, there is no template any more.
        draft.state.set_len(0).context("cannot empty the state")?;
        draft.memory.set_len(0).context("cannot empty the memory")?;
        Ok(draft)
    }

    /// Writes a template of a machine that stands still.
    fn save(&self, mem: &Mem, bytes: u64, code: &Range<u64>, made: &Identity, state: &MachineState) -> Result<()> {
        let mut search = Search::default();
        let pieces = save_memory(mem, &self.memory, code, &mut search).context("cannot write the memory")?;
        let mut words = vec![bytes, pieces.len() as u64];
        words.extend(pieces.iter().flat_map(|piece| [piece.start, piece.len, u64::from(piece.code)]));
        words.extend(search.end()?);
        let mut text = Vec::new();
        made.write(&mut text);
        text.extend(words.into_iter().flat_map(u64::to_le_bytes));
        state.write(&mut text);
        self.state.write_all_at(&text, MAGIC.len() as u64).context("cannot write the state")?;
        self.state.write_all_at(&MAGIC, 0).context("cannot write the state")
    }
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
    use kvm_bindings::CpuId;

    const BYTES: u64 = 32 << 20;
    const WRITTEN: [u64; 5] = [0x1000, 0x2000, 0x2_0000, 0x80_0000, BYTES - 8];

    fn identity() -> Identity {
        let file = tempfile::tempfile().unwrap();
        Identity::of(&file, &file, &CpuId::new(0).unwrap()).unwrap()
    }

    fn again(draft: &Draft) -> (File, File) {
        let open = |file: &File| {
            use std::os::fd::AsRawFd as _;
            File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
        };
        (open(&draft.memory), open(&draft.state))
    }

    fn made(identity: &Identity) -> Draft {
        let mem = memory::create(BYTES, false).unwrap();
        for at in WRITTEN {
            mem.write_obj(at, GuestAddress(at)).unwrap();
        }
        for page in 0..PAGES {
            let at = GuestAddress((0x100_0000 + page * PAGE) as u64);
            mem.write_slice(&zone::template::mark(page as u32), at).unwrap();
        }
        let draft = Draft { memory: tempfile::tempfile().unwrap(), state: tempfile::tempfile().unwrap() };
        draft.save(&mem, BYTES, &(0x2000..0x3000), identity, &MachineState::default()).unwrap();
        draft
    }

    fn open(draft: &Draft, identity: &Identity) -> Result<Template> {
        let (memory, state) = again(draft);
        Template::read(memory, state, identity)
    }

    #[test]
    fn memory_with_content_comes_back_and_what_is_written_later_stays_private() {
        let identity = identity();
        let draft = made(&identity);
        for shared in [false, true] {
            let template = open(&draft, &identity).unwrap();
            assert_eq!(template.pieces.iter().filter(|p| p.code).count(), 1);
            assert_eq!(template.pieces.len(), 6);
            let copy = template.memory(BYTES, shared).unwrap();
            for at in WRITTEN {
                assert_eq!(copy.read_obj::<u64>(GuestAddress(at)).unwrap(), at);
                copy.write_obj(1u64, GuestAddress(at)).unwrap();
            }
            assert_eq!(copy.read_obj::<u64>(GuestAddress(0x40_0000)).unwrap(), 0);
        }
        let again = open(&draft, &identity).unwrap().memory(BYTES, false).unwrap();
        assert_eq!(again.read_obj::<u64>(GuestAddress(0x2000)).unwrap(), 0x2000);
        assert!(open(&draft, &identity).unwrap().memory(BYTES * 2, false).is_err());
    }

    #[test]
    fn what_is_cut_off_unfinished_or_of_something_else_is_refused() {
        let identity = identity();
        let problem = |draft: &Draft| format!("{:#}", open(draft, &identity).err().unwrap());
        let draft = Draft { memory: tempfile::tempfile().unwrap(), state: tempfile::tempfile().unwrap() };
        assert!(problem(&draft).contains("cannot read"));
        let draft = made(&self::identity());
        assert!(problem(&draft).contains("made for another kernel"), "{}", problem(&draft));
        let draft = made(&identity);
        draft.memory.set_len(4096).unwrap();
        assert!(problem(&draft).contains("cut off"));
        let draft = made(&identity);
        draft.state.write_all_at(&[0; 8], 0).unwrap();
        assert!(problem(&draft).contains("not whole"));
        let draft = made(&identity);
        let length = draft.state.metadata().unwrap().len();
        for length in [0, 7, 8, 20, 200, length / 2, length - 1] {
            draft.state.set_len(length).unwrap();
            assert!(open(&draft, &identity).is_err(), "{length}");
        }
    }
}
