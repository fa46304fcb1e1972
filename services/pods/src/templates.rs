//! Templates of guests: for each size of memory in use, a guest that was booted beforehand and that pods go on from.
//!
//! ```text
//!  cradle/templates/512/{mem,state}   read-only, root's; appears by a rename
//!  cradle/templates/.512.new/…        being made, by a unit that is given two files and has no name to write to
//! ```
//! Owns: that directory; who makes a template, one at a time, when no pod is starting, with processor time that nobody else wants.
//! Must not: have a pod wait for one: while there is none, guests boot. Nothing of a pod or an image is ever in one.
//! The monitor itself says when one does not fit (and boots); then it is made anew, a few times.

use crate::admission::Memory;
use crate::disk;
use crate::launch::write_json;
use crate::shared::Config;
use crate::systemd::{Systemd, UnitEnd};
use crate::unit::{self, Access, NamedFile};
use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use zone::PodId;
use zone::bundle::{BUNDLE_FILE, Bundle};
use zone::template::SLOTS;

/// The makers' uid: below the first pod's.
const UID: u32 = crate::shared::FIRST_UID - 1;
/// A template takes some tens of megabytes of the host's memory: with more sizes in use, the longest unused one goes.
const MAX_SIZES: usize = 8;
/// … when it has not been used for so long; guests of other sizes boot until then.
const UNUSED: Duration = Duration::from_secs(120);
/// Larger guests would have large templates: the kernel's table of pages is a part of it.
const MAX_MIB: u32 = 4160;
/// What a container without a limit of its own gets: made before anybody asks.
const USUAL_MIB: u32 = 512;
/// No pod has been starting for so long.
const CALM: Duration = Duration::from_secs(2);
/// A template that does not fit is made anew so often.
const MAX_TRIES: u8 = 3;
/// What is left on the machine beside what a maker takes, MiB.
const SPARE_MIB: u64 = 256;
const MAX_REASON: usize = 512;

/// The files of a template.
pub const FILES: [&str; 2] = ["mem", "state"];
/// How their descriptors begin, and how the bundle calls them.
pub const PASSED: &str = "template";
/// The socket that a monitor says on that its template does not fit.
pub const REFUSED: &str = "template-refused";

/// The templates.
#[derive(Debug)]
pub struct Templates {
    dir: PathBuf,
    sizes: Mutex<BTreeMap<u32, Size>>,
    /// The maker that runs.
    maker: Mutex<Option<(String, oneshot::Sender<String>)>>,
    turn: tokio::sync::Mutex<()>,
    /// Pods that are starting.
    starting: watch::Sender<BTreeSet<PodId>>,
    /// Where monitors complain, and where that is heard.
    complaints: Option<(UnixDatagram, UnixDatagram)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Size {
    state: State,
    used: Instant,
    tries: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Making,
    Ready,
    Failed,
}

impl Templates {
    /// The templates of the monitor in `cradle`. Those that are whole are used again; if one does not fit any more, its first
    /// user says so.
    #[must_use]
    pub fn new(cradle: &Path) -> Self {
        let dir = cradle.join("templates");
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| {
            let size: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((size, Size { state: State::Ready, used: Instant::now(), tries: 0 }))
        });
        let sizes = Mutex::new(sizes.collect());
        let complaints = UnixDatagram::pair().ok();
        let (maker, turn, starting) = (Mutex::default(), tokio::sync::Mutex::default(), watch::Sender::default());
        Self { dir, sizes, maker, turn, starting, complaints }
    }

    /// Clears away what a killed predecessor left unfinished, listens to monitors, and has the usual size made.
    pub async fn begin(self: &Arc<Self>, systemd: &Systemd, config: &Config) {
        for unit in systemd.list(&[unit::TEMPLATE_UNITS]).await.unwrap_or_default() {
            if let Err(error) = systemd.kill(&unit).await {
                tracing::warn!(unit, %error, "cannot end an old maker of a template");
            }
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = disk::remove_dir(&entry.path());
            }
        }
        if let Some(ours) = self.complaints.as_ref().and_then(|(ours, _)| ours.try_clone().ok()) {
            let (me, systemd, config) = (Arc::clone(self), systemd.clone(), config.clone());
            tokio::spawn(async move { me.listen(ours, &systemd, &config).await });
        }
        let _ = self.of(USUAL_MIB, systemd, config);
    }

    /// What a pod's monitor is given, if there is a template for its guest; has it made otherwise.
    pub fn give(
        self: &Arc<Self>,
        bundle: &mut Bundle,
        files: &mut Vec<NamedFile>,
        systemd: &Systemd,
        config: &Config,
    ) -> Option<(OwnedFd, &'static str)> {
        if !serves(bundle) {
            return None;
        }
        let place = self.of(bundle.memory_mib, systemd, config)?;
        for name in FILES {
            // One that is gone by then is no reason not to start.
            let (path, access) = (place.join(name), Access::ReadIfThere);
            files.push(NamedFile { name: format!("{PASSED}-{name}"), path, access });
        }
        bundle.template = Some(format!("fd:{PASSED}").into());
        let complain = self.complaints.as_ref().and_then(|(_, theirs)| theirs.try_clone().ok());
        complain.map(|socket| (socket.into(), REFUSED))
    }

    /// A pod is starting, or no longer.
    pub fn starts(&self, pod: &PodId, starts: bool) {
        self.starting.send_if_modified(|pods| if starts { pods.insert(pod.clone()) } else { pods.remove(pod) });
    }

    /// A unit has ended; true when it was a maker's.
    pub fn ended(&self, end: &UnitEnd) -> bool {
        if !unit::is_template(&end.unit) {
            return false;
        }
        let mut maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner);
        if maker.as_ref().is_some_and(|(unit, _)| *unit == end.unit)
            && let Some((_, tell)) = maker.take()
        {
            let _ = tell.send(end.result.clone());
        }
        true
    }

    fn of(self: &Arc<Self>, memory_mib: u32, systemd: &Systemd, config: &Config) -> Option<PathBuf> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = sizes.get_mut(&memory_mib) {
            size.used = Instant::now();
            return (size.state == State::Ready).then(|| self.place(memory_mib));
        }
        if sizes.len() >= MAX_SIZES {
            let (oldest, _) =
                sizes.iter().filter(|(_, size)| size.state != State::Making).min_by_key(|(_, s)| s.used)?;
            let oldest = *oldest;
            if sizes.get(&oldest)?.used.elapsed() < UNUSED {
                return None;
            }
            sizes.remove(&oldest);
            let _ = disk::remove_dir(&self.place(oldest));
        }
        sizes.insert(memory_mib, Size { state: State::Making, used: Instant::now(), tries: 1 });
        drop(sizes);
        self.have_made(memory_mib, systemd, config);
        None
    }

    fn place(&self, memory_mib: u32) -> PathBuf {
        self.dir.join(memory_mib.to_string())
    }

    fn have_made(self: &Arc<Self>, memory_mib: u32, systemd: &Systemd, config: &Config) {
        let (me, systemd, config) = (Arc::clone(self), systemd.clone(), config.clone());
        tokio::spawn(async move {
            let _turn = me.turn.lock().await;
            me.calm().await;
            let began = Instant::now();
            let state = match me.make(memory_mib, &systemd, &config).await {
                Ok(()) => {
                    tracing::info!(memory_mib, seconds = began.elapsed().as_secs(), "a template of guests is ready");
                    State::Ready
                }
                Err(error) => {
                    tracing::warn!(memory_mib, error = format!("{error:#}"), "no template; guests of this size boot");
                    State::Failed
                }
            };
            if let Some(size) = me.sizes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&memory_mib) {
                size.state = state;
            }
        });
    }

    /// Waits until no pod has been starting for a while.
    async fn calm(&self) {
        let mut starting = self.starting.subscribe();
        loop {
            if starting.wait_for(BTreeSet::is_empty).await.is_err() {
                return;
            }
            if tokio::time::timeout(CALM, starting.wait_for(|pods| !pods.is_empty())).await.is_err() {
                return;
            }
        }
    }

    async fn make(&self, memory_mib: u32, systemd: &Systemd, config: &Config) -> anyhow::Result<()> {
        let needed = u64::from(memory_mib) + SPARE_MIB;
        if let Some(memory) = Memory::now().filter(|memory| memory.available < needed) {
            bail!("{} MiB of memory are left and {needed} MiB are needed", memory.available);
        }
        let draft = self.dir.join(format!(".{memory_mib}.new"));
        disk::make_dir(&self.dir, 0o755)?;
        open_to_all(&self.dir)?;
        disk::remove_dir(&draft)?;
        disk::make_dir(&draft, 0o700)?;
        write_json(&draft.join(BUNDLE_FILE), &bundle(memory_mib))?;
        for name in FILES {
            let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(draft.join(name));
            file.with_context(|| format!("cannot make {name} in {}", draft.display()))?;
        }
        // A predecessor's may still be ending.
        let unit = unit::template_unit(memory_mib, std::process::id());
        let (tell, told) = oneshot::channel();
        *self.maker.lock().unwrap_or_else(PoisonError::into_inner) = Some((unit.clone(), tell));
        let kcradle = config.cradle.join("kcradle");
        let properties = unit::maker(memory_mib, UID, &config.setpriv, &kcradle, files(&draft, &config.cradle));
        systemd.start(&unit, properties).await?;
        let result = told.await.context("the maker's end was not told")?;
        // What counts is the state's first word, which is written last; a unit that is forgotten at once may not say its result.
        if !is_whole(&draft.join("state")) {
            bail!("the maker ended with {result}: see the journal of {unit}");
        }
        finish(&draft, &self.place(memory_mib))
    }

    /// Hears the monitors whose template did not fit.
    async fn listen(self: Arc<Self>, ours: UnixDatagram, systemd: &Systemd, config: &Config) {
        let Ok(socket) = ours.set_nonblocking(true).and_then(|()| tokio::net::UnixDatagram::from_std(ours)) else {
            return;
        };
        let mut buffer = [0; MAX_REASON];
        while let Ok(length) = socket.recv(&mut buffer).await {
            let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            let (memory_mib, why) = said.split_once(' ').unwrap_or((&said, ""));
            if let Ok(memory_mib) = memory_mib.parse()
                && self.refused(memory_mib)
            {
                tracing::warn!(memory_mib, why, "a template does not fit; another is made");
                self.have_made(memory_mib, systemd, config);
            }
        }
    }

    /// Forgets a template; true when another is to be made.
    fn refused(&self, memory_mib: u32) -> bool {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(size) = sizes.get_mut(&memory_mib).filter(|size| size.state == State::Ready) else { return false };
        let _ = disk::remove_dir(&self.place(memory_mib));
        size.tries += 1;
        size.state = if size.tries > MAX_TRIES { State::Failed } else { State::Making };
        size.state == State::Making
    }
}

/// Whether a guest of this bundle can go on from a template; the monitor has the last word.
fn serves(bundle: &Bundle) -> bool {
    let devices = 3 + bundle.disks.len() + bundle.nets.len() + bundle.shares.len() + usize::from(bundle.spare_slots);
    let plain = bundle.vcpus == 1 && bundle.console.is_none() && bundle.cmdline.is_empty();
    plain && devices < SLOTS && bundle.memory_mib <= MAX_MIB
}

/// What the maker is given: no disk, no network, no spec.
fn bundle(memory_mib: u32) -> Bundle {
    Bundle {
        kvm: Some("fd:kvm".into()),
        vcpus: 1,
        memory_mib,
        kernel: "fd:kernel".into(),
        initramfs: "fd:initramfs".into(),
        guest_spec: PathBuf::new(),
        cmdline: String::new(),
        disks: Vec::new(),
        nets: Vec::new(),
        shares: Vec::new(),
        agent: PathBuf::new(),
        log: None,
        template: Some(format!("fd:{PASSED}").into()),
        console: None,
        control: None,
        spare_slots: 0,
    }
}

fn files(draft: &Path, cradle: &Path) -> Vec<NamedFile> {
    let file = |name: &str, path: PathBuf, access| NamedFile { name: name.to_owned(), path, access };
    let [memory, state] = FILES.map(|name| file(&format!("{PASSED}-{name}"), draft.join(name), Access::Write));
    vec![
        file(crate::plan::BUNDLE, draft.join(BUNDLE_FILE), Access::Read),
        file("kvm", "/dev/kvm".into(), Access::Write),
        file("kernel", cradle.join("vmlinux"), Access::Read),
        file("initramfs", cradle.join("initramfs.cpio"), Access::Read),
        memory,
        state,
    ]
}

fn is_whole(state: &Path) -> bool {
    let mut first = [0; 8];
    fs::File::open(state).is_ok_and(|file| file.read_exact_at(&mut first, 0).is_ok()) && first != [0; 8]
}

fn open_to_all(dir: &Path) -> anyhow::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o755)).with_context(|| format!("cannot open {dir:?} to all"))
}

/// From here on nobody writes there any more.
fn finish(draft: &Path, place: &Path) -> anyhow::Result<()> {
    for name in FILES {
        let file = draft.join(name);
        fs::set_permissions(&file, Permissions::from_mode(0o444)).with_context(|| format!("cannot close {file:?}"))?;
    }
    open_to_all(draft)?;
    disk::remove_dir(place)?;
    fs::rename(draft, place).with_context(|| format!("cannot move {} to its place", draft.display()))
}

#[cfg(test)]
#[path = "templates_tests.rs"]
mod tests;
