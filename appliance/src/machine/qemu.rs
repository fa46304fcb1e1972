//! QEMU's command line for a zone. Only builds it; nothing is started here.

use super::state::{Plan, StateDir};
use super::{disks, lan};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The name of the network backend, for adding forwards later.
pub const NETDEV: &str = "uplink";
/// The web page's port in the guest.
pub const GUEST_WEB: u16 = 443;
/// The Docker API's port in the guest.
pub const GUEST_DOCKER: u16 = 2376;

/// Without what no zone uses and its kernel would load drivers for.
const MACHINE: &str = "q35,hpet=off,sata=off,smbus=off,i8042=off";
/// The firmware's variables are out of the reach of what it starts, or Secure Boot would mean nothing.
const SECURE: [&str; 2] = ["-global", "driver=cfi.pflash01,property=secure,value=on"];
const SECURE_CODE: &str = "OVMF_CODE_4M.secboot.fd";
/// More words for the kernel of an emulated machine, where they protect nothing and cost a part of every system call.
const EMULATED: &str = "mitigations=off init_on_alloc=0 cryptomgr.notests";

/// `prefix` and a path as one value of an option list, where a comma is doubled.
fn with_path(prefix: &str, path: &Path, suffix: &str) -> OsString {
    let mut out = prefix.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        out.push(*byte);
        if *byte == b',' {
            out.push(b',');
        }
    }
    out.extend_from_slice(suffix.as_bytes());
    OsString::from_vec(out)
}

/// The arguments of `qemu-system-x86_64`.
#[must_use]
pub fn arguments(dir: &StateDir, plan: &Plan) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
    add(&["-name", "kraudbox", "-nodefaults", "-no-user-config", "-display", "none"]);
    add(&["-M", &format!("{MACHINE},smm={}", if plan.secure_boot { "on" } else { "off" })]);
    if plan.kvm {
        add(&["-accel", "kvm", "-cpu", "host"]);
    } else {
        add(&["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm,+npt"]);
    }
    add(&["-smp", &plan.cpus.to_string(), "-m", &plan.memory_mib.to_string(), "-rtc", "base=utc"]);
    out.extend(firmware(dir, plan));
    out.extend(disks(dir, plan));
    let mut add = |words: &[&str]| out.extend(words.iter().map(OsString::from));
    add(&["-netdev", &netdev(plan), "-device", &format!("virtio-net-pci,netdev={NETDEV},mac={},romfile=", lan::MAC)]);
    add(&["-device", "virtio-rng-pci"]);
    out.extend(["-serial".into(), with_path("file:", &dir.serial_log(), "")]);
    out.extend(["-qmp".into(), with_path("unix:", &dir.qmp_socket(), ",server=on,wait=off")]);
    let words: Vec<_> = [(!plan.kvm, EMULATED), (plan.console_journal, "systemd.journald.forward_to_console=1")]
        .into_iter()
        .filter_map(|(wanted, words)| wanted.then_some(words))
        .collect();
    if !words.is_empty() {
        // Read by systemd-stub(7).
        let value = format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={}", words.join(" "));
        out.extend(["-smbios".into(), value.into()]);
    }
    // A file, because every user of the machine can read a command line.
    out.extend(["-smbios".into(), with_path("type=11,path=", &dir.file("smbios-credential"), "")]);
    out
}

fn firmware(dir: &StateDir, plan: &Plan) -> Vec<OsString> {
    let secure = plan.ovmf_code.with_file_name(SECURE_CODE);
    let code = if plan.secure_boot { &secure } else { &plan.ovmf_code };
    let mut out = vec![
        "-drive".into(),
        with_path("if=pflash,unit=0,format=raw,readonly=on,file=", code, ""),
        "-drive".into(),
        with_path("if=pflash,unit=1,format=raw,file=", &dir.file("vars.fd"), ""),
    ];
    if plan.secure_boot {
        out.extend(SECURE.map(OsString::from));
    }
    out
}

fn disks(dir: &StateDir, plan: &Plan) -> Vec<OsString> {
    let cache = if plan.unsafe_cache { "unsafe" } else { "writeback" };
    let options = format!(",cache={cache},discard=unmap,detect-zeroes=unmap");
    let mut out = vec![
        "-drive".into(),
        with_path("if=none,id=os,format=qcow2,file=", &dir.file("os.qcow2"), &options),
        "-device".into(),
        "virtio-blk-pci,drive=os,serial=kraud-os,bootindex=0".into(),
    ];
    if disks::has_pool(dir) {
        out.extend(["-drive".into(), with_path("if=none,id=pool,format=raw,file=", &dir.file(disks::POOL), &options)]);
        out.extend(["-device".into(), "virtio-blk-pci,drive=pool,serial=kraud-pool".into()]);
    }
    out
}

fn netdev(plan: &Plan) -> String {
    if plan.lan {
        return format!("tap,id={NETDEV},ifname={},script=no,downscript=no", lan::TAP);
    }
    let ports = plan.ports;
    let forwards = [(ports.web, GUEST_WEB), (ports.docker, GUEST_DOCKER), (ports.door, ::door::PORT)];
    let forwards = forwards.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    format!("user,id={NETDEV}{}", forwards.concat())
}

/// What `smbios-credential` holds: the door's token as a systemd credential (systemd.system-credentials(7)).
#[must_use]
pub fn credential(token: &str) -> String {
    format!("io.systemd.credential:{}={token}", ::door::CREDENTIAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::state::Ports;

    fn plan(kvm: bool) -> Plan {
        Plan {
            tools: "/tools".into(),
            ovmf_code: "/tools/code.fd".into(),
            image_sha256: String::new(),
            kvm,
            memory_mib: 4096,
            cpus: 2,
            ports: Ports { web: 8443, docker: 2376, door: 7722 },
            unsafe_cache: false,
            deadline_s: 600,
            console_journal: false,
            lan: false,
            secure_boot: false,
        }
    }

    fn line(dir: &StateDir, plan: &Plan) -> String {
        let words: Vec<_> = arguments(dir, plan).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn emulation_gives_the_guest_svm_and_kvm_gives_it_the_host() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        assert!(
            line(&dir, &plan(false)).contains("-accel tcg,thread=multi,tb-size=512 -cpu EPYC,+svm,+npt -smp 2 -m 4096")
        );
        assert!(line(&dir, &plan(true)).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn secure_boot_takes_its_firmware_and_keeps_the_variables_from_the_guest() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        let line = line(&dir, &Plan { secure_boot: true, ..plan(false) });
        assert!(
            line.contains("smm=on")
                && line.contains("/tools/OVMF_CODE_4M.secboot.fd")
                && line.contains("secure,value=on")
        );
    }

    #[test]
    fn every_forward_listens_on_loopback_only() {
        let netdev = netdev(&plan(false));
        assert_eq!(netdev.matches("hostfwd=").count(), 3);
        assert_eq!(netdev.matches("hostfwd=tcp:127.0.0.1:").count(), 3);
        assert!(netdev.contains("hostfwd=tcp:127.0.0.1:8443-:443,"));
    }

    #[test]
    fn on_its_own_network_nothing_is_forwarded() {
        let netdev = netdev(&Plan { lan: true, ..plan(false) });
        assert_eq!(netdev, "tap,id=uplink,ifname=zone0,script=no,downscript=no");
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("a,cache=unsafe")).unwrap();
        let line = line(&dir, &plan(false));
        assert!(line.contains("a,,cache=unsafe/os.qcow2,cache=writeback,"));
        assert!(!line.contains("a,cache"));
    }

    #[test]
    fn the_token_is_not_on_the_command_line() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::at(temp.path().join("zone")).unwrap();
        assert!(!line(&dir, &plan(false)).contains("credential:"));
        assert_eq!(credential("ab"), "io.systemd.credential:kraud.door-token=ab");
    }
}
