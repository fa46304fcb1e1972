//! What the firmware says of Secure Boot, read from its variables (UEFI Specification 2.10, 3.3); and the note of it for the other services.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

const VARIABLES: &str = "/sys/firmware/efi/efivars";
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// For who cannot see the firmware.
const NOTE: &str = "/run/kraud/boot/firmware.json";

/// What becomes of a program without a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecureBoot {
    /// The firmware refuses it.
    On,
    /// It is started: the firmware has keys, and does not ask.
    Off,
    /// It is started: the firmware has no keys, and takes the first that it is given.
    Setup,
    /// It is started: this firmware knows no signatures.
    Absent,
}

impl SecureBoot {
    /// Asks the firmware.
    #[must_use]
    pub fn look() -> Self {
        Self::of(Path::new(VARIABLES))
    }

    fn of(variables: &Path) -> Self {
        // Four bytes of attributes, then the value.
        let read = |name| fs::read(variables.join(format!("{name}-{GLOBAL}"))).ok()?.get(4).copied();
        match (read("SecureBoot"), read("SetupMode")) {
            (Some(1), _) => Self::On,
            (Some(_), Some(1)) => Self::Setup,
            (Some(_), _) => Self::Off,
            (None, _) => Self::Absent,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Setup => "off: the firmware has no keys",
            Self::Absent => "off: the firmware has none",
        }
    }
}

/// Tells the other services.
///
/// # Errors
/// When the note cannot be written.
pub fn note(secure_boot: SecureBoot) -> Result<()> {
    let path = Path::new(NOTE);
    fs::create_dir_all(path.parent().unwrap_or(path)).context("cannot make the folder for notes about the boot")?;
    let text = serde_json::json!({"secure_boot": secure_boot}).to_string();
    fs::write(path, text).with_context(|| format!("cannot write {NOTE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_of_the_firmware_is_told_from_the_others() {
        let check = |variables: &[(&str, u8)], expected| {
            let dir = tempfile::tempdir().unwrap();
            for (name, value) in variables {
                fs::write(dir.path().join(format!("{name}-{GLOBAL}")), [6, 0, 0, 0, *value]).unwrap();
            }
            assert_eq!(SecureBoot::of(dir.path()), expected, "{variables:?}");
        };
        check(&[("SecureBoot", 1), ("SetupMode", 0)], SecureBoot::On);
        check(&[("SecureBoot", 0), ("SetupMode", 1)], SecureBoot::Setup);
        check(&[("SecureBoot", 0), ("SetupMode", 0)], SecureBoot::Off);
        check(&[("SecureBoot", 0)], SecureBoot::Off);
        check(&[], SecureBoot::Absent);
    }
}
