//! The boot: what is mounted, connected and started, in which order.

use crate::agent::{Agent, spawn};
use crate::cgroup::{self, Cgroup};
use crate::console;
use crate::container::Container;
use crate::health;
use crate::http;
use crate::log::{Log, now_ns};
use crate::net;
use crate::platform::Platform;
use crate::program::other;
use crate::rootfs::Rootfs;
use crate::template;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_move};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use zone::bundle::LOG_PORT;
use zone::guest::{GuestContainer, GuestSpec};
use zone::log::Data;
use zone::pod::StartError;

/// A clock that is further off than this from the host's is set.
const CLOCK_TOLERANCE_NS: u64 = 60_000_000_000;

/// Why the agent could not even say what failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BootError {
    what: String,
    /// Where the agent runs, to end there.
    pub platform: Platform,
    #[source]
    source: io::Error,
}

/// Boots and starts all containers. Those that cannot be started have a `failed` record.
///
/// # Errors
/// When the kernel's file systems cannot be mounted or the spec cannot be read: nothing can be told to the host then.
pub fn boot(platform: Platform) -> Result<Arc<Agent>, BootError> {
    let fail = |what: &str, source: io::Error| BootError { what: what.to_owned(), platform: platform.clone(), source };
    mount_basics(&platform).map_err(|e| fail("cannot mount the kernel's file systems", e))?;
    let template = platform.is_guest() && template::is_wanted();
    let hierarchy = cgroup::mount_hierarchy(&platform.base().join("cgroup"));
    let spec = if template { spec_of_orders() } else { read_spec(&platform) };
    let spec = spec.map_err(|e| fail("cannot read the spec of the pod", e))?;
    let log = Log::new(spec.run, if spec.files_only { None } else { connect_log(&platform) });
    set_clock(&platform, &spec, if template { 0 } else { CLOCK_TOLERANCE_NS });
    let (mut containers, mut failures) = (BTreeMap::new(), BTreeMap::new());
    for (index, wanted) in spec.containers.iter().enumerate() {
        match prepare(&platform, &spec, wanted, index, hierarchy.as_deref()) {
            Ok(container) => drop(containers.insert(wanted.id.as_str().to_owned(), Arc::new(container))),
            Err(error) => {
                failures.insert(wanted.id.as_str().to_owned(), error.message.clone());
                log.send(wanted.id.as_str(), Data::Failed(error));
            }
        }
    }
    net::configure(&spec.nics);
    set_names(&spec);
    let agent = Arc::new(Agent::new(platform, spec, log, containers, failures));
    if !agent.spec.files_only {
        start_all(&agent);
    }
    if agent.needs_server() {
        http::serve(&agent);
    }
    Ok(agent)
}

fn start_all(agent: &Arc<Agent>) {
    for wanted in &agent.spec.containers {
        let Some(container) = agent.containers.get(wanted.id.as_str()) else { continue };
        match container.start(agent) {
            Ok(stdio) => {
                agent.container_started();
                health::start(agent, container);
                let (owner, container) = (Arc::clone(agent), Arc::clone(container));
                let attended = spawn("container", move || {
                    container.attend(&owner, stdio);
                    owner.container_ended();
                });
                if !attended {
                    // Its pipes are closed again, so it would not do much anyway.
                    agent.log.send(wanted.id.as_str(), Data::Failed(other("the guest has no memory for a thread")));
                    agent.container_ended();
                }
            }
            Err(error) => drop(agent.log.send(wanted.id.as_str(), Data::Failed(error))),
        }
    }
}

fn prepare(
    platform: &Platform,
    spec: &GuestSpec,
    wanted: &GuestContainer,
    index: usize,
    hierarchy: Option<&Path>,
) -> Result<Container, StartError> {
    let rootfs = Rootfs::prepare(platform, spec, wanted, index).map_err(|e| other(console::chain(&e)))?;
    let cgroup = match hierarchy {
        Some(path) => Some(
            Cgroup::create(path, &format!("c{index}"), wanted)
                .map_err(|e| other(format!("make the control group: {e}")))?,
        ),
        None => None,
    };
    Ok(Container::new(wanted.clone(), rootfs, cgroup))
}

fn mount_basics(platform: &Platform) -> io::Result<()> {
    if platform.is_guest() {
        for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
            fs::create_dir_all(target)?;
            match mount(kind, target, kind, MountFlags::NOSUID, None) {
                // The kernel may have mounted /dev itself.
                Err(rustix::io::Errno::BUSY) => {}
                result => result?,
            }
        }
        occupy_standard_streams()?;
        console::use_kernel_log();
        leave_initial_root()?;
    } else {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None)?;
    }
    fs::create_dir_all(platform.base())?;
    Ok(mount("tmpfs", platform.base(), "tmpfs", MountFlags::NOSUID, Some(c"mode=0755"))?)
}

/// Without a console the kernel starts PID 1 with nothing open; a child's streams must not be among 0 to 2.
fn occupy_standard_streams() -> io::Result<()> {
    loop {
        let null: OwnedFd = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Stays open for the life of PID 1.
        std::mem::forget(null);
    }
}

/// The kernel's first root cannot be left by pivot_root(2); a bind mount of itself on top can.
fn leave_initial_root() -> io::Result<()> {
    let place = "/newroot";
    fs::create_dir_all(place)?;
    mount_bind_recursive("/", place)?;
    std::env::set_current_dir(place)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

fn read_spec(platform: &Platform) -> io::Result<GuestSpec> {
    Ok(serde_json::from_slice(&fs::read(platform.spec_file())?)?)
}

/// From here on this is one of the template's guests.
fn spec_of_orders() -> io::Result<GuestSpec> {
    let orders = template::orders()?;
    template::become_one(&orders)?;
    let mut spec: GuestSpec = serde_json::from_slice(&orders.spec)?;
    // Written when this guest went on; the spec is as old as the decision to start it.
    spec.now_ns = spec.now_ns.max(orders.now_ns);
    Ok(spec)
}

fn connect_log(platform: &Platform) -> Option<crate::platform::Stream> {
    platform
        .connect(LOG_PORT)
        .map_err(|error| console::say(&format!("there is no log: cannot connect to the host: {error}")))
        .ok()
}

fn set_clock(platform: &Platform, spec: &GuestSpec, tolerance: u64) {
    let (now, told) = (now_ns(), spec.now_ns);
    if !platform.is_guest() || told == 0 || (told..told + tolerance).contains(&now) {
        return;
    }
    let nanoseconds = |part: u64| i64::try_from(part).unwrap_or(0);
    let time = rustix::time::Timespec {
        tv_sec: nanoseconds(told / 1_000_000_000),
        tv_nsec: nanoseconds(told % 1_000_000_000),
    };
    if let Err(error) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        console::say(&format!("cannot set the clock: {error}"));
    }
}

/// The guest's own name; containers have theirs in their namespaces.
fn set_names(spec: &GuestSpec) {
    let _ = rustix::system::sethostname(spec.hostname.as_bytes());
}
