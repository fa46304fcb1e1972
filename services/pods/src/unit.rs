//! The properties of the transient units: what a monitor and a file server may do and use.
//!
//! A monitor's unit starts as root with three capabilities only, for as long as `setpriv` needs to become the pod's
//! uid: systemd itself refuses a numeric user that no database knows.

use crate::plan::BUNDLE;
use crate::systemd::Property;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zbus::{Fd, Variant};
use zone::PodId;
use zone::pod::CpuLimits;

/// Matches every monitor's unit.
pub const POD_UNITS: &str = "kraud-pod-*.service";
/// Matches every unit that makes a template.
pub const TEMPLATE_UNITS: &str = "kraud-template-*.service";
/// Matches every file server's unit.
pub const FS_UNITS: &str = "kraud-fs-*.service";
/// What a monitor may use beside its guest's memory.
const MONITOR_MIB: u64 = 64;
const MONITOR_TASKS: u64 = 128;
/// sched(7).
const SCHED_IDLE: i32 = 5;
/// An unlimited resource limit.
const INFINITY: u64 = u64::MAX;

const CAP_CHOWN: u64 = 1 << 0;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_FOWNER: u64 = 1 << 3;
const CAP_FSETID: u64 = 1 << 4;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_SYS_CHROOT: u64 = 1 << 18;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_MKNOD: u64 = 1 << 27;
const CAP_SETFCAP: u64 = 1 << 31;

/// The unit of a pod's monitor.
#[must_use]
pub fn pod_unit(pod: &PodId) -> String {
    format!("kraud-pod-{pod}.service")
}

/// The unit that makes the template of guests with so much memory, for the process `owner`.
#[must_use]
pub fn template_unit(memory_mib: u32, owner: u32) -> String {
    format!("kraud-template-{memory_mib}-{owner}.service")
}

/// Whether a unit makes a template.
#[must_use]
pub fn is_template(unit: &str) -> bool {
    unit.starts_with("kraud-template-")
}

/// The unit of a pod's file server for its share `index`.
#[must_use]
pub fn fs_unit(pod: &PodId, index: usize) -> String {
    format!("kraud-fs-{pod}-{index}.service")
}

/// The pod that a unit belongs to; none when it is not one of ours.
#[must_use]
pub fn pod_of(unit: &str) -> Option<PodId> {
    let name = unit.strip_suffix(".service")?;
    let id = match name.strip_prefix("kraud-pod-") {
        Some(id) => id,
        None => name.strip_prefix("kraud-fs-")?.rsplit_once('-')?.0,
    };
    Some(PodId::new(id))
}

/// What may be done with a file that is handed over; systemd's numbers (org.freedesktop.systemd1(5), `OpenFile`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write; a socket is connected to.
    Write = 0,
    /// Read.
    Read = 1,
    /// Write at the end.
    Append = 2,
    /// Read; left out when it is not there.
    ReadIfThere = 9,
}

/// A file that systemd opens for a unit and hands over under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The name in `LISTEN_FDNAMES`.
    pub name: String,
    /// The file, device or socket.
    pub path: PathBuf,
    /// For what.
    pub access: Access,
}

/// What a monitor's unit is made of.
#[derive(Debug)]
pub struct MonitorUnit<'a> {
    /// The pod.
    pub pod: &'a PodId,
    /// The pod's uid, also its group.
    pub uid: u32,
    /// `setpriv`.
    pub setpriv: &'a Path,
    /// `kcradle`.
    pub kcradle: &'a Path,
    /// The guest's memory.
    pub memory_mib: u32,
    /// How much CPU time it gets.
    pub cpu: CpuLimits,
    /// How soon the kernel ends it when the machine has no memory left.
    pub expendable: Expendable,
    /// Everything that it uses, the bundle too: it opens nothing itself.
    pub files: Vec<NamedFile>,
    /// What it listens on.
    pub sockets: Vec<(OwnedFd, &'static str)>,
}

/// Which microVMs go first when the machine has no memory left; the zone's services go last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expendable {
    /// It was promised its memory.
    Last,
    /// It was promised nothing.
    Sooner,
    /// It is asked for again when needed.
    First,
}

impl Expendable {
    /// `OOMScoreAdjust`: a thousandth each of all memory that it seems to use more than it does.
    fn score(self) -> i32 {
        match self {
            Self::Last => 200,
            Self::Sooner => 500,
            Self::First => 900,
        }
    }
}

/// The properties that bind CPU time; they can be set while the unit runs.
#[must_use]
pub fn cpu(limits: CpuLimits) -> Vec<Property> {
    let or_none = |value: u64| Variant::from(if value == 0 { INFINITY } else { value });
    vec![("CPUQuotaPerSecUSec", or_none(limits.us_per_s)), ("CPUWeight", or_none(limits.weight))]
}

fn text(value: &str) -> Variant<'static> {
    Variant::from(value.to_owned())
}

fn texts(values: &[&str]) -> Variant<'static> {
    Variant::from(values.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

fn exec(argv: &[String]) -> Variant<'static> {
    let path = argv.first().cloned().unwrap_or_default();
    Variant::from(vec![(path, argv.to_vec(), false)])
}

fn common(description: String, slice: &str) -> Vec<Property> {
    vec![
        ("Description", Variant::from(description)),
        ("Type", text("exec")),
        ("Slice", text(slice)),
        // When the machine goes down the service stops first, and with it, in order, the pods.
        ("Before", texts(&["kraud-pods.service"])),
        // What has ended leaves nothing behind that someone must clear away.
        ("CollectMode", text("inactive-or-failed")),
        ("KillMode", text("control-group")),
        ("OOMPolicy", text("kill")),
        ("NoNewPrivileges", Variant::from(true)),
        ("DevicePolicy", text("closed")),
        ("LimitCORE", Variant::from(0u64)),
        ("LimitCORESoft", Variant::from(0u64)),
    ]
}

/// What starts the monitor's program under its uid; it never has a capability.
fn monitors_argv(uid: u32, setpriv: &Path, kcradle: &Path, verb: &str) -> Vec<String> {
    let mut argv: Vec<String> = vec![setpriv.display().to_string()];
    argv.extend([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()]);
    argv.extend(["--inh-caps=-all".into(), "--bounding-set=-all".into(), "--no-new-privs".into(), "--".into()]);
    argv.extend([kcradle.display().to_string(), verb.into(), format!("fd:{BUNDLE}"), "--strict".into()]);
    argv
}

/// What units of the monitor's program have in common: it is given files, and leaves everything else behind by itself.
fn monitors(argv: &[String], memory_mib: u64, files: Vec<NamedFile>) -> Vec<Property> {
    // Devices are opened by systemd inside the unit's control group, whose rules count for them.
    let devices: Vec<(String, String)> = files
        .iter()
        .filter(|file| file.path.starts_with("/dev"))
        .map(|file| (file.path.display().to_string(), "rw".to_owned()))
        .collect();
    let files: Vec<(String, String, u64)> =
        files.into_iter().map(|f| (f.path.display().to_string(), f.name, f.access as u64)).collect();
    vec![
        ("ExecStart", exec(argv)),
        ("UMask", Variant::from(0o007u32)),
        ("CapabilityBoundingSet", Variant::from(CAP_SETUID | CAP_SETGID | CAP_SETPCAP)),
        // No namespace and no filter of system calls by systemd: the program has its own, which allow far less, before its guest
        // runs, and making them here is the most of what systemd's part of a start takes.
        ("DeviceAllow", Variant::from(devices)),
        ("MemoryMax", Variant::from(memory_mib << 20)),
        ("TasksMax", Variant::from(MONITOR_TASKS)),
        ("TimeoutStopUSec", Variant::from(5_000_000u64)),
        // What a guest can make its monitor say must not fill the journal.
        ("LogRateLimitIntervalUSec", Variant::from(30_000_000u64)),
        ("LogRateLimitBurst", Variant::from(200u32)),
        ("OpenFile", Variant::from(files)),
    ]
}

/// The properties of a monitor's unit.
#[must_use]
pub fn monitor(unit: MonitorUnit<'_>) -> Vec<Property> {
    let argv = monitors_argv(unit.uid, unit.setpriv, unit.kcradle, "run");
    let mut properties = common(format!("microVM of pod {}", unit.pod.short()), "kraud-pods.slice");
    properties.extend(monitors(&argv, u64::from(unit.memory_mib) + MONITOR_MIB, unit.files));
    let sockets: Vec<(Fd<'static>, String)> =
        unit.sockets.into_iter().map(|(socket, name)| (Fd::Owned(socket), name.to_owned())).collect();
    properties.push(("ExtraFileDescriptors", Variant::from(sockets)));
    properties.push(("OOMScoreAdjust", Variant::from(unit.expendable.score())));
    if unit.cpu != CpuLimits::default() {
        properties.extend(cpu(unit.cpu));
    }
    properties
}

/// The properties of a unit that makes a template: as a monitor's, but it writes a part of the guest's memory to a file in memory,
/// and gets processor time that nobody else wants. Beside all slices: within one it would take its share of that slice's time.
#[must_use]
pub fn maker(memory_mib: u32, uid: u32, setpriv: &Path, kcradle: &Path, files: Vec<NamedFile>) -> Vec<Property> {
    let argv = monitors_argv(uid, setpriv, kcradle, "template");
    let mut properties = common(format!("template of guests with {memory_mib} MiB"), "-.slice");
    properties.extend(monitors(&argv, u64::from(memory_mib) * 2 + MONITOR_MIB, files));
    properties.extend([
        // `cpu.idle`, and SCHED_IDLE within the control group.
        ("CPUWeight", Variant::from(0u64)),
        ("CPUSchedulingPolicy", Variant::from(SCHED_IDLE)),
        ("RuntimeMaxUSec", Variant::from(1_800_000_000u64)),
        ("OOMScoreAdjust", Variant::from(Expendable::First.score())),
    ]);
    properties
}

/// What a file server serves.
#[derive(Debug)]
pub struct Served<'a> {
    /// The directory.
    pub dir: &'a Path,
    /// A folder in it that is served instead, opened: its path may lead elsewhere at any moment.
    pub part: Option<OwnedFd>,
    /// Nothing can be written.
    pub read_only: bool,
}

/// The properties of a file server's unit: virtiofsd for one directory, on a socket that is listening already.
#[must_use]
pub fn file_server(pod: &PodId, virtiofsd: &Path, served: Served<'_>, socket: OwnedFd) -> Vec<Property> {
    let Served { dir, part, read_only } = served;
    // Descriptors passed to a service begin with 3 (sd_listen_fds(3)). A bind mount of one from another mount namespace is
    // refused by the kernel, so the server of a part changes its root to it instead.
    let (place, sandbox) = match part {
        Some(_) => ("/proc/self/fd/4".to_owned(), "chroot"),
        None => (dir.display().to_string(), "namespace"),
    };
    let mut argv: Vec<String> = [
        virtiofsd.display().to_string(),
        "--fd=3".into(),
        format!("--shared-dir={place}"),
        format!("--sandbox={sandbox}"),
        "--cache=auto".into(),
        "--inode-file-handles=prefer".into(),
        "--xattr".into(),
        // The guest's attributes become plain ones: none of them means anything to the host.
        "--xattrmap=:map::user.virtiofs.:".into(),
        "--log-level=warn".into(),
    ]
    .to_vec();
    if read_only {
        argv.push("--readonly".into());
    }
    let caps = CAP_CHOWN
        | CAP_DAC_OVERRIDE
        | CAP_DAC_READ_SEARCH
        | CAP_FOWNER
        | CAP_FSETID
        | CAP_SETGID
        | CAP_SETUID
        | CAP_SETPCAP
        | if part.is_some() { CAP_SYS_CHROOT } else { CAP_SYS_ADMIN }
        | CAP_MKNOD
        | CAP_SETFCAP;
    let mut properties = common(format!("files for pod {}", pod.short()), "kraud-pods.slice");
    let on = || Variant::from(true);
    properties.extend([
        ("LockPersonality", on()),
        ("RestrictRealtime", on()),
        ("RestrictSUIDSGID", Variant::from(false)),
        ("MemoryDenyWriteExecute", on()),
        ("SystemCallArchitectures", texts(&["native"])),
        ("ProtectSystem", text("strict")),
        ("ProtectHome", text("yes")),
        ("PrivateTmp", on()),
        ("ProtectKernelTunables", on()),
        ("ProtectKernelModules", on()),
        ("ProtectKernelLogs", on()),
        ("ProtectControlGroups", on()),
        ("ProtectClock", on()),
        ("ProtectHostname", on()),
        ("ExecStart", exec(&argv)),
        ("UMask", Variant::from(0u32)),
        ("ReadWritePaths", Variant::from(vec![dir.display().to_string()])),
        ("CapabilityBoundingSet", Variant::from(caps)),
        ("PrivateNetwork", Variant::from(true)),
        ("MemoryMax", Variant::from(256u64 << 20)),
        ("TasksMax", Variant::from(64u64)),
        ("LimitNOFILE", Variant::from(1_048_576u64)),
        ("LimitNOFILESoft", Variant::from(1_048_576u64)),
        ("LimitMEMLOCK", Variant::from(INFINITY)),
        ("TimeoutStopUSec", Variant::from(5_000_000u64)),
    ]);
    let part = part.map(|fd| (Fd::Owned(fd), "part".to_owned()));
    let files: Vec<(Fd, String)> = [(Fd::Owned(socket), "vhost".to_owned())].into_iter().chain(part).collect();
    properties.push(("ExtraFileDescriptors", Variant::from(files)));
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_name_gives_back_its_pod() {
        let pod = PodId::new("4f5c".repeat(16));
        assert_eq!(pod_of(&pod_unit(&pod)), Some(pod.clone()));
        assert_eq!(pod_of(&fs_unit(&pod, 3)), Some(pod));
        assert_eq!(pod_of("kraud-pods.service"), None);
        assert_eq!(pod_of("kraud-fs.service"), None);
    }

    #[test]
    fn a_monitor_is_started_under_the_pods_uid_without_capabilities() {
        let pod = PodId::new("ab");
        let unit = MonitorUnit {
            pod: &pod,
            uid: 200_007,
            setpriv: Path::new("/usr/bin/setpriv"),
            kcradle: Path::new("/run/kraud/cradle/kcradle"),
            memory_mib: 512,
            cpu: CpuLimits { us_per_s: 1_500_000, weight: 0 },
            expendable: Expendable::Sooner,
            files: vec![NamedFile { name: "block0".into(), path: "/dev/zvol/zone/db".into(), access: Access::Write }],
            sockets: Vec::new(),
        };
        let properties = monitor(unit);
        let find =
            |name: &str| properties.iter().find(|(n, _)| *n == name).map(|(_, v)| format!("{v:?}")).unwrap_or_default();
        let exec = find("ExecStart");
        for word in [
            "--reuid=200007",
            "--regid=200007",
            "--clear-groups",
            "fd:bundle",
            "--bounding-set=-all",
            "--no-new-privs",
            "kcradle",
        ] {
            assert!(exec.contains(word), "{word} is missing in {exec}");
        }
        assert!(find("MemoryMax").contains(&((512u64 + 64) << 20).to_string()));
        assert!(find("CPUQuotaPerSecUSec").contains("1500000") && find("OOMScoreAdjust").contains("500"));
        assert!(find("DevicePolicy").contains("closed"));
        let open = properties.iter().find(|(n, _)| *n == "OpenFile").map(|(_, v)| v.value_signature().to_string());
        assert_eq!(open.as_deref(), Some("a(sst)"));
        assert!(find("DeviceAllow").contains("/dev/zvol/zone/db"));
    }

    #[test]
    fn a_part_of_a_directory_is_served_by_descriptor_and_never_by_path() {
        let pod = PodId::new("ab");
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let served = Served { dir: Path::new("/v"), part: Some(one.into()), read_only: true };
        let properties = file_server(&pod, Path::new("/usr/libexec/virtiofsd"), served, two.into());
        let exec =
            properties.iter().find(|(n, _)| *n == "ExecStart").map(|(_, v)| format!("{v:?}")).unwrap_or_default();
        assert!(exec.contains("--shared-dir=/proc/self/fd/4") && exec.contains("--sandbox=chroot"), "{exec}");
        assert!(exec.contains("--readonly") && !exec.contains("=/v"), "{exec}");
    }

    #[test]
    fn properties_encode_as_the_types_that_systemd_reads() {
        let pod = PodId::new("ab");
        let (_, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        let served = Served { dir: Path::new("/v"), part: None, read_only: false };
        let properties = file_server(&pod, Path::new("/usr/libexec/virtiofsd"), served, socket.into());
        let signature = |name: &str| {
            properties
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.value_signature().to_string())
                .unwrap_or_default()
        };
        for (name, expected) in [
            ("ExecStart", "a(sasb)"),
            ("ExtraFileDescriptors", "a(hs)"),
            ("ReadWritePaths", "as"),
            ("MemoryMax", "t"),
            ("UMask", "u"),
            ("SystemCallArchitectures", "as"),
        ] {
            assert_eq!(signature(name), expected, "{name}");
        }
    }
}
