//! The machine below the zone's services: its disks, its two slots, its updates.
//!
//! `kraud-disks` opens what was encrypted, or encrypts it at the first boot, and lets the last partition grow. It runs before any
//! service and needs none; all that it starts are programs of the verified root. `kraud-update` writes the spare slot and judges what was
//! started from it. `kraud-init` is the initrd: it opens the root.
//!
//! Must not: destroy anything that this machine has used. Only a device of zeroes, or one whose first boot did not end, is written.

#![deny(unsafe_code)]

pub mod bundle;
pub mod crypt;
pub mod dm;
pub mod entry;
pub mod firmware;
pub mod gpt;
pub mod health;
pub mod luks;
pub mod modules;
pub mod run;
pub mod sysfs;
pub mod verity;
pub mod version;
