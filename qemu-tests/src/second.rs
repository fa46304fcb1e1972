//! A second zone beside the tests' own, from the same image, for what needs another machine. It is stopped and its disks are removed
//! however the test ends.

use crate::{Said, folder, variable};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The zone; its state is in a folder of its own.
#[derive(Debug)]
pub struct Zone(PathBuf);

impl Zone {
    /// Makes ready what it is started from; [`Self::appliance`] with `run --no-build --fresh --detach` starts it.
    ///
    /// # Panics
    /// When the files of the tests' zone cannot be copied.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let zone = Self(folder(name));
        let (from, to) = (PathBuf::from(variable("KRAUD_STATE")), zone.state());
        std::fs::create_dir_all(&to).expect("a folder can be made");
        for name in ["base.img", "plan.json", "disks.json"] {
            let (from, to) = (from.join(name), to.join(name));
            // The state of the tests may lie on another file system.
            std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).expect("it can be copied");
        }
        zone
    }

    /// Where its disks and logs are.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("kraudbox/zone")
    }

    /// Runs `cargo appliance …` for it.
    #[must_use]
    pub fn appliance(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("appliance starts").into()
    }

    /// Runs a script as root inside it.
    #[must_use]
    pub fn inside(&self, script: &str) -> Said {
        self.appliance(&["exec", "--", "sh", "-c", script])
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(variable("KRAUD_APPLIANCE"));
        command.args(args).env("XDG_STATE_HOME", Path::new(&self.0)).stdin(Stdio::null());
        command
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        // One that never ran has nothing to stop.
        let _ = self.command(&["kill"]).output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
