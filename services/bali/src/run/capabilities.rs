//! Capabilities (capabilities(7)): all are dropped from every set but those asked for, which stay across execve because
//! they are in the ambient set.

use super::RunError;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use std::str::FromStr;

/// In the order of their numbers (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// One capability, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(u32);

impl Capability {
    fn set(self) -> CapabilitySet {
        CapabilitySet::from_bits_retain(1 << self.0)
    }
}

impl FromStr for Capability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|n| *n == name).and_then(|n| u32::try_from(n).ok());
        number.map(Self).ok_or_else(|| format!("there is no capability {text:?}; names are like NET_ADMIN"))
    }
}

/// Drops all others from the bounding set, while we may.
pub(super) fn limit(keep: &[Capability]) -> Result<(), RunError> {
    // The kernel may know more than we have names for; it says EINVAL after its last.
    for number in 0..64 {
        if keep.contains(&Capability(number)) {
            continue;
        }
        match remove_capability_from_bounding_set(Capability(number).set()) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(RunError::step(format!("drop capability {number} for good"))(error)),
        }
    }
    Ok(())
}

/// Leaves exactly `keep` in all sets, and no way to gain more.
pub(super) fn keep(keep: &[Capability]) -> Result<(), RunError> {
    let set = keep.iter().fold(CapabilitySet::empty(), |set, capability| set | capability.set());
    set_capabilities(None, CapabilitySets { effective: set, permitted: set, inheritable: set })
        .map_err(RunError::step(format!("keep the capabilities {keep:?}; was bali started with them?")))?;
    clear_ambient_capability_set().map_err(RunError::step("clear the ambient capabilities"))?;
    for capability in keep {
        configure_capability_in_ambient_set(capability.set(), true)
            .map_err(RunError::step(format!("make {capability:?} ambient")))?;
    }
    set_no_new_privs(true).map_err(RunError::step("forbid new privileges"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (name, number) in [("CHOWN", 0), ("cap_net_admin", 12), ("SYS_ADMIN", 21), ("CAP_CHECKPOINT_RESTORE", 40)] {
            assert_eq!(name.parse(), Ok(Capability(number)), "{name}");
        }
        assert!("ALL".parse::<Capability>().is_err());
    }
}
