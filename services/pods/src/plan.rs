//! What a pod's microVM is made of: bundle, guest's orders, shares. A pure function of the resources.
//!
//! Invariants: disks are in the order image, writable layer for each container, then what is mounted; what is mounted in
//! several places alike is shared once. Must not: touch the machine.

use crate::machine::Needs;
use crate::unit::{Access, Expendable, NamedFile};
use crate::world::View;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use zone::bundle::{BUNDLE_FILE, Bundle, Disk, Extent, LogFiles, Net, Share};
use zone::endpoint::EndpointStatus;
use zone::guest::{Dns, GuestContainer, GuestMount, GuestSpec, HostsLine, Nic, Upper};
use zone::log::DEFAULT_MAX_BYTES;
use zone::pod::{ContainerSpec, Mount, PodSpec};
use zone::volume::VolumeAccess;
use zone::{EndpointId, ImageId, VolumeName};

/// Networks that a running container can join beside those that it started with.
const SPARE_SLOTS: u8 = 4;

/// Memory of the helper that reaches a pod's files, MiB.
const FILES_MIB: u32 = 128;

/// Where a pod's things lie.
#[derive(Clone, Debug)]
pub struct Places {
    /// Monitor, agent and kernel.
    pub cradle: PathBuf,
    /// The bundle's directory.
    pub run: PathBuf,
    /// Writable layers and log files.
    pub data: PathBuf,
    /// Keep the serial console's output in the bundle's directory.
    pub console: bool,
}

impl Places {
    /// The writable layer of the pod's container number `index`.
    #[must_use]
    pub fn layer(&self, index: usize) -> PathBuf {
        self.data.join(format!("rw-{index}.img"))
    }

    /// What the agent is told.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.run.join("spec.json")
    }

    /// Where the serial console's output goes, when it is kept.
    #[must_use]
    pub fn console_file(&self) -> PathBuf {
        self.run.join("console")
    }

    /// The log's two files.
    #[must_use]
    pub fn logs(&self) -> [PathBuf; 2] {
        [self.data.join("log.0"), self.data.join("log.1")]
    }
}

/// A directory to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDir {
    /// On the host.
    pub dir: PathBuf,
    /// Where its file server listens.
    pub socket: PathBuf,
    /// Only a part of it; what is in the directory may be any guest's work.
    pub part: Option<Part>,
    /// The guest cannot write, whatever its own mounts say.
    pub read_only: bool,
}

/// A part of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The path in it.
    pub path: String,
    /// A folder is made when nothing is there.
    pub create: bool,
}

/// The descriptors of the sockets that are made for the monitor to listen on.
pub const AGENT: &str = "agent";
/// See [`AGENT`].
pub const CONTROL: &str = "control";
/// The descriptor of the bundle itself.
pub const BUNDLE: &str = "bundle";

/// What systemd opens for the monitor, which then opens nothing itself.
#[derive(Clone, Debug, Default)]
struct Passed(Vec<NamedFile>);

impl Passed {
    /// Has it passed; gives what the bundle calls it.
    fn file(&mut self, name: impl Into<String>, path: impl Into<PathBuf>, access: Access) -> PathBuf {
        let (name, path) = (name.into(), path.into());
        let as_named = PathBuf::from(format!("fd:{name}"));
        self.0.push(NamedFile { name, path, access });
        as_named
    }

    /// The pieces of an image's disk.
    fn extents(&mut self, prefix: &str, mut extents: Vec<Extent>) -> Vec<Extent> {
        for (number, extent) in extents.iter_mut().enumerate() {
            extent.path = self.file(format!("{prefix}-{number}"), &extent.path, Access::Read);
        }
        extents
    }
}

/// Everything that a start needs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the monitor boots.
    pub bundle: Bundle,
    /// What the agent does.
    pub guest: GuestSpec,
    /// Directories, in the order of the bundle's shares.
    pub dirs: Vec<SharedDir>,
    /// Volumes that this pod alone may use.
    pub blocks: Vec<VolumeName>,
    /// Everything that the monitor is given.
    pub files: Vec<NamedFile>,
}

impl Plan {
    /// How soon it goes when the machine has no memory left.
    #[must_use]
    pub fn expendable(&self) -> Expendable {
        match self.guest.containers.iter().all(|c| c.memory_limit > 0) {
            _ if self.guest.files_only => Expendable::First,
            true => Expendable::Last,
            false => Expendable::Sooner,
        }
    }
}

/// Makes the plan of a pod's run `run`, or says what is missing.
///
/// # Errors
/// What is missing, and whether waiting can help.
pub fn plan(view: &View, places: &Places, run: u32, now_ns: u64) -> Result<Plan, Needs> {
    let spec = &view.pod.spec;
    let (mut files, containers) = Files::of(view, places, |_| true)?;
    let endpoints = endpoints(view)?;
    let max_bytes =
        spec.containers.iter().map(|c| c.log_max_bytes).max().filter(|n| *n > 0).unwrap_or(DEFAULT_MAX_BYTES);
    let mut net = |(i, e): (usize, &EndpointStatus)| {
        let tun = Some(files.passed.file(format!("tun{i}"), "/dev/net/tun", Access::Write));
        Net { tap: e.tap.clone(), mac: e.mac.clone(), tun, ..Net::default() }
    };
    let nets = endpoints.iter().enumerate().map(&mut net).collect();
    let [first, second] = places.logs();
    let logs = [files.passed.file("log0", first, Access::Write), files.passed.file("log1", second, Access::Write)];
    let guest = guest(spec, &endpoints, containers, run, now_ns)?;
    let mut plan = files.plan(places, spec.vcpus, spec.memory_mib, guest);
    plan.bundle.nets = nets;
    plan.bundle.log = Some(LogFiles { files: logs, max_bytes });
    plan.bundle.spare_slots = SPARE_SLOTS;
    Ok(plan)
}

/// Makes the plan of the helper that reaches a pod's files: its disks and volumes, no network, no log, no process.
///
/// # Errors
/// As [`plan`].
pub fn files_plan(view: &View, places: &Places, now_ns: u64) -> Result<Plan, Needs> {
    let spec = &view.pod.spec;
    // What is in memory while the pod runs is not there now, and what would be written there would be lost.
    let kept = |mount: &Mount| !matches!(mount, Mount::Tmpfs { .. } | Mount::DockerSocket { .. });
    let (files, mut containers) = Files::of(view, places, kept)?;
    for container in &mut containers {
        (container.memory_limit, container.pids_limit) = (0, 0);
        // A device that is not there keeps it from starting, not from being looked at.
        container.devices.clear();
    }
    let guest =
        GuestSpec { now_ns, hostname: spec.hostname.clone(), containers, files_only: true, ..GuestSpec::default() };
    Ok(files.plan(places, 1, FILES_MIB, guest))
}

/// The disks and shares of all containers.
struct Files {
    disks: Vec<Disk>,
    dirs: Vec<SharedDir>,
    blocks: Vec<VolumeName>,
    passed: Passed,
}

impl Files {
    fn of(view: &View, places: &Places, wanted: impl Fn(&Mount) -> bool) -> Result<(Self, Vec<GuestContainer>), Needs> {
        let spec = &view.pod.spec;
        let mut passed = Passed::default();
        passed.file(BUNDLE, places.run.join(BUNDLE_FILE), Access::Read);
        let mut disks = Vec::new();
        let mut containers = Vec::new();
        for (index, container) in spec.containers.iter().enumerate() {
            let extents = passed.extents(&format!("image{index}"), image(view, container)?);
            disks.push(Disk { extents, read_only: true, read: spec.disk_read, write: spec.disk_write });
            let layer = passed.file(format!("layer{index}"), places.layer(index), Access::Write);
            let extents = vec![Extent { path: layer, offset: 0, len: 0 }];
            disks.push(Disk { extents, read_only: false, read: spec.disk_read, write: spec.disk_write });
            containers.push(guest_container(container, disks.len() - 2));
        }
        let (attached, dirs, blocks) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut volumes = Volumes { view, places, attached, disks, dirs, blocks, passed };
        for (container, guest) in spec.containers.iter().zip(&mut containers) {
            let mounts = container.mounts.iter().filter(|m| wanted(m));
            guest.mounts = mounts.map(|m| volumes.mount(m)).collect::<Result<_, _>>()?;
        }
        let Volumes { disks, dirs, blocks, passed, .. } = volumes;
        Ok((Self { disks, dirs, blocks, passed }, containers))
    }

    fn plan(self, places: &Places, vcpus: u8, memory_mib: u32, guest: GuestSpec) -> Plan {
        let Self { disks, dirs, blocks, mut passed } = self;
        let mut share = |(i, dir): (usize, &SharedDir)| {
            let socket = passed.file(format!("share{i}"), &dir.socket, Access::Write);
            Share { tag: tag(i), socket }
        };
        let shares = dirs.iter().enumerate().map(&mut share).collect();
        let bundle = Bundle {
            kvm: Some(passed.file("kvm", "/dev/kvm", Access::Write)),
            vcpus,
            memory_mib,
            kernel: passed.file("kernel", places.cradle.join("vmlinux"), Access::Read),
            initramfs: passed.file("initramfs", places.cradle.join("initramfs.cpio"), Access::Read),
            guest_spec: passed.file("spec", places.spec(), Access::Read),
            cmdline: String::new(),
            disks,
            nets: Vec::new(),
            shares,
            agent: PathBuf::from(format!("fd:{AGENT}")),
            log: None,
            template: None,
            console: places.console.then(|| passed.file("console", places.console_file(), Access::Append)),
            control: Some(PathBuf::from(format!("fd:{CONTROL}"))),
            spare_slots: 0,
        };
        Plan { bundle, guest, dirs, blocks, files: passed.0 }
    }
}

fn tag(index: usize) -> String {
    format!("vol{index}")
}

fn image(view: &View, container: &ContainerSpec) -> Result<Vec<Extent>, Needs> {
    disk_of(view, &container.image, &container.image_ref)
}

fn disk_of(view: &View, image: &ImageId, shown: &str) -> Result<Vec<Extent>, Needs> {
    match view.images.get(image) {
        None => Err(Needs::Failed(format!("No such image: {shown}"))),
        Some(image) if !image.status.ready || image.status.disk.is_empty() => {
            Err(Needs::Waiting(format!("image {shown} is not ready")))
        }
        Some(image) => Ok(image.status.disk.clone()),
    }
}

fn endpoints(view: &View) -> Result<Vec<EndpointStatus>, Needs> {
    view.pod.spec.endpoints.iter().map(|id| endpoint(view, id)).collect()
}

fn endpoint(view: &View, id: &EndpointId) -> Result<EndpointStatus, Needs> {
    let Some(endpoint) = view.endpoints.get(id) else {
        return Err(Needs::Waiting(format!("endpoint {id} is not there yet")));
    };
    let status = &endpoint.status;
    if let Some(error) = &status.error {
        return Err(Needs::Failed(error.clone()));
    }
    if !status.ready || status.tap.is_empty() {
        return Err(Needs::Waiting(format!("network {} is not ready", endpoint.spec.network)));
    }
    if !endpoint.spec.ports.is_empty() && status.ports.is_empty() {
        return Err(Needs::Waiting("ports are not published yet".into()));
    }
    Ok(status.clone())
}

struct Volumes<'a> {
    view: &'a View,
    places: &'a Places,
    attached: BTreeMap<Wanted, Attached>,
    disks: Vec<Disk>,
    dirs: Vec<SharedDir>,
    blocks: Vec<VolumeName>,
    passed: Passed,
}

/// What a mount wants of a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    volume: VolumeName,
    part: Option<Part>,
    read_only: bool,
}

#[derive(Clone, Debug)]
enum Attached {
    Share(String),
    Disk(usize),
}

impl Volumes<'_> {
    fn mount(&mut self, mount: &Mount) -> Result<GuestMount, Needs> {
        Ok(match mount {
            Mount::Tmpfs { target, size, mode, options } => {
                GuestMount::Tmpfs { target: target.clone(), size: *size, mode: *mode, options: options.clone() }
            }
            Mount::Volume { volume, target, read_only, no_copy, subpath, .. } => {
                let copy_up = !no_copy && subpath.is_empty();
                let part = (!subpath.is_empty()).then(|| Part { path: subpath.clone(), create: false });
                // An empty volume gets the image's files, also when the container may not write to it.
                let wanted = Wanted { volume: volume.clone(), part, read_only: *read_only && !copy_up };
                self.volume(wanted, target, *read_only, copy_up)?
            }
            Mount::Bind { area, source, target, read_only, create } => {
                let part = Some(Part { path: source.clone(), create: *create });
                let wanted = Wanted { volume: area.clone(), part, read_only: *read_only };
                self.volume(wanted, target, *read_only, false)?
            }
            Mount::Image { image, target, subpath } => {
                let extents = disk_of(self.view, image, image.as_str())?;
                let extents = self.passed.extents(&format!("mount{}", self.disks.len()), extents);
                self.disks.push(Disk { extents, read_only: true, ..Disk::default() });
                let (target, subpath) = (target.clone(), subpath.clone());
                GuestMount::Image { disk: self.disks.len() - 1, target, subpath }
            }
            Mount::DockerSocket { target } => GuestMount::DockerSocket { target: target.clone() },
        })
    }

    fn volume(&mut self, wanted: Wanted, target: &str, read_only: bool, copy_up: bool) -> Result<GuestMount, Needs> {
        let target = target.to_owned();
        let part = wanted.part.clone();
        Ok(match self.attach(wanted)? {
            // The part is chosen by the host; when it is a file, its name is filled in at the start.
            Attached::Share(tag) => GuestMount::Share { tag, target, read_only, copy_up, subpath: String::new() },
            Attached::Disk(disk) => {
                let subpath = part.map(|p| p.path).unwrap_or_default();
                GuestMount::Block { disk, target, read_only, copy_up, subpath }
            }
        })
    }

    fn attach(&mut self, mut wanted: Wanted) -> Result<Attached, Needs> {
        let name = &wanted.volume.clone();
        let Some(volume) = self.view.volumes.get(name) else {
            // Made together with the pod, it may reach this copy after it.
            return Err(Needs::Waiting(format!("get {name}: no such volume")));
        };
        if let Some(error) = &volume.status.error {
            return Err(Needs::Failed(format!("volume {name}: {error}")));
        }
        let access = match &volume.status.access {
            Some(access) if volume.status.ready => access,
            _ => return Err(Needs::Waiting(format!("volume {name} is not ready"))),
        };
        let attached = match access {
            VolumeAccess::Directory { path } => {
                if let Some(attached) = self.attached.get(&wanted) {
                    return Ok(attached.clone());
                }
                let index = self.dirs.len();
                self.dirs.push(SharedDir {
                    dir: path.clone(),
                    socket: self.places.run.join(format!("fs-{index}.sock")),
                    part: wanted.part.clone(),
                    read_only: wanted.read_only,
                });
                Attached::Share(tag(index))
            }
            VolumeAccess::Block { device } => {
                // A device is passed once, whatever is mounted of it.
                wanted = Wanted { volume: name.clone(), part: None, read_only: false };
                if let Some(attached) = self.attached.get(&wanted) {
                    return Ok(attached.clone());
                }
                let path = self.passed.file(format!("block{}", self.blocks.len()), device, Access::Write);
                let extents = vec![Extent { path, offset: 0, len: 0 }];
                let (read, write) = (self.view.pod.spec.disk_read, self.view.pod.spec.disk_write);
                self.disks.push(Disk { extents, read_only: false, read, write });
                self.blocks.push(name.clone());
                Attached::Disk(self.disks.len() - 1)
            }
        };
        self.attached.insert(wanted, attached.clone());
        Ok(attached)
    }
}

fn guest_container(spec: &ContainerSpec, image_disk: usize) -> GuestContainer {
    GuestContainer {
        id: spec.id.clone(),
        image_disk,
        upper: Upper::Disk { disk: image_disk + 1 },
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        group_add: spec.group_add.clone(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: spec.stdin_once,
        readonly_rootfs: spec.readonly_rootfs,
        init: spec.init,
        privileged: spec.privileged,
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        no_new_privileges: spec.no_new_privileges,
        ulimits: spec.ulimits.clone(),
        sysctls: spec.sysctls.clone(),
        shm_size: spec.shm_size,
        memory_limit: spec.memory_limit,
        pids_limit: spec.pids_limit,
        devices: spec.devices.clone(),
        health: spec.health.clone(),
        mounts: Vec::new(),
    }
}

fn guest(
    spec: &PodSpec,
    endpoints: &[EndpointStatus],
    containers: Vec<GuestContainer>,
    run: u32,
    now_ns: u64,
) -> Result<GuestSpec, Needs> {
    let mut nics = Vec::new();
    let mut hosts = Vec::new();
    for endpoint in endpoints {
        let (Some(ipv4), Some(gateway)) = (endpoint.ipv4, endpoint.gateway) else {
            return Err(Needs::Waiting(format!("interface {} has no address yet", endpoint.tap)));
        };
        let gateway_mac = endpoint.gateway_mac.clone();
        nics.push(Nic { ipv4, prefix: endpoint.prefix, gateway, gateway_mac, default_route: nics.is_empty() });
    }
    let gateway = nics.first().map(|n| n.gateway.to_string());
    // Its own address and name the guest writes down itself.
    for line in spec.extra_hosts.iter().chain(&spec.link_hosts) {
        hosts.push(extra_host(line, gateway.as_deref())?);
    }
    let resolver = endpoints.first().and_then(|e| e.resolver).filter(Ipv4Addr::is_loopback);
    let mut options = spec.dns_options.clone();
    let servers = match resolver {
        // It asks the user's servers itself, and knows the networks' names beside them.
        Some(resolver) => {
            if !options.iter().any(|o| o.starts_with("ndots:")) {
                options.push("ndots:0".into());
            }
            vec![resolver.to_string()]
        }
        None if spec.dns.is_empty() => gateway.into_iter().collect(),
        None => spec.dns.clone(),
    };
    Ok(GuestSpec {
        run,
        now_ns,
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        nics,
        hosts,
        dns: Dns { servers, search: spec.dns_search.clone(), options },
        containers,
        files_only: false,
    })
}

fn extra_host(line: &str, gateway: Option<&str>) -> Result<HostsLine, Needs> {
    let Some((name, address)) = line.split_once(':').or_else(|| line.split_once('=')) else {
        return Err(Needs::Failed(format!("bad format for add-host: {line:?}")));
    };
    let address = match (address, gateway) {
        ("host-gateway", Some(gateway)) => gateway,
        ("host-gateway", None) => return Err(Needs::Failed("host-gateway needs a network".into())),
        (address, _) => address.trim_start_matches('[').trim_end_matches(']'),
    };
    Ok(HostsLine { address: address.to_owned(), names: vec![name.to_owned()] })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
