//! Capabilities (capabilities(7)): all are dropped from every set but those asked for, which stay across execve because
//! they are in the ambient set.

use super::RunError;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use std::str::FromStr;

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
        zone::capability::number(text)
            .map(Self)
            .ok_or_else(|| format!("there is no capability {text:?}; names are like NET_ADMIN"))
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
