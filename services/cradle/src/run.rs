//! `kcradle run`: from a bundle to a guest that runs, and to its end.
//!
//! Order: open everything that the bundle names; memory; machine; devices; what stands in memory; vCPUs. Nothing is opened after
//! the guest's first instruction. Threads: one a vCPU, one for all disks, one a network interface; the rest on this one.

use crate::begin::{self, Begun};
use crate::boot::{self, Parts, cmdline};
use crate::bundle;
use crate::bus::{Bus, MMIO_BASE, MMIO_WINDOW};
use crate::control::Control;
use crate::cpu;
use crate::epoll::{Epoll, EventFlags};
use crate::jail;
use crate::memory::Mem;
use crate::plugger::Plugger;
use crate::say;
use crate::seccomp::{self, Role};
use crate::serial::{self, Serial};
use crate::slots::SpareSlot;
use crate::template::Template;
use crate::vcpu::{self, End};
use crate::virtio::block::{self, Block, extents::Extents};
use crate::virtio::fs::{self, Fs};
use crate::virtio::mmio::{MmioDevice, QUEUE_NOTIFY};
use crate::virtio::net::{self, Net};
use crate::virtio::rng::{self, Rng};
use crate::virtio::vsock::{self, device::Vsock, log::LogFiles};
use crate::virtio::{Identity, Slot};
use crate::vm::Vm;
use crate::worker::{self, Orders};
use anyhow::{Context, Result};
use kvm_ioctls::VcpuFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Barrier, Mutex};
use zone::bundle::Bundle;
use zone::template::SLOTS;

const FIRST_LINE: u32 = 5;
const LINES: u32 = boot::mptable::LINES as u32 - FIRST_LINE;
const MAX_SPEC_BYTES: u64 = 16 << 20;
const MAX_DESCRIPTORS: u64 = 2048;
const STACK: usize = 256 * 1024;

const TOKEN_END: u64 = 0;
const TOKEN_LISTENER: u64 = 1;
const TOKEN_VSOCK: u64 = 2;
const TOKEN_RNG: u64 = 3;
const TOKEN_FS: u64 = 4;
/// Behind the shares: the control socket and its clients.
const TOKEN_CONTROL: u64 = 1 << 16;
const TOKEN_CONTROL_END: u64 = TOKEN_CONTROL + Control::TOKENS;
/// Tokens from here on are vsock connections.
const TOKEN_STREAMS: u64 = 1 << 32;

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The bundle's directory, or `fd:NAME`: its `cradle.json` was passed.
    pub dir: PathBuf,
    /// Refuse to start where the jail is not complete.
    pub strict: bool,
    /// End with the status of the container that exited last, when the guest ended well.
    pub exit_status: bool,
    /// Where to write the process id.
    pub pid_file: Option<PathBuf>,
}

/// Boots the bundle and waits for the guest's end; gives the exit code.
///
/// # Errors
/// When it cannot start.
pub fn run(options: &Options) -> Result<u8> {
    allow_descriptors();
    let (bundle, names) = bundle::load(&options.dir)?;
    let spec = read_spec(&bundle, &names)?;
    let begun = begin::begin(&bundle, &names, &spec)?;
    let machine = Machine::new(&bundle, &names, begun)?;
    machine.load(&bundle, &names, spec)?;
    if let Some(path) = &options.pid_file {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    drop(names);
    // Everything is open. From here on there is no path, and then, thread by thread, hardly a system call.
    let lacks = jail::enter(options.strict)?;
    for (what, why) in [("namespaces", lacks.namespaces), ("Landlock", lacks.landlock)] {
        if let Some(why) = why {
            say(&format!("this host gives no {what} to the jail: {why}; system call filters hold nonetheless"));
        }
    }
    machine.start(options.exit_status)
}

fn read_spec(bundle: &Bundle, names: &bundle::Names) -> Result<Vec<u8>> {
    let mut spec = Vec::new();
    let file = names.open(&bundle.guest_spec, false)?;
    file.take(MAX_SPEC_BYTES + 1).read_to_end(&mut spec).context("cannot read the guest's specification")?;
    anyhow::ensure!(
        spec.len() as u64 <= MAX_SPEC_BYTES,
        "the guest's specification is larger than {MAX_SPEC_BYTES} bytes"
    );
    Ok(spec)
}

/// Everything, before the first instruction.
struct Machine {
    mem: Arc<Mem>,
    vm: Vm,
    cpus: Vec<VcpuFd>,
    lines: Vec<u32>,
    devices: Vec<MmioDevice>,
    vsock: Vsock,
    vsock_slot: Arc<Slot>,
    rng: Rng,
    rng_slot: Arc<Slot>,
    disks: Vec<Block>,
    nets: Vec<Net>,
    shares: Vec<Fs>,
    serial: Option<Mutex<Serial>>,
    control: Option<OwnedFd>,
    spare: Vec<SpareSlot>,
    template: Option<Template>,
}

/// Puts devices on the bus, one after the other.
struct Builder<'a> {
    vm: &'a Vm,
    mem: &'a Arc<Mem>,
    lines: Vec<u32>,
    devices: Vec<MmioDevice>,
}

impl Builder<'_> {
    fn add(&mut self, identity: Identity) -> Result<Arc<Slot>> {
        let index = self.devices.len();
        let line = line_of(index);
        let slot = Slot::new(identity.queues.len(), self.vm.line(line)?).context("cannot make event descriptors")?;
        let address = MMIO_BASE + index as u64 * MMIO_WINDOW + QUEUE_NOTIFY;
        for (queue, kick) in slot.kicks.iter().take(identity.doorbells).enumerate() {
            self.vm.doorbell(kick, address, queue as u32)?;
        }
        self.lines.push(line);
        self.devices.push(MmioDevice::new(identity, slot.clone(), self.mem.clone()));
        Ok(slot)
    }
}

impl Machine {
    fn new(bundle: &Bundle, names: &bundle::Names, begun: Begun) -> Result<Self> {
        let Begun { mem, vm, cpus, template } = begun;
        let log = match &bundle.log {
            Some(log) => {
                let [first, second] = &log.files;
                Some(LogFiles::open([names.open(first, true)?, names.open(second, true)?], log.max_bytes)?)
            }
            None => None,
        };
        let listener = names.listen(&bundle.agent)?;
        let mut builder = Builder { vm: &vm, mem: &mem, lines: Vec::new(), devices: Vec::new() };

        let vsock_slot = builder.add(vsock::identity())?;
        let vsock = Vsock::new(vsock_slot.clone(), mem.clone(), listener, TOKEN_LISTENER, log)
            .context("cannot set up the agent's socket")?;
        let rng_slot = builder.add(rng::identity())?;
        let rng = Rng::new(rng_slot.clone(), mem.clone());
        let mut disks = Vec::new();
        for (index, disk) in bundle.disks.iter().enumerate() {
            let extents = open_disk(disk, names).with_context(|| format!("cannot open disk {index}"))?;
            let slot = builder.add(block::identity(&extents))?;
            disks.push(Block::new(slot, mem.clone(), extents).limited(disk.read, disk.write));
        }
        let mut nets = Vec::new();
        for net in &bundle.nets {
            let identity = net::identity(net::parse_mac(&net.mac)?);
            let tap = net::attach(names.tun(net.tun.as_deref())?, &net.tap)?;
            nets.push(Net::new(builder.add(identity)?, mem.clone(), tap).limited(net.receive, net.send));
        }
        let mut shares = Vec::new();
        for share in &bundle.shares {
            let (identity, daemon) = fs::connect(&share.tag, names.connect(&share.socket)?)?;
            shares.push(Fs::new(builder.add(identity)?, mem.clone(), daemon, &share.tag));
        }
        let (mut lines, devices) = (builder.lines, builder.devices);
        let spare = match &template {
            Some(_) => SLOTS - devices.len(),
            // One more, for the balloon.
            None => usize::from(bundle.spare_slots) + 1,
        };
        let spare: Vec<SpareSlot> = (0..spare).map(|_| SpareSlot::default()).collect();
        lines.extend((devices.len()..devices.len() + spare.len()).map(line_of));
        let control = bundle.control.as_ref().map(|name| names.listen_for_control(name)).transpose()?;
        let serial = match &bundle.console {
            Some(name) => Some(Mutex::new(Serial::new(names.append(name)?, vm.line(serial::IRQ)?))),
            None => None,
        };
        Ok(Self {
            mem,
            vm,
            cpus,
            lines,
            devices,
            vsock,
            vsock_slot,
            rng,
            rng_slot,
            disks,
            nets,
            shares,
            serial,
            control,
            spare,
            template,
        })
    }

    /// Puts the spec where the guest finds it; for one that boots, kernel and first instruction, too.
    fn load(&self, bundle: &Bundle, names: &bundle::Names, spec: Vec<u8>) -> Result<()> {
        if let Some(template) = &self.template {
            return template.tell(&self.mem, spec, self.devices.len());
        }
        let mut parts = Parts {
            kernel: &mut names.open(&bundle.kernel, false)?,
            initramfs: &mut names.open(&bundle.initramfs, false)?,
            spec: &spec,
            cmdline: &cmdline::build(&self.lines, self.serial.is_some(), &bundle.cmdline),
            vcpus: bundle.vcpus,
            memory: u64::from(bundle.memory_mib) << 20,
        };
        let entry = boot::load(&self.mem, &mut parts)?;
        self.cpus.first().map_or(Ok(()), |cpu| cpu::set_entry(cpu, entry))
    }

    /// Starts the threads, and is the main one until the guest ends.
    fn start(self, exit_status: bool) -> Result<u8> {
        let Self { mem, vm, cpus, devices, mut vsock, vsock_slot, rng, rng_slot, disks, nets, mut shares, .. } = self;
        let end = End::new().context("cannot make event descriptors")?;
        let mut epoll = Epoll::new().context("cannot make an epoll set")?;
        let edge = EventFlags::IN | EventFlags::ET;
        let mut watched =
            vec![(end.event(), TOKEN_END), (&vsock_slot.changed, TOKEN_VSOCK), (&rng_slot.changed, TOKEN_RNG)];
        watched.extend([
            (&vsock_slot.kicks[0], TOKEN_VSOCK),
            (&vsock_slot.kicks[1], TOKEN_VSOCK),
            (&rng_slot.kicks[0], TOKEN_RNG),
        ]);
        watched
            .extend(shares.iter().enumerate().map(|(index, share)| (&share.slot().changed, TOKEN_FS + index as u64)));
        for (event, token) in watched {
            epoll.add(event, token, edge).context("cannot watch an event descriptor")?;
        }

        let bus = Arc::new(Bus { devices, spare: self.spare, serial: self.serial });
        let orders = Orders::new().context("cannot make event descriptors")?;
        let plug = self.control.is_some();
        let crew = Crew { end: end.clone(), confined: Arc::new(Barrier::new(cpus.len() + nets.len() + 2)) };
        let its_orders = orders.clone();
        crew.hire("disks", Role::Disks { plug }, move || worker::work(disks, &its_orders))?;
        for net in nets {
            crew.hire("net", Role::Net, move || net.work())?;
        }
        for (id, cpu) in (0..).zip(cpus) {
            let (bus, end) = (bus.clone(), end.clone());
            crew.hire(&format!("vcpu{id}"), Role::Vcpu, move || {
                vcpu::run(id, cpu, &bus, &end);
                Ok(())
            })?;
        }
        // The machine's descriptor stays open to the end: without it, KVM would let go of the interrupt lines.
        let mut plugger = Plugger { vm, mem, bus, orders, plugged: BTreeMap::new() };
        let control = self.control.map(|listener| Control::new(listener, TOKEN_CONTROL, &epoll));
        let mut control = control.transpose()?;
        seccomp::confine(&seccomp::filter(Role::Main { plug })?)?;
        crew.confined.wait();

        let mut events = Vec::new();
        loop {
            epoll.wait(&mut events).context("cannot wait for events")?;
            for (token, flags) in events.drain(..) {
                match token {
                    TOKEN_RNG => rng.serve(),
                    TOKEN_LISTENER => vsock.client_waits(),
                    TOKEN_STREAMS.. => vsock.stream_event(token, flags),
                    TOKEN_CONTROL..TOKEN_CONTROL_END => {
                        if let Some(control) = &mut control {
                            control.event(token, &epoll, &mut plugger);
                        }
                    }
                    token => {
                        if let Some(share) =
                            token.checked_sub(TOKEN_FS).and_then(|index| shares.get_mut(index as usize))
                        {
                            share.changed();
                        }
                    }
                }
            }
            // Also at the end: what the guest sent before is taken first.
            vsock.serve(&epoll).context("cannot serve the guest's sockets")?;
            if vsock.became_ready()
                && let Err(error) = plugger.plug_balloon()
            {
                say(&format!("the guest's free memory stays with it: {error:#}"));
            }
            match end.code() {
                Some(vcpu::ENDED) if vsock.log_is_open() => {
                    say(
                        "the guest restarted before it had ended its log, as a kernel that panics does; a console in the bundle tells why",
                    );
                    return Ok(vcpu::CRASHED);
                }
                Some(vcpu::ENDED) if exit_status => return Ok(vsock.exit_status().unwrap_or(vcpu::ENDED)),
                Some(code) => return Ok(code),
                None => {}
            }
        }
    }
}

/// The interrupt line of the window with this number. More windows than lines share them, which edge-triggered lines allow: each
/// handler looks at its own device.
pub fn line_of(window: usize) -> u32 {
    FIRST_LINE + window as u32 % LINES
}

/// A descriptor for each connection, beside the ones for devices.
fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MAX_DESCRIPTORS, |maximum| maximum.min(MAX_DESCRIPTORS));
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit });
    }
}

fn open_disk(disk: &zone::bundle::Disk, names: &bundle::Names) -> Result<Extents> {
    let mut extents = Extents::new(disk.read_only);
    for extent in &disk.extents {
        let file = names.open(&extent.path, !disk.read_only)?;
        extents
            .push(file, extent.offset, extent.len)
            .with_context(|| format!("cannot use {}", extent.path.display()))?;
    }
    Ok(extents)
}

/// The threads beside the main one.
struct Crew {
    end: Arc<End>,
    /// Nobody works before all are confined.
    confined: Arc<Barrier>,
}

impl Crew {
    /// Starts a thread; its failure ends the guest.
    fn hire(&self, name: &str, role: Role, work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<()> {
        let filter = seccomp::filter(role)?;
        let (its_name, end, confined) = (name.to_owned(), self.end.clone(), self.confined.clone());
        let body = move || {
            let result = seccomp::confine(&filter);
            confined.wait();
            if let Err(error) = result.and_then(|()| work().context("cannot go on")) {
                say(&format!("the thread {its_name} failed: {error:#}"));
                end.set(vcpu::CRASHED);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body);
        thread.map(drop).with_context(|| format!("cannot start the thread {name}"))
    }
}
